"""TRL's further arguments of a reward: where they come from, who gets them, and what becomes of what a reward logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from http_servers import isolated, serving
from trainers import e_rate, make_trainer, step

from reward_models.combine import Combination, Term
from reward_models.http import load as load_http
from reward_models.serve import Service
from workbench.errors import RewardError, UserError
from workbench.evaluation.completion_metrics import Sampled, Scorers
from workbench.evaluation.generation import Completion
from workbench.ppo.selfcheck import check_sanity_pair
from workbench.rewards.arguments import RewardLog, TrainerState, trainer_arguments
from workbench.rewards.contract import CheckedReward
from workbench.run.tracking import NoTracker

TEXTS = ["one", "second"]


def by_ids(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Score the number of tokens."""
    return [float(len(ids)) for ids in completion_ids]


def test_a_function_gets_what_it_names_or_everything() -> None:
    def strict(prompts: list[str], completions: list[str]) -> list[float]:
        return [1.0] * len(completions)

    def curriculum(prompts: list[str], completions: list[str], trainer_state: Any) -> list[float]:
        return [trainer_state.global_step / trainer_state.max_steps] * len(completions)

    def greedy(completions: list[str], **columns: Any) -> list[float]:
        assert {"prompts", "trainer_state", "log_metric", "log_extra", "completion_ids"} == set(columns)
        return [0.0] * len(completions)

    arguments = trainer_arguments(TrainerState(3, 4), RewardLog(2), [[1], [2, 3]])
    for reward, expected in ((strict, 1.0), (curriculum, 0.75), (greedy, 0.0), (by_ids, None)):
        checked = CheckedReward(reward, "test")
        checked.check_columns({})
        scores = checked(["p"] * 2, TEXTS, **arguments)
        assert scores == ([1.0, 2.0] if expected is None else [expected] * 2)


def test_without_a_trainer_the_training_has_ended_and_nothing_is_logged() -> None:
    def reward(completions: list[str], trainer_state: Any, log_metric: Any, log_extra: Any, **columns: Any) -> list:
        log_metric("name", 1.0)
        log_extra("column", [])
        return [trainer_state.global_step / trainer_state.max_steps] * len(completions)

    assert CheckedReward(reward, "test")(["p"] * 2, TEXTS) == [1.0, 1.0]
    message = "reward test: it needs completion_ids, the token ids of responses, which PPO and the evaluation pass on"
    with pytest.raises(RewardError, match=message):
        CheckedReward(by_ids, "test")(["p"] * 2, TEXTS)


def test_the_evaluation_passes_the_ids_of_the_completions() -> None:
    def sampled(*ids: list[int] | None) -> Sampled:
        completions = [
            Completion(text, 1, False, None, None, None, tokens) for text, tokens in zip(TEXTS, ids, strict=True)
        ]
        return Sampled([{"prompt": "p"}] * 2, [[], []], completions, Scorers(None, {}, {}, None, 0.5))

    assert sampled([1], [2, 3]).score(CheckedReward(by_ids, "test")) == [1.0, 2.0]
    with pytest.raises(RewardError, match="it needs completion_ids"):
        sampled([1], None).score(CheckedReward(by_ids, "test"))


def test_the_sanity_pair_has_ids() -> None:
    row, tokenizer = {"prompt": "p", "prompt_ids": [1]}, tiny.tokenizer("gpt2")
    check_sanity_pair(CheckedReward(by_ids, "test"), ["longer", "short"], row, tokenizer)
    with pytest.raises(UserError, match="sanity_pair: 'short' scores 5 and 'longer' scores 6"):
        check_sanity_pair(CheckedReward(by_ids, "test"), ["short", "longer"], row, tokenizer)


def test_a_server_gets_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    isolated(monkeypatch)
    with serving(Service("ids", CheckedReward(by_ids, "ids"), None, None)) as url:
        assert CheckedReward(load_http(url=url, batch_size=1), "http")(
            ["p"] * 2, TEXTS, **trainer_arguments(TrainerState(0, 1), RewardLog(2), [[1], [2, 3]])
        ) == [1.0, 2.0]


class Logging:
    """A sum of terms that logs whenever it is called."""

    def __call__(self, prompts: list[str], completions: list[str], log_metric: Any, **columns: Any) -> list[float]:
        """Score the share of e."""
        log_metric("calls", 1.0)
        return e_rate(prompts, completions)

    def terms(self, prompts: list[str], completions: list[str], log_extra: Any, **columns: Any) -> dict[str, Any]:
        """Return the only term."""
        log_extra("state", [torch.tensor(1.5), *([columns["trainer_state"]] * (len(completions) - 1))])
        columns["log_metric"]("mean", torch.tensor(len(completions)))
        columns["log_metric"]("mean", 0.0)
        return {"e": e_rate(prompts, completions)}


class RecordingTracker(NoTracker):
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []

    def log(self, values: Any, step: int) -> None:
        """Remember metrics."""
        self.metrics.append(dict(values))

    def log_samples(self, samples: Any, step: int) -> None:
        """Remember samples."""
        self.samples += samples


@pytest.mark.parametrize("validation", [0, 4])
def test_what_is_logged_reaches_files_and_tracker(tmp_path: Path, validation: int) -> None:
    tracker = RecordingTracker()
    terms = {"sum": Term(CheckedReward(Logging(), "sum"), 1.0)}
    make_trainer(tmp_path, reward=Combination(terms), steps=2, validation=validation, held_out=Logging()).train(tracker)
    first = int(validation > 0)  # after the validation at step 0
    metrics, _ = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][first:]
    assert metrics["reward/mean"] == tracker.metrics[first]["reward/mean"] == 8.0, "the mean over the calls"
    assert "reward/calls" not in metrics, "the comparison with the score logs nothing"
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample["state"] for sample in samples if sample["step"] > 0][:2] == [
        1.5,
        f"TrainerState(global_step={2 if validation else 1}, max_steps=2)",
    ]
    assert [row["state"] for row in tracker.samples] == [sample["state"] for sample in samples]
    assert "extra" not in tracker.samples[0]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (lambda metric, extra: metric(3, 1.0), "log_metric: the name is 3; it must be a string"),
        (lambda metric, extra: metric("a", float("nan")), r"log_metric\('a'\): the value is nan; it must be finite"),
        (lambda metric, extra: metric("a", "b"), r"log_metric\('a'\): the value is 'b', a str, not a number"),
        (lambda metric, extra: extra("a", [1]), r"log_extra\('a'\): it has 1 values for 16 completions; pass one for"),
        (lambda metric, extra: extra("score", [1] * 16), "log_extra: the column is 'score'; use a string other than"),
    ],
)
def test_a_mistake_in_logging_is_one_line(log: Callable[..., None], message: str, tmp_path: Path) -> None:
    def reward(completions: list[str], log_metric: Any, log_extra: Any, **columns: Any) -> list[float]:
        log(log_metric, log_extra)
        return [1.0] * len(completions)

    with pytest.raises(RewardError, match=message):
        step(make_trainer(tmp_path, reward=reward))
