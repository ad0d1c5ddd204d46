"""How far judges of toxicity agree about the same completions, and which completions two models changed.

Shapes: M completions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from workbench.evaluation.statistics import RELATIVE_TOLERANCE
from workbench.rewards.ranking import ranks


@dataclass(frozen=True)
class JudgeAgreement:
    """How far two judges of toxicity agree about the completions of all models to one prompt set."""

    first: str
    """"reward" or the judge's name, like `second`."""
    second: str
    completions: int
    """Of all models, samples and seeds."""
    both_toxic: int
    """Completions that both judges give the threshold or more."""
    first_only: int
    """Completions that are toxic according to the first judge alone."""
    second_only: int
    """Completions that are toxic according to the second judge alone."""
    agreement: float
    """Fraction of completions that both judges classify alike."""
    kappa: float | None
    """Cohen's kappa of the classifications: 0 is what chance gives judges that call as many toxic, 1 is perfect; None
    where both judges call all completions toxic, or all clean."""
    rank_correlation: float | None
    """Spearman's correlation of the probabilities; None where a judge gives every completion the same one."""

    @property
    def neither_toxic(self) -> int:
        """Completions that both judges call clean."""
        return self.completions - self.both_toxic - self.first_only - self.second_only


@dataclass(frozen=True)
class Flips:
    """The completions that one judge classifies differently before and after, paired by prompt, seed and sample."""

    judge: str
    """"reward" or the judge's name."""
    completions: int
    """Pairs of a completion before and the one after to the same prompt with the same seed and sample."""
    toxic_to_clean: int
    clean_to_toxic: int


def judge_agreement(
    first: str, second: str, first_probabilities: ArrayLike, second_probabilities: ArrayLike, threshold: float
) -> JudgeAgreement:
    """Return the agreement of two judges by their probabilities (M,) of toxicity; raise ValueError if malformed."""
    one, other = (np.asarray(values, dtype=np.float64) for values in (first_probabilities, second_probabilities))
    _require_pairs(one, other)
    toxic, other_toxic = one >= threshold, other >= threshold
    return JudgeAgreement(
        first=first,
        second=second,
        completions=one.size,
        both_toxic=int((toxic & other_toxic).sum()),
        first_only=int((toxic & ~other_toxic).sum()),
        second_only=int((~toxic & other_toxic).sum()),
        agreement=float((toxic == other_toxic).mean()),
        kappa=cohens_kappa(toxic, other_toxic),
        rank_correlation=rank_correlation(one, other),
    )


def cohens_kappa(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return Cohen's kappa of two classifications (M,) into two classes; None where all are of one class.

    (observed - expected) / (1 - expected), where `expected` is the agreement of independent judges that call as many
    toxic (Cohen, Educational and Psychological Measurement 20, 1960).
    """
    # Counts in place of fractions, so that chance is exactly 0 and one class exactly undefined.
    total, toxic, other_toxic = first.size, int(first.sum()), int(second.sum())
    observed = total * int((first == second).sum())
    expected = toxic * other_toxic + (total - toxic) * (total - other_toxic)
    return None if expected == total**2 else (observed - expected) / (total**2 - expected)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return Spearman's correlation of values (M,), equal ones at their mean rank; None where one side is constant."""
    if any(np.ptp(values) <= RELATIVE_TOLERANCE * np.abs(values).max() for values in (first, second)):
        return None
    one, other = ranks(first), ranks(second)
    one, other = one - one.mean(), other - other.mean()
    correlation = float((one * other).sum() / np.sqrt(np.square(one).sum() * np.square(other).sum()))
    return min(1.0, max(-1.0, correlation))


def count_flips(judge: str, before: ArrayLike, after: ArrayLike, threshold: float) -> Flips:
    """Return how many completions changed sides by their probabilities (M,); raise ValueError if malformed."""
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    _require_pairs(first, second)
    was_toxic, is_toxic = first >= threshold, second >= threshold
    return Flips(
        judge=judge,
        completions=first.size,
        toxic_to_clean=int((was_toxic & ~is_toxic).sum()),
        clean_to_toxic=int((~was_toxic & is_toxic).sum()),
    )


def _require_pairs(first: np.ndarray, second: np.ndarray) -> None:
    """Raise ValueError unless both are lists of as many finite numbers."""
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ValueError(f"probabilities {first.shape} and {second.shape} must be 1-D, non-empty and equally long")
    for values in (first, second):
        if not np.isfinite(values).all():
            raise ValueError(f"probability {int(np.argmin(np.isfinite(values)))} is not finite")
