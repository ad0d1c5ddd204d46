"""How well probabilities separate two classes, and how well they are calibrated; all arrays are (N,) for N texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.errors import UserError
from workbench.run.files import read_json

FILE = "calibration.json"
Numbers = Sequence[float] | np.ndarray
Truths = Sequence[bool] | np.ndarray
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def read_temperature(folder: Path) -> float:
    """Return the temperature that the `reward` stage stored with a model, or 1; raises UserError for a corrupt file."""
    file, remedy = folder / FILE, "redo the stage with --force reward"
    if not file.is_file():
        return 1.0
    temperature = read_json(file, remedy=remedy).get("temperature")
    if not isinstance(temperature, int | float) or not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise UserError(f"{file}: corrupt; {remedy}")
    return float(temperature)


@dataclass(frozen=True)
class Confusion:
    """Counts at a threshold; toxic is positive."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def accuracy(self) -> float:
        """Fraction of texts that are classified correctly; 0 without texts."""
        return (self.true_positives + self.true_negatives) / max(self.total, 1)

    @property
    def precision(self) -> float:
        """Fraction of predicted positives that are positive; 0 without predicted positives."""
        return self.true_positives / max(self.true_positives + self.false_positives, 1)

    @property
    def recall(self) -> float:
        """Fraction of positives that are predicted; 0 without positives."""
        return self.true_positives / max(self.true_positives + self.false_negatives, 1)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where both are 0."""
        return 2 * self.true_positives / max(2 * self.true_positives + self.false_positives + self.false_negatives, 1)

    @property
    def total(self) -> int:
        """Number of texts."""
        return self.true_positives + self.false_positives + self.false_negatives + self.true_negatives


@dataclass(frozen=True)
class Bin:
    """Texts whose probabilities lie between `low` and `high`."""

    low: float
    high: float
    count: int
    probability: float
    """Mean predicted probability."""
    positive_rate: float
    """Fraction of the texts that are positive."""


def confusion(probabilities: Numbers, positive: Truths, threshold: float) -> Confusion:
    """Return the counts when texts at or above `threshold` are predicted positive."""
    predicted, truth = np.asarray(probabilities, dtype=np.float64) >= threshold, np.asarray(positive, dtype=bool)
    return Confusion(
        true_positives=int((predicted & truth).sum()),
        false_positives=int((predicted & ~truth).sum()),
        false_negatives=int((~predicted & truth).sum()),
        true_negatives=int((~predicted & ~truth).sum()),
    )


def average_precision(scores: Numbers, positive: Truths) -> float:
    """Return the mean precision over ranks, weighted by the gain in recall; equal scores share a rank."""
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if not truth.any():
        raise ValueError("average precision needs a positive row")
    order = np.argsort(-values, kind="stable")
    last_of_rank = np.append(np.diff(values[order]) != 0, True)
    true_positives = np.cumsum(truth[order])[last_of_rank]
    precision = true_positives / (np.flatnonzero(last_of_rank) + 1)
    return float((np.diff(true_positives, prepend=0) * precision).sum() / truth.sum())


def reliability(probabilities: Numbers, positive: Truths, bins: int = 10) -> list[Bin]:
    """Return the non-empty bins of equal width (arXiv 1706.04599)."""
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(positive, dtype=bool)
    bin_of_text = np.minimum((values * bins).astype(int), bins - 1)
    return [
        Bin(
            index / bins,
            (index + 1) / bins,
            int(inside.sum()),
            float(values[inside].mean()),
            float(truth[inside].mean()),
        )
        for index in range(bins)
        if (inside := bin_of_text == index).any()
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error (ECE, arXiv 1706.04599).

    It is the mean gap between probability and positive rate, weighted by bin count.
    """
    total = sum(part.count for part in bins)
    return sum(part.count * abs(part.probability - part.positive_rate) for part in bins) / total


def fit_temperature(log_odds: Numbers, positive: Truths) -> float:
    """Return the temperature T that minimizes the cross-entropy of sigmoid(log_odds / T) (arXiv 1706.04599).

    T lies between MIN_TEMPERATURE and MAX_TEMPERATURE. If the sign of the log odds separates the classes perfectly,
    there is no optimum, and MIN_TEMPERATURE is returned.
    """
    values, sign = np.asarray(log_odds, dtype=np.float64), np.where(np.asarray(positive, dtype=bool), -1.0, 1.0)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, sign * values / np.exp(log_temperature)).mean())

    # The loss is convex in 1/T, so it has one minimum along log T: a golden-section search finds it.
    low, high, ratio = np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE), (np.sqrt(5) - 1) / 2
    # Losses tie only near zero, at low temperatures, and the search then goes lower.
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return float(np.exp((low + high) / 2))
