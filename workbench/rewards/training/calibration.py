"""How well probabilities tell two classes apart, and how far they can be believed. N texts, all arrays (N,)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Numbers = Sequence[float] | np.ndarray
Truths = Sequence[bool] | np.ndarray
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0  # between these a temperature is looked for


@dataclass(frozen=True)
class Confusion:
    """Counts at a threshold; positive is what is looked for."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def accuracy(self) -> float:
        """Share of texts on the right side; 0 where there is none."""
        return (self.true_positives + self.true_negatives) / max(self.total, 1)

    @property
    def precision(self) -> float:
        """Share of truly positive ones among those called so; 0 where none is."""
        return self.true_positives / max(self.true_positives + self.false_positives, 1)

    @property
    def recall(self) -> float:
        """Share of the positive ones that are called so; 0 where there is none."""
        return self.true_positives / max(self.true_positives + self.false_negatives, 1)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where both are."""
        return 2 * self.true_positives / max(2 * self.true_positives + self.false_positives + self.false_negatives, 1)

    @property
    def total(self) -> int:
        """How many texts were counted."""
        return self.true_positives + self.false_positives + self.false_negatives + self.true_negatives


@dataclass(frozen=True)
class Bin:
    """Texts whose probabilities lie between `low` and `high`."""

    low: float
    high: float
    count: int
    probability: float
    """Mean probability that was given."""
    share: float
    """Share that was truly positive."""


def confusion(probabilities: Numbers, positive: Truths, threshold: float) -> Confusion:
    """Counts when a text is called positive from `threshold` on."""
    called, truth = np.asarray(probabilities, dtype=np.float64) >= threshold, np.asarray(positive, dtype=bool)
    return Confusion(
        true_positives=int((called & truth).sum()),
        false_positives=int((called & ~truth).sum()),
        false_negatives=int((~called & truth).sum()),
        true_negatives=int((~called & ~truth).sum()),
    )


def average_precision(scores: Numbers, positive: Truths) -> float:
    """Precision at each rank that raises recall, weighted by how much; equal scores share a rank."""
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if not truth.any():
        raise ValueError("average precision needs a positive row")
    order = np.argsort(-values, kind="stable")
    last_of_rank = np.append(np.diff(values[order]) != 0, True)
    found = np.cumsum(truth[order])[last_of_rank]
    precision = found / (np.flatnonzero(last_of_rank) + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / truth.sum())


def reliability(probabilities: Numbers, positive: Truths, bins: int = 10) -> list[Bin]:
    """The bins of equal width that are not empty (arXiv 1706.04599)."""
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(positive, dtype=bool)
    number = np.minimum((values * bins).astype(int), bins - 1)
    return [
        Bin(
            index / bins,
            (index + 1) / bins,
            int(inside.sum()),
            float(values[inside].mean()),
            float(truth[inside].mean()),
        )
        for index in range(bins)
        if (inside := number == index).any()
    ]


def calibration_error(found: Sequence[Bin]) -> float:
    """Expected calibration error: mean gap of probability and share over bins, weighted by count (arXiv 1706.04599)."""
    total = sum(part.count for part in found)
    return sum(part.count * abs(part.probability - part.share) for part in found) / total


def fit_temperature(log_odds: Numbers, positive: Truths) -> float:
    """Return the T for which sigmoid(log_odds / T) has the least cross-entropy (arXiv 1706.04599).

    T lies between MIN_TEMPERATURE and MAX_TEMPERATURE.

    Truths that the sign of the log odds tells apart without a mistake have none, and end at MIN_TEMPERATURE.
    """
    values, sign = np.asarray(log_odds, dtype=np.float64), np.where(np.asarray(positive, dtype=bool), -1.0, 1.0)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, sign * values / np.exp(log_temperature)).mean())

    # As a function of 1/T the loss is convex, so that along log T it has one valley: narrow it by the golden section.
    low, high, ratio = np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE), (np.sqrt(5) - 1) / 2
    # Losses too small to tell apart are those of the cold side.
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return float(np.exp((low + high) / 2))
