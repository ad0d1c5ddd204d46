"""Notice when PPO learns little: every response of a step gets the same score, or the values predict nothing."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from workbench.run.files import read_json_lines

STEPS_BEFORE_WARNING = 3
SCORE_MEAN, SCORE_STD = "objective/score_mean", "objective/score_std"
# Equal scores can differ by a rounding of their mean.
RELATIVE_TOLERANCE = 1e-6
EXPLAINED_VARIANCE = "value/explained_variance"
# The last quarter of a run of at least so many steps says whether the values have become useful; on a small batch the
# explained variance of useless ones is a little below 0 as often as above.
FRACTION_OF_STEPS, MIN_STEPS, MARGIN = 0.25, 20, 0.05


@dataclass
class RewardSignal:
    """The steps of a run whose responses all had one score."""

    responses: int
    """Responses per step; a single one has no variance to look for."""
    constant: list[bool] = field(default_factory=list)
    """Whether the scores of each step were all equal."""

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of one step."""
        mean, std = metrics[SCORE_MEAN], metrics[SCORE_STD]
        self.constant.append(self.responses > 1 and std <= RELATIVE_TOLERANCE * abs(mean))

    def warning(self) -> str | None:
        """Return a warning if the last steps were the first few constant ones in a row, else None."""
        streak = len(list(itertools.takewhile(bool, reversed(self.constant))))
        if streak != STEPS_BEFORE_WARNING:
            return None
        return (
            f"ppo: warning: step {len(self.constant)}: for {STEPS_BEFORE_WARNING} steps in a row, every response got "
            "the same score, so PPO learned nothing; compare ppo/samples.jsonl with what the reward looks for, or "
            "choose a reward that distinguishes between the responses"
        )

    def summary(self) -> str | None:
        """Return how many steps were constant, or None if no more than a few were."""
        count = sum(self.constant)
        if count < STEPS_BEFORE_WARNING:
            return None
        return f"ppo: warning: in {count} of {len(self.constant)} steps every response got the same score"


def read_signal(file: Path, responses: int) -> RewardSignal:
    """Read the steps of a metrics.jsonl, each of so many responses."""
    signal = RewardSignal(responses)
    for metrics in read_json_lines(file):
        if SCORE_STD in metrics:
            signal.add(metrics)
    return signal


def value_warning(file: Path) -> str | None:
    """Return a warning if the values at the end of a metrics.jsonl were worse than a constant, else None.

    A step whose returns are all equal has no explained variance, and does not count.
    """
    steps = [metrics.get(EXPLAINED_VARIANCE) for metrics in read_json_lines(file) if metrics.get("step") != 0]
    if len(steps) < MIN_STEPS:
        return None
    last = steps[-round(FRACTION_OF_STEPS * len(steps)) :]
    explained = [value for value in last if value is not None and math.isfinite(value)]
    median = statistics.median(explained) if explained else 0.0
    if median >= -MARGIN:
        return None
    return (
        f"ppo: warning: in the last {len(last)} steps the values predicted the returns worse than a constant would "
        f"(median explained variance {median:.2f}), which makes the advantages noisier; try "
        "ppo.value_model: separate, a lower ppo.value_learning_rate or, for a reward that can score unfinished texts, "
        "ppo.value_model: reward"
    )
