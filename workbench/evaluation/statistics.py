"""Numbers of the before/after comparison: paired bootstrap, jackknife, ranking quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CHUNK_ELEMENTS = 2_000_000  # resampled values held at once: 16 MB


@dataclass(frozen=True)
class PairedDifference:
    """After minus before over the same prompts; whether higher is better is the caller's to say."""

    mean_before: float
    mean_after: float
    difference: float
    """Mean of after - before."""
    low: float
    """Lower end of the 95% interval of `difference`; NaN for a single prompt."""
    high: float
    """Upper end of the 95% interval of `difference`; NaN for a single prompt."""
    wins: int
    """Prompts whose value rose."""
    ties: int
    """Prompts whose value stayed exactly the same."""
    losses: int
    """Prompts whose value fell."""


def paired_difference(
    before: Sequence[float] | np.ndarray,
    after: Sequence[float] | np.ndarray,
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> PairedDifference:
    """Compare (N,) values before and after, with a percentile bootstrap over prompts; ValueError if malformed.

    One prompt says nothing about the spread over prompts, so its interval is NaN rather than of width zero.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ValueError(f"before {first.shape} and after {second.shape} must be equally long, not empty, 1-D")
    differences = second - first
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
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
    )


def _resampled_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means (resamples,) of draws with replacement from values (N,)."""
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK_ELEMENTS // values.size)
    means = []
    for start in range(0, resamples, rows):
        drawn = generator.integers(values.size, size=(min(rows, resamples - start), values.size))
        means.append(values[drawn].mean(axis=1))
    return np.concatenate(means)


def parts(value: float, without: Sequence[float] | np.ndarray) -> np.ndarray:
    """What each of N rows makes of a statistic of them all, from its values (N,) `without` each of them.

    Their mean is `value`, their standard error the jackknife's, which on average is at least the true one (Efron and
    Stein, The Annals of Statistics 9, 1981, of N - 1 rows). A statistic that is itself a mean falls into its rows.
    """
    rest = np.asarray(without, dtype=np.float64)
    return value + (rest.size - 1) * (rest.mean() - rest)
