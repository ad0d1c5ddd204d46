"""What a comparison of ways to tune would ignore, or what would favour one of its methods, is one line in the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tuning_runs import METHODS, TASK, options, planned, run

from recipes import prompting, tuning
from workbench.config.parsing import parse
from workbench.data.texts import TextSet
from workbench.errors import UserError
from workbench.evaluation.records import refuse_fail_on
from workbench.run.cli import plan_stages
from workbench.run.folder import Run
from workbench.tuning.plan import TuningPlan

SENTENCES = {"path": "toy:sentences", "split": "validation", "limit": 8}
TEXTS = ["the cat sat on the mat today", "a dog ran to the red house", "The cat  sat on the mat today"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft.trainer_args": {"learning_rate": 1e-3}}, "sft.trainer_args.learning_rate: 0.001 would override"),
        ({"sft.trainer_args": {"max_steps": 3}}, "sft.trainer_args.max_steps: 3 is the budget that all methods share"),
        ({"sft.trainer_args": {"num_train_epochs": 3}}, "set sft.epochs"),
        ({"sft.trainer_args": {"per_device_train_batch_size": 2}}, "set sft.batch_size and sft.micro_batch_size"),
        ({"sft.trainer_args": {"gradient_accumulation_steps": 2}}, "set sft.batch_size and sft.micro_batch_size"),
        ({"sft.trainer_args": {"seed": 3}}, "sft.trainer_args.seed: 3 would differ"),
        ({"sft.trainer_args": {"output_dir": "elsewhere"}}, "sft.trainer_args.output_dir: checkpoints belong"),
        ({"sft.trainer_args": {"eval_strategy": "steps"}}, "sft.trainer_args.eval_strategy: 'steps' is not read"),
        ({"sft.learning_rate": "1e-3"}, "sft.learning_rate: 0.001 is not read here"),
        ({"sft.validation": TASK}, "sft.validation: not read here"),
        (
            {"policy.quantization": "nf4"},
            "policy.quantization: nf4 is not read here, where each method has its own; set "
            "tuning.methods.NAME.quantization",
        ),
        ({"policy.lora": {"r": 4}}, "policy.lora: not read here, where each method has its own"),
        ({"evaluation.models": {"other": "toy:t5"}}, "evaluation.models: other: not compared here"),
        (
            {
                "evaluation.best_of": {"b": {"model": "base"}},
                "reward.model": "toy_lexicon",
                "evaluation.temperature": 1,
            },
            "evaluation.best_of: b: not compared here",
        ),
        ({"evaluation.prompted": {"b": {"model": "base", "prefix": "a"}}}, "evaluation.prompted: b: not compared here"),
        (
            {"evaluation.anti_expert": {"b": {"model": "base", "adapter": "a"}}},
            "evaluation.anti_expert: b: not compared",
        ),
        ({"evaluation.fail_on": "worse"}, "evaluation.fail_on: worse is about the verdicts of recipes.evaluation"),
        ({"tuning.texts": {"a": SENTENCES | {"chat": True}}}, "tuning.texts.a.chat: True: a text is read as it is"),
        ({"tuning.texts": {"a": SENTENCES | {"template": "{text}!"}}}, "tuning.texts.a.template: '{text}!': a text"),
        ({"tuning.texts": {"a": SENTENCES | {"max_prompt_tokens": 4}}}, "tuning.texts.a.max_prompt_tokens: 4: texts"),
        ({"tuning.texts": {"a": SENTENCES | {"max_response_tokens": 4}}}, "remove max_response_tokens"),
        ({"tuning.methods": {"a": {"method": "lora", "target_modules": []}}}, "a.target_modules: empty; expected at"),
    ],
)
def test_what_would_be_ignored_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        planned(tmp_path, **changes)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_layers_to_adapt_are_refused_for_the_policy_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"policy\.lora\.target_modules: empty; expected at least 1"):
        planned(tmp_path, **{"policy.lora": {"target_modules": []}})


def test_a_comparison_has_no_verdict_to_fail_on_even_when_it_is_finished(tmp_path: Path) -> None:
    config = parse([*options(tmp_path), "--evaluation.fail_on=worse"])[0]
    grid = parse([*options(tmp_path), "--evaluation.fail_on=worse", '--prompting.templates={"a": "continuation"}'])[0]
    for stage, each in ((tuning.STAGE, config), (prompting.STAGE, grid)):
        with pytest.raises(UserError, match=rf"evaluation\.fail_on: worse .*recipes\.{stage.name} compares rows"):
            list(plan_stages([stage], each, None))
        with pytest.raises(UserError, match=r"evaluation\.fail_on"):
            stage.failure(Run(tmp_path, each))
    refuse_fail_on(parse(options(tmp_path))[0], "tuning")


def test_replay_takes_as_many_steps_as_the_other_methods(tmp_path: Path) -> None:
    epochs = [word for word in options(tmp_path, **{"sft.epochs": "1.5"}) if not word.startswith("--sft.max_steps")]
    methods = {title: METHODS[title] for title in ("LoRA r 2", "with replay")}
    words = [word for word in epochs if not word.startswith("--tuning.methods")]
    tuned: list[str] = [*words, f"--tuning.methods={json.dumps(methods)}"]
    with mock.patch("tuning_runs.options", return_value=tuned):
        plan = planned(tmp_path)
        folder = run(tmp_path)
    assert plan.sft_with_replay is not None
    assert len(plan.sft_with_replay.train_rows) > len(plan.sft.train_rows) == 24
    assert "9 steps of 4 each" in "\n".join(plan.lines)
    records = [folder / "methods" / name / "stage.json" for name in ("LoRA-r-2", "with-replay")]
    assert [json.loads(record.read_text())["metrics"]["steps"] for record in records] == [9, 9]


def test_the_memory_is_that_of_the_method_that_takes_the_most(tmp_path: Path) -> None:
    def lines(methods: dict[str, Any]) -> list[str]:
        return [line for line in planned(tmp_path, **{"tuning.methods": methods}).lines if "memory" in line]

    adapter = {"small": {"method": "lora", "r": 2}}
    (line, small), (both, large) = lines(adapter)[:2], lines(adapter | {"whole": {"method": "full"}})[:2]
    assert line.endswith("of the methods, small takes the most memory")
    assert both.endswith("of the methods, whole takes the most memory")
    assert "memory about" in small
    assert "memory about" in large


def text_file(folder: Path, texts: list[str]) -> str:
    """Return a file of texts."""
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(file)


def text_plan(folder: Path, texts: list[str], limit: int) -> tuple[TextSet, str]:
    """Return the texts of a plan, and the line about them."""
    source = {"path": text_file(folder, texts), "limit": limit}
    plan: TuningPlan = planned(folder, **{"tuning.texts": {"a": source}})
    return plan.texts[0], next(line for line in plan.lines if line.startswith("tuning.texts.a"))


def test_the_limit_counts_texts_that_fit(tmp_path: Path) -> None:
    texts, line = text_plan(tmp_path, [" ".join(TEXTS * 400), *TEXTS, "one more of them"], 3)
    assert [row["prompt"] for row in texts.rows] == ["the cat sat", "a dog ran", "The cat sat"]
    assert line.endswith("3 texts, 1 are too long, 1 repeated")


def test_equal_texts_count_as_one(tmp_path: Path) -> None:
    texts, _ = text_plan(tmp_path, TEXTS, 3)
    assert texts.identities[0] == texts.identities[2] != texts.identities[1]


def test_a_text_after_the_limit_is_still_read(tmp_path: Path) -> None:
    file = Path(text_file(tmp_path, TEXTS))
    file.write_text(file.read_text() + "{broken\n")
    with pytest.raises(UserError, match="line 4"):
        planned(tmp_path, **{"tuning.texts": {"a": {"path": str(file), "limit": 1}}})
