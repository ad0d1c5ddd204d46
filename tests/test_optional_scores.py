"""None is "not applicable": a term that does not apply counts for nothing, and a row without any score is an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import e_rate, make_trainer, step

from reward_models.combine import Combination, Term
from reward_models.ensemble import Ensemble
from workbench.errors import RewardError
from workbench.rewards.contract import CheckedReward

TEXTS = ["a", "b", "c"]
NOT_APPLICABLE = (
    r"reward {}, row {}, text '{}': it returned None \(not applicable\), but each text needs a score; combine it with "
    "a reward that applies to this row, or remove such rows from the data"
)


def returning(*values: float | None) -> CheckedReward:
    """Return a reward with these scores, in the order of TEXTS."""
    scores = dict(zip(TEXTS, values, strict=True))
    return CheckedReward(lambda prompts, completions, **columns: [scores[text] for text in completions], "fixed")


def combined(*rewards: CheckedReward) -> CheckedReward:
    """Return the sum of rewards, twice each."""
    return CheckedReward(Combination({f"t{n}": Term(reward, 2.0) for n, reward in enumerate(rewards)}), "combine")


def score(reward: CheckedReward) -> Sequence[float]:
    """Score TEXTS."""
    return reward(["p"] * 3, TEXTS)


def test_a_single_reward_must_apply_to_every_row() -> None:
    for call in (score, lambda reward: reward.terms(["p"] * 3, TEXTS)):
        with pytest.raises(RewardError, match=NOT_APPLICABLE.format("fixed", 1, "b")):
            call(returning(1.0, None, 2.0))
    with pytest.raises(RewardError, match=NOT_APPLICABLE.format("fixed", 1, "b")):
        score(CheckedReward(Ensemble([returning(1, 1, 1), returning(1.0, None, 2.0)], 1.0), "ensemble"))


def test_a_term_that_does_not_apply_counts_for_nothing() -> None:
    reward = combined(returning(1.0, None, 2.0), returning(None, 3.0, 4.0))
    assert score(reward) == [2.0, 6.0, 12.0]
    assert reward.terms(["p"] * 3, TEXTS) == {"t0": [2.0, None, 4.0], "t1": [None, 6.0, 8.0]}


def test_a_row_to_which_no_term_applies_is_an_error() -> None:
    nothing = combined(returning(1.0, None, None), returning(2.0, 1.0, None))
    with pytest.raises(RewardError, match=NOT_APPLICABLE.format("combine", 2, "c")):
        score(nothing)
    assert score(combined(nothing, returning(1.0, 1.0, 1.0))) == [14.0, 6.0, 2.0], "a combination may be a term"


class Summed:
    """A reward of two terms, of which one applies to b alone, with scores of its own."""

    def __init__(self, factor: Callable[[str], float | None]) -> None:
        self.factor = factor

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        """Return the score of each text."""
        return [self.factor(text) for text in completions]

    def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, list[float | None]]:
        """Return the two terms."""
        return {"only_b": [1.0 if text == "b" else None for text in completions], "none": [None] * len(completions)}


@pytest.mark.parametrize(
    ("score_of_a", "message"),
    [(0.0, r"its terms \(none applies\) sum to None, but its score is 0; the terms must"), (None, None)],
)
def test_the_terms_that_apply_must_sum_to_the_score(score_of_a: float | None, message: str | None) -> None:
    reward = CheckedReward(Summed(lambda text: 1.0 if text == "b" else score_of_a), "summed")
    if message is None:
        assert reward.optional_scores(["p"] * 3, TEXTS) == [None, 1.0, None]
        return
    with pytest.raises(RewardError, match=message):
        reward.optional_scores(["p"] * 3, TEXTS)
    with pytest.raises(RewardError, match=r"\(only_b 1\) sum to 1, but its score is None"):
        CheckedReward(Summed(lambda text: None), "summed").optional_scores(["p"] * 3, TEXTS)


def test_ppo_logs_the_mean_of_a_term_over_the_rows_to_which_it_applies(tmp_path: Path) -> None:
    def sometimes(prompts: list[str], completions: list[str], index: list[int], **columns: Any) -> list[float | None]:
        return [float(number) if number % 2 else None for number in index]

    def never(completions: list[str], **columns: Any) -> list[None]:
        return [None] * len(completions)

    functions: list[Callable[..., Any]] = [e_rate, sometimes, never]
    terms = {function.__name__: Term(CheckedReward(function, "term"), 1.0) for function in functions}
    run = make_trainer(tmp_path, reward=Combination(terms), steps=1)
    rows = run.batch(0)
    rollout, metrics = step(run)
    odd = torch.tensor([float(row["index"]) for row in rows if row["index"] % 2])
    assert metrics["objective/term/sometimes"] == pytest.approx(odd.mean().item())
    assert metrics["objective/term/e_rate"] == pytest.approx(rollout.terms["e_rate"].mean().item())
    assert "objective/term/never" not in metrics, "it has no mean"
    assert all(math.isfinite(value) for value in metrics.values())
    sums = zip(rollout.terms["e_rate"].tolist(), rows, strict=True)
    expected = [score + (row["index"] if row["index"] % 2 else 0.0) for score, row in sums]
    assert rollout.scores.tolist() == pytest.approx(expected)
