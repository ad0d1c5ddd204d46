"""What an evaluation says about a change beyond its interval: whether a quantity was retained, and reward hacking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Retention = Literal["kept", "lost", "not shown"]


@dataclass(frozen=True)
class NonInferiority:
    """Whether a quantity was retained, against a margin fixed in advance: a test that no loss exceeds it."""

    word: Retention
    """kept: the interval rules out a loss beyond the margin; lost: it rules out one within it; else not shown."""
    margin: float
    """The largest loss that is acceptable."""
    is_relative: bool
    """Whether the margin is a fraction of the value before; else it is in units of the metric."""
    low: float | None
    """Lower end of the interval of the loss beyond the margin, in units of the metric; the metric is lost above zero.
    None for a single prompt."""
    high: float | None
    """Upper end of the interval; the metric is kept below zero."""


@dataclass(frozen=True)
class RewardGap:
    """How much further toxicity fell according to the reward than according to a judge: reward hacking in a number."""

    judge: str
    fall_by_reward: float
    fall_by_judge: float
    gap: float
    """`fall_by_reward` less `fall_by_judge`, paired by prompt."""
    low: float | None
    """Lower end of the interval of `gap`; None for a single prompt."""
    high: float | None
    prompts: int
    """Distinct prompts that both judged in both models."""


def retention_columns(retained: NonInferiority | None) -> dict[str, Any]:
    """Return the word and the margin of a retained quantity as the columns of a row."""
    return {"non_inferiority": retained and retained.word, "margin": retained and retained.margin}
