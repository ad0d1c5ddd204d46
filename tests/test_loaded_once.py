"""Every stage of a chain loads its tokenizer, its rows and its rewards once, while it is planned."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_runs import CHAIN, evaluation_source, small

from recipes import reward
from workbench.data import sources
from workbench.models import loading
from workbench.rewards import registry
from workbench.run import cli
from workbench.run.cli import Stage


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, record: Callable[..., None]) -> None:
    """Let a function of a module report its arguments on every call."""
    function = getattr(module, name)

    def report_and_call(*args: Any, **options: Any) -> Any:
        record(*args)
        return function(*args, **options)

    monkeypatch.setattr(module, name, report_and_call)


def count_loads(
    monkeypatch: pytest.MonkeyPatch, stages: Sequence[Stage], options: list[str]
) -> Counter[tuple[str, ...]]:
    """Run the stages and count their loads: (stage, plan or run, kind, what is loaded)."""
    loads: Counter[tuple[str, ...]] = Counter()
    moment = ("", "")

    def record(*what: str) -> None:
        loads[*moment, *what] += 1

    def marked(stage: Stage) -> Stage:
        def plan(config: Any) -> Any:
            nonlocal moment
            moment = (stage.name, "plan")
            return stage.plan(config)

        def run(run: Any, plan: Any) -> Any:
            nonlocal moment
            moment = (stage.name, "run")
            return stage.run(run, plan)

        return dataclasses.replace(stage, plan=plan, run=run)

    counted(monkeypatch, sources, "load_rows", lambda path, split: record("rows", path, split))
    counted(monkeypatch, loading, "from_pretrained", lambda cls, model: record(cls.__name__, str(model)))
    counted(monkeypatch, registry, "_build", lambda model, options: record("reward", model))
    cli.launch([marked(stage) for stage in stages], "", options)
    return loads


def test_a_chain_loads_everything_once_per_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = evaluation_source(12, "validation")
    options = [
        *(
            "--evaluation.judges",
            "[{model: lexicon, options: {words: [idiot]}}]",
            "--reward.held_out",
            "{model: length}",
        ),
        *("--evaluation.rewards", "[toy_lexicon, length]"),  # toy_lexicon is the reward, too
        *("--sft.validation", json.dumps(validation | {"columns": {"response": "summary"}})),
        *("--ppo.validation", json.dumps(validation)),
    ]
    loads = count_loads(monkeypatch, CHAIN, [*small("quickstart", tmp_path), *options])
    once = {load: count for load, count in loads.items() if load[2] in ("rows", "AutoTokenizer", "reward")}
    assert set(once.values()) == {1}, once
    assert {load[1] for load in once} == {"plan"}, "nothing is loaded twice, or only when a stage runs"
    assert {load[:3] for load in once} == {
        *((stage, "plan", what) for stage in ("sft", "ppo", "evaluation") for what in ("rows", "AutoTokenizer")),
        ("ppo", "plan", "reward"),
        ("evaluation", "plan", "reward"),
    }
    # The first plan in a process checks the stored weights, too.
    models = Counter(load[0] for load in loads.elements() if load[1:3] == ("run", "AutoModelForSeq2SeqLM"))
    assert models == {"sft": 1, "ppo": 1, "evaluation": 1}


def test_the_reward_stage_loads_its_rows_and_tokenizer_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = small("quickstart", tmp_path, "--reward.model", "null", "--reward.train.data.limit", "640")
    loads = count_loads(monkeypatch, [reward.STAGE], options)
    for load in (("rows", "toy:sentences", "train"), ("rows", "toy:sentences", "validation")):
        assert loads["reward", "plan", *load] == 1
    assert [count for load, count in loads.items() if load[2:] == ("AutoTokenizer", "toy:gpt2")] == [1]
    assert not [load for load in loads if load[1:3] == ("run", "rows")]
