"""Statistics of the before/after comparison: paired bootstrap, jackknife, standard deviation over seeds.

Shapes: N rows, P prompts. Rows that share a prompt are not independent, so that prompts are resampled and left out.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

CHUNK_ELEMENTS = 2_000_000  # resampled values held at once: 16 MB
ERROR = 0.05  # probability that any of the intervals that share it misses the truth
RESAMPLES = 10_000
# The same text scored in another batch differs by some 1e-7 of its score, in single precision.
RELATIVE_TOLERANCE = 1e-5
# Sums that cancel leave some 1e-16 of what was summed.
CANCELLATION = 1e-12


@dataclass(frozen=True)
class PairedDifference:
    """After minus before over the same rows."""

    mean_before: float
    mean_after: float
    difference: float
    """Mean of after - before."""
    low: float
    """Lower end of the interval of `difference`; NaN for a single prompt."""
    high: float
    """Upper end of the interval of `difference`; NaN for a single prompt."""
    rose: int
    """Rows whose value rose."""
    same: int
    """Rows whose value stayed the same, to rounding."""
    fell: int
    """Rows whose value fell."""
    prompts: int
    """Distinct prompts of the rows."""


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


def prompt_numbers(groups: Iterable[Hashable] | None, rows: int) -> np.ndarray:
    """Return the number of each row's prompt (N,), from 0 in the order of first appearance.

    `groups` labels the prompt of each row; without, every row is a prompt. Raises ValueError for too few or many.
    """
    if groups is None:
        return np.arange(rows)
    order: dict[Hashable, int] = {}
    numbers = np.array([order.setdefault(label, len(order)) for label in groups], dtype=np.int64)
    if numbers.size != rows:
        raise ValueError(f"{numbers.size} groups of {rows} rows")
    return numbers


def prompt_contributions(values: ArrayLike, groups: Iterable[Hashable] | None = None) -> np.ndarray:
    """Return each prompt's contribution (P,) to the mean of the values (N,) of all rows.

    Where every prompt has as many rows, these are the prompts' means. The mean of the contributions is that of the
    rows; their standard error is that of a ratio of sums, linearized (Cochran, Sampling Techniques, 1977).
    """
    row_values = np.asarray(values, dtype=np.float64)
    totals, sizes = _totals_and_sizes(row_values, prompt_numbers(groups, row_values.size))
    return (totals - row_values.mean() * (sizes - sizes.mean())) / sizes.mean()


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    *,
    groups: Iterable[Hashable] | None = None,
    comparisons: int = 1,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedDifference:
    """Compare values (N,) before and after by a percentile bootstrap over prompts; raise ValueError if malformed.

    `groups` labels the prompt of each row; without, every row is a prompt. The interval is that of one of
    `comparisons` which hold together in 95 % of cases (Bonferroni; Dunn, JASA 56, 1961): of level 1 - 0.05 /
    comparisons. One prompt says nothing about the variance over prompts, so its interval is NaN rather than zero-width.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ValueError(f"before {first.shape} and after {second.shape} must be 1-D, non-empty and equally long")
    differences = paired_changes(first, second)
    if not np.isfinite(differences).all():
        raise ValueError(f"row {int(np.argmin(np.isfinite(differences)))} has a value that is not finite")
    totals, sizes = _totals_and_sizes(differences, prompt_numbers(groups, differences.size))
    low, high = np.nan, np.nan
    if totals.size > 1:
        tail = ERROR / (2 * comparisons)
        # The ends of a higher level are further out, where fewer resamples lie. With the root of `comparisons` times as
        # many, their Monte Carlo error stays at 1.3 to 1.7 % of the interval's half-width, up to 200 comparisons.
        count = math.ceil(resamples * math.sqrt(comparisons))
        low, high = np.quantile(_resampled_means(totals, sizes, seed, count), [tail, 1 - tail])
    return PairedDifference(
        mean_before=float(first.mean()),
        mean_after=float(second.mean()),
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        rose=int((differences > 0).sum()),
        same=int((differences == 0).sum()),
        fell=int((differences < 0).sum()),
        prompts=totals.size,
    )


def _totals_and_sizes(values: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of each prompt's values (P,) and the number of its rows (P,), from values and numbers (N,)."""
    return np.bincount(numbers, weights=values), np.bincount(numbers).astype(np.float64)


def _resampled_means(totals: np.ndarray, sizes: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Return the means (resamples,) over the rows of prompts drawn with replacement, from their sums and sizes (P,)."""
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK_ELEMENTS // totals.size)
    means = []
    for start in range(0, resamples, rows):
        drawn = generator.integers(totals.size, size=(min(rows, resamples - start), totals.size))
        means.append(totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(means)


def jackknife_pseudovalues(value: float, without: ArrayLike, numbers: np.ndarray | None = None) -> np.ndarray:
    """Return each row's contribution (N,) to a statistic of all rows, from its values (P,) `without` each prompt.

    `numbers` (N,) are those of the rows' prompts; without, every row is a prompt. The mean of the pseudovalues is
    `value`; their standard error over prompts is the jackknife's, on average at least the true one for P - 1 prompts
    (Efron and Stein, The Annals of Statistics 9, 1981). For a mean, they are the prompts' means.
    """
    rest = np.asarray(without, dtype=np.float64)
    influence = (rest.size - 1) * (rest.mean() - rest)
    if numbers is None:
        return value + influence
    # A prompt's rows share its influence, so that in a mean over rows it does not count once for each.
    sizes = np.bincount(numbers)
    return value + (influence * sizes.mean() / sizes)[numbers]


def seed_std(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation of one value per seed; None for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
