"""Rewards of TRL's users run unchanged: the examples of its documentation, and every function of trl.rewards."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl.rewards
from trainers import make_trainer, step

from reward_models.combine import Combination, Term
from workbench.data.templates import PROMPT_MESSAGES
from workbench.errors import UserError
from workbench.rewards.contract import CheckedReward
from workbench.rewards.registry import load_reward

PROMPTS = ["What is 2+2?", "Write a sum."]
TEXTS = [r"<think>2 and 2</think>\boxed{4}", "a + b"]
CHAT = {PROMPT_MESSAGES: [[{"role": "user", "content": prompt}] for prompt in PROMPTS]}
IDS = [[5, 5, 5, 5], [7, 8]]


def by_tokens(completion_ids, **kwargs):
    """Reward longer completions, in tokens."""
    return [float(len(ids)) for ids in completion_ids]


def by_characters(completions, **kwargs):
    """Reward longer completions, in characters."""
    return [float(len(completion)) for completion in completions]


def by_format(completions, **kwargs):
    """Reward a format; for conversational data."""
    pattern = r"^<think>.*?</think>.*$"
    completion_contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(pattern, content) else 0.0 for content in completion_contents]


def by_reference(completions, ground_truth, **kwargs):
    """Reward completions that contain the reference."""
    matches = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth, strict=True)]


def for_math(prompts, completions, task, **kwargs):
    """Reward math, and return None for other tasks."""
    return [1.0 if t == "math" else None for t in task]


def for_code(prompts, completions, task, **kwargs):
    """Reward code, and return None for other tasks."""
    return [-1.0 if t == "code" else None for t in task]


async def asynchronous(prompts, completions, **kwargs):
    """Wait for something, then reward texts that are not empty."""
    await asyncio.sleep(0.001)
    return [1.0 if completion else 0.0 for completion in completions]


def by_progress(completions, trainer_state, log_metric=None, log_extra=None, **kwargs):
    """Reward by the training's progress, and log."""
    if log_metric is not None:
        log_metric("progress", trainer_state.global_step / trainer_state.max_steps)
    if log_extra is not None:
        log_extra("initial", [completion[:1] for completion in completions])
    return [float(trainer_state.global_step)] * len(completions)


EXAMPLES: dict[Callable[..., Any], list[float | None]] = {
    by_tokens: [4.0, 2.0],
    by_characters: [31.0, 5.0],
    by_reference: [1.0, 0.0],
    for_math: [1.0, None],
    for_code: [None, -1.0],
    asynchronous: [1.0, 1.0],
    by_progress: [1.0, 1.0],
}
COLUMNS: dict[str, list] = {"ground_truth": ["4", "5"], "task": ["math", "code"], "completion_ids": IDS}


@pytest.mark.parametrize("reward", EXAMPLES, ids=lambda reward: reward.__name__)
def test_the_examples_of_the_documentation(reward: Callable[..., Any]) -> None:
    assert CheckedReward(reward, "example").optional_scores(PROMPTS, TEXTS, **COLUMNS) == EXAMPLES[reward]


def test_an_example_for_conversational_data() -> None:
    assert CheckedReward(by_format, "example")(PROMPTS, TEXTS, **COLUMNS, **CHAT) == [1.0, 0.0]


def test_several_rewards_apply_to_several_tasks() -> None:
    both = Combination({f.__name__: Term(CheckedReward(f, f.__name__), 2.0) for f in (for_math, for_code)})
    assert CheckedReward(both, "both")(PROMPTS, TEXTS, **COLUMNS) == [2.0, -2.0]


# Every public name of trl.rewards: its options, the columns it reads, and its scores of TEXTS.
TRL: dict[str, tuple[dict[str, Any], list[float | None]]] = {
    "accuracy_reward": ({}, [1.0, 0.0]),
    "reasoning_accuracy_reward": ({}, [1.0, 0.0]),
    "think_format_reward": ({}, [1.0, 0.0]),
    "get_soft_overlong_punishment": ({"max_completion_len": 4, "soft_punish_cache": 2}, [-1.0, 0.0]),
    "get_repetition_penalty_reward": ({"ngram_size": 1}, [-0.75, 0.0]),
    "get_cosine_scaled_reward": ({"max_len": 4}, [0.5, -0.75]),
}
needs_math_verify = {"accuracy_reward", "reasoning_accuracy_reward", "get_cosine_scaled_reward"}
each = pytest.mark.parametrize("name", TRL)


def test_every_function_of_trl_is_tested() -> None:
    assert {name for names in trl.rewards._import_structure.values() for name in names} == set(TRL)


def load(name: str) -> CheckedReward:
    """Load a reward of TRL."""
    if name in needs_math_verify and importlib.util.find_spec("math_verify") is None:
        pytest.skip("needs math_verify, which is not installed")
    return load_reward(f"trl.rewards:{name}", **TRL[name][0])


@each
@pytest.mark.parametrize("columns", [{}, CHAT], ids=["texts", "chat"])
def test_a_function_of_trl_scores_as_there(name: str, columns: dict[str, list]) -> None:
    columns = columns | {"solution": ["$4$", "$5$"], "completion_ids": IDS}
    reward = load(name)
    reward.check_columns(columns)
    assert reward(PROMPTS, TEXTS, **columns) == pytest.approx(TRL[name][1])


def steps_with(reward: CheckedReward, folder: Path, chat: bool) -> dict[str, float]:
    """Take a step of PPO and return its metrics."""
    run = make_trainer(folder, reward=reward)
    columns = {"solution": "$4$", "ground_truth": "4", "task": "math"}
    run.rows = [
        row | columns | ({PROMPT_MESSAGES: [{"role": "user", "content": row["prompt"]}]} if chat else {})
        for row in run.rows
    ]
    return step(run)[1]


@each
def test_a_step_of_ppo_with_a_function_of_trl(name: str, tmp_path: Path) -> None:
    assert steps_with(load(name), tmp_path, chat=True)["optimizer_steps"] == 4


@pytest.mark.parametrize("reward", [*EXAMPLES, by_format], ids=lambda reward: reward.__name__)
def test_a_step_of_ppo_with_an_example(reward: Callable[..., Any], tmp_path: Path) -> None:
    checked = CheckedReward(reward, "example")
    if reward is for_code:
        with pytest.raises(
            UserError, match=r"it returned None \(not applicable\), but each text needs a score; combine"
        ):
            steps_with(checked, tmp_path, chat=False)
        return
    assert steps_with(checked, tmp_path, chat=reward is by_format)["optimizer_steps"] == 4


def test_what_a_reward_logs_is_in_the_metrics_and_the_samples(tmp_path: Path) -> None:
    make_trainer(tmp_path, reward=by_progress, steps=2, validation=4).train()
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["reward/progress"] for line in metrics[1:]] == [0.0, 0.5]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert samples
    assert all(sample["initial"] == sample["completion"][:1] for sample in samples)
