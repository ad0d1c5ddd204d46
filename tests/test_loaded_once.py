"""A stage loads its tokenizer and every split of its data once: what the plan loaded is what the run uses."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from small_runs import CHAIN, evaluation_source, small
from transformers import AutoTokenizer

from workbench.data import readers, sources
from workbench.run import cli
from workbench.run.cli import Stage


class LoadCounter:
    """Counts what is loaded in each stage, in its plan and in its run together."""

    def __init__(self) -> None:
        self.stage = ""
        self.counts: Counter[tuple[str, ...]] = Counter()

    def count(self, function: Callable[..., Any], kind: str, arguments: int) -> Callable[..., Any]:
        """Return the function, with each call counted under its first arguments."""

        def counting(*values: Any, **options: Any) -> Any:
            self.counts[self.stage, kind, *map(str, values[:arguments])] += 1
            return function(*values, **options)

        return counting

    def watch(self, stage: Stage) -> Stage:
        """Return the stage, which names itself while its functions run."""

        def during(function: Callable[..., Any]) -> Callable[..., Any]:
            def named(*values: Any) -> Any:
                self.stage = stage.name
                return function(*values)

            return named

        return dataclasses.replace(stage, plan=during(stage.plan), run=during(stage.run))


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> Counter[tuple[str, ...]]:
    """What every stage of a chain loads, with all optional data that it can have."""
    folder = tmp_path_factory.mktemp("chain")
    validation = evaluation_source(12, "validation")
    options = small(
        "quickstart",
        folder,
        *("--reward.model", "null", "--reward.train.data.limit", "640"),
        *("--sft.validation", json.dumps(validation | {"columns": {"response": "summary"}})),
        *("--ppo.validation", json.dumps(validation), "--reward.held_out", "{model: toy_lexicon}"),
        *("--evaluation.data", json.dumps({"test dialogues": evaluation_source(5)})),
    )
    counter = LoadCounter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "load_rows", counter.count(readers.load_rows, "rows", 2))
        patch.setattr(AutoTokenizer, "from_pretrained", counter.count(AutoTokenizer.from_pretrained, "tokenizer", 1))
        cli.launch([counter.watch(stage) for stage in CHAIN], "", options)
    return counter.counts


def test_every_stage_loads_its_data_and_tokenizer(loads: Counter[tuple[str, ...]]) -> None:
    for stage in ("sft", "reward", "ppo", "evaluation"):
        assert {kind for name, kind, *_ in loads if name == stage} == {"rows", "tokenizer"}, stage


def test_nothing_is_loaded_twice_in_a_stage(loads: Counter[tuple[str, ...]]) -> None:
    assert {loaded: count for loaded, count in loads.items() if count > 1} == {}
