"""Statistics of the before/after comparison: paired bootstrap, jackknife, standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

CHUNK_ELEMENTS = 2_000_000  # resampled values held at once: 16 MB
# The same text scored in another batch differs by some 1e-7 of its score, in single precision.
RELATIVE_TOLERANCE = 1e-5
# Sums that cancel leave some 1e-16 of what was summed.
CANCELLATION = 1e-12


@dataclass(frozen=True)
class PairedDifference:
    """After minus before over the same prompts."""

    mean_before: float
    mean_after: float
    difference: float
    """Mean of after - before."""
    low: float
    """Lower end of the 95 % interval of `difference`; NaN for a single prompt."""
    high: float
    """Upper end of the 95 % interval of `difference`; NaN for a single prompt."""
    rose: int
    """Prompts whose value rose."""
    same: int
    """Prompts whose value stayed the same, to rounding."""
    fell: int
    """Prompts whose value fell."""


def sample_means(values: np.ndarray) -> np.ndarray:
    """Return the means (N,) of values (N, S, K) over samples, exactly 0 where only rounding is left of them."""
    means = values.mean(axis=(1, 2))
    means[np.abs(means) <= CANCELLATION * np.abs(values).max(axis=(1, 2))] = 0.0
    return means


def paired_changes(before: ArrayLike, after: ArrayLike) -> np.ndarray:
    """Return after - before (N,), exactly 0 where the two differ by no more than rounding."""
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    changes = second - first
    changes[np.abs(changes) <= RELATIVE_TOLERANCE * np.maximum(np.abs(first), np.abs(second))] = 0.0
    return changes


def paired_difference(
    before: ArrayLike, after: ArrayLike, *, seed: int = 0, resamples: int = 10_000
) -> PairedDifference:
    """Compare values (N,) before and after by a percentile bootstrap over prompts; raise ValueError if malformed.

    One prompt says nothing about the variance over prompts, so its interval is NaN rather than zero-width.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ValueError(f"before {first.shape} and after {second.shape} must be 1-D, non-empty and equally long")
    differences = paired_changes(first, second)
    if not np.isfinite(differences).all():
        raise ValueError(f"row {int(np.argmin(np.isfinite(differences)))} has a value that is not finite")
    low, high = np.nan, np.nan
    if differences.size > 1:
        low, high = np.quantile(_resampled_means(differences, seed, resamples), [0.025, 0.975])
    return PairedDifference(
        mean_before=float(first.mean()),
        mean_after=float(second.mean()),
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        rose=int((differences > 0).sum()),
        same=int((differences == 0).sum()),
        fell=int((differences < 0).sum()),
    )


def _resampled_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Return the means (resamples,) of draws with replacement from values (N,)."""
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK_ELEMENTS // values.size)
    means = []
    for start in range(0, resamples, rows):
        drawn = generator.integers(values.size, size=(min(rows, resamples - start), values.size))
        means.append(values[drawn].mean(axis=1))
    return np.concatenate(means)


def jackknife_pseudovalues(value: float, without: ArrayLike) -> np.ndarray:
    """Return each row's contribution (N,) to a statistic of all N rows, from its values (N,) `without` each row.

    The mean of the pseudovalues is `value`; their standard error is the jackknife's, on average at least the true one
    for N - 1 rows (Efron and Stein, The Annals of Statistics 9, 1981). For a mean, they are the rows themselves.
    """
    rest = np.asarray(without, dtype=np.float64)
    return value + (rest.size - 1) * (rest.mean() - rest)


def seed_std(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation of one value per seed; None for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
