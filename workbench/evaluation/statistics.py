"""Statistics of the before/after comparison: paired bootstrap-t, jackknife, standard deviation over seeds.

Shapes: N rows, P prompts. Rows that share a prompt are not independent, so that prompts are resampled and left out.
Where prompts form clusters that are not independent, the clusters take their part: P is then their number.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from workbench.evaluation.significance import paired_rate_interval, paired_rate_p, student_tail

CHUNK_ELEMENTS = 200_000  # draws held at once: larger chunks leave the cache, and take twice as long
ERROR = 0.05  # probability that any of the intervals that share it misses the truth
RESAMPLES = 10_000
# A resample of mostly zeros may have no variance at all, so that its studentized mean would be infinite.
MIN_STANDARD_ERROR_RATIO = 0.2
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
    """Distinct prompts of the rows, or clusters where these are the groups."""
    p: float = math.nan
    """The error at which the interval would begin to exclude zero, times the comparisons that share it; below ERROR
    where the interval excludes zero. NaN for a single prompt."""

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """The ends of the interval; None for a single prompt."""
        return (None, None) if math.isnan(self.low) else (self.low, self.high)


def sample_means(values: np.ndarray) -> np.ndarray:
    """Return the means (N,) of values (N, S, K) over the samples that have one, NaN where none has.

    They are exactly 0 where only rounding is left of them.
    """
    known = np.isfinite(values)
    counts = known.sum(axis=(1, 2))
    summed = np.where(known, values, 0.0)
    means = np.full(len(values), math.nan)
    np.divide(summed.sum(axis=(1, 2)), counts, out=means, where=counts > 0)
    means[np.abs(means) <= CANCELLATION * np.abs(summed).max(axis=(1, 2))] = 0.0
    return means


def row_contributions(values: np.ndarray) -> np.ndarray:
    """Return each row's contribution (N,) to the mean over all samples of values (N, S, K); NaN for a row without any.

    Where every row has as many samples with a value, these are the rows' means. Otherwise, the mean of the
    contributions is still that of all samples together, as in `prompt_contributions`.
    """
    known = np.isfinite(values)
    counts, means = known.sum(axis=(1, 2)), sample_means(values)
    has_any = counts > 0
    if not has_any.any() or (counts[has_any] == counts[has_any][0]).all():
        return means
    sizes, totals = counts[has_any], np.where(known, values, 0.0).sum(axis=(1, 2))[has_any]
    overall = totals.sum() / sizes.sum()
    contributions = np.full(len(values), math.nan)
    contributions[has_any] = overall + (totals - overall * sizes) / sizes.mean()
    return contributions


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
    is_rate: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedDifference:
    """Compare values (N,) before and after by a studentized bootstrap over prompts; raise ValueError if malformed.

    `groups` labels the prompt of each row; without, every row is a prompt. The interval is that of one of
    `comparisons` which hold together in 95 % of cases (Bonferroni; Dunn, JASA 56, 1961): of level 1 - 0.05 /
    comparisons. Its ends are those of the bootstrap-t (Efron and Tibshirani, An Introduction to the Bootstrap, 1993),
    which follows the skewness of the differences, and no closer than those of Student's t: over few prompts that differ
    at all, the bootstrap alone is too short (Hesterberg, The American Statistician 69, 2015). One prompt says nothing
    about the variance over prompts, so its interval is NaN rather than zero-width. `is_rate` says that every value is 0
    or 1 and no two rows share a prompt: then the interval is Tango's, which holds for few changes, too. Either interval
    is a test turned around, and p is that of the same test.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ValueError(f"before {first.shape} and after {second.shape} must be 1-D, non-empty and equally long")
    differences = paired_changes(first, second)
    if not np.isfinite(differences).all():
        raise ValueError(f"row {int(np.argmin(np.isfinite(differences)))} has a value that is not finite")
    totals, sizes = _totals_and_sizes(differences, prompt_numbers(groups, differences.size))
    rose, fell, tail = int((differences > 0).sum()), int((differences < 0).sum()), ERROR / (2 * comparisons)
    low, high, p = np.nan, np.nan, np.nan
    if totals.size > 1 and is_rate:
        assert totals.size == differences.size
        assert np.isin((first, second), (0, 1)).all()
        low, high = paired_rate_interval(rose, fell, differences.size, tail)
        p = paired_rate_p(rose, fell)
    elif totals.size > 1:
        # The ends of a higher level are further out, where fewer resamples lie.
        count = math.ceil(resamples * math.sqrt(comparisons))
        low, high, p = _interval_and_p(totals, sizes, tail, seed, count)
    return PairedDifference(
        mean_before=float(first.mean()),
        mean_after=float(second.mean()),
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        rose=rose,
        same=int((differences == 0).sum()),
        fell=fell,
        prompts=totals.size,
        p=min(1.0, comparisons * p) if p == p else p,
    )


def _totals_and_sizes(values: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of each prompt's values (P,) and the number of its rows (P,), from values and numbers (N,)."""
    return np.bincount(numbers, weights=values), np.bincount(numbers).astype(np.float64)


def _interval_and_p(
    totals: np.ndarray, sizes: np.ndarray, tail: float, seed: int, resamples: int
) -> tuple[float, float, float]:
    """Return the ends beyond which the mean lies with probability `tail` each, and p, from sums and sizes (P,).

    p is the smallest 2 x tail with which neither end is on the other side of zero.
    """
    mean, prompts = float(totals.sum() / sizes.sum()), totals.size
    residuals = totals - mean * sizes
    error = math.sqrt(prompts / (prompts - 1) * float(np.square(residuals).sum())) / float(sizes.sum())
    if error == 0:
        return mean, mean, float(mean == 0)
    student = student_quantile(tail, prompts - 1)
    studentized = np.sort(_studentized_means(residuals, sizes, error, seed, resamples))
    low, high = np.quantile(studentized, [tail, 1 - tail])
    ends = mean - max(float(high), student) * error, mean - min(float(low), -student) * error
    # The interval has the wider of two tests' ends, so that p is the larger of theirs.
    distance = abs(mean) / error
    beyond = _tail_beyond(studentized if mean > 0 else -studentized[::-1], distance)
    p = 2 * max(student_tail(distance, prompts - 1), beyond)
    return *ends, min(1.0, p)


def _tail_beyond(ordered: np.ndarray, statistic: float) -> float:
    """Return the tail whose quantile of the ordered values (resamples,) is the statistic: numpy.quantile, inverted."""
    position = int(np.searchsorted(ordered, statistic))
    if position in (0, ordered.size):
        return float(position == 0)
    below, above = ordered[position - 1 : position + 1]
    return float(1 - (position - 1 + (statistic - below) / (above - below)) / (ordered.size - 1))


def _studentized_means(residuals: np.ndarray, sizes: np.ndarray, error: float, seed: int, resamples: int) -> np.ndarray:
    """Return the mean residual per row of each resample of prompts (resamples,), in its standard errors.

    Residuals (P,) are a prompt's sum minus its size times the mean; `error` is the standard error over the prompts.
    The mean is a ratio of sums, so that its standard error is linearized.
    """
    generator, prompts = np.random.default_rng(seed), residuals.size
    products = np.stack([residuals, sizes, residuals**2, residuals * sizes, sizes**2], axis=1)
    rows = max(1, CHUNK_ELEMENTS // prompts)
    studentized = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(prompts, size=(count, prompts)) + prompts * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * prompts).reshape(count, prompts)
        residual, size, squares, crossed, squared_size = (times.astype(np.float64) @ products).T
        mean = residual / size
        variance = np.maximum(squares - 2 * mean * crossed + mean**2 * squared_size, 0.0) * prompts / (prompts - 1)
        studentized.append(mean / np.maximum(np.sqrt(variance) / size, MIN_STANDARD_ERROR_RATIO * error))
    return np.concatenate(studentized)


def student_quantile(tail: float, freedom: int) -> float:
    """Return what Student's t exceeds with probability `tail`, to 1e-5 of it.

    Hill, Algorithm 396, Communications of the ACM 13, 1970; exact for one and two degrees of freedom.
    """
    both = 2 * tail
    if freedom == 1:
        return 1 / math.tan(both * math.pi / 2)
    if freedom == 2:
        return math.sqrt(2 / (both * (2 - both)) - 2)
    a = 1 / (freedom - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * freedom
    y = (d * both) ** (2 / freedom)
    if y <= 0.05 + a:
        series = 1 / (((freedom + 6) / (freedom * y) - 0.089 * d - 0.822) * (freedom + 2) * 3)
        y = ((series + 0.5 / (freedom + 4)) * y - 1) * (freedom + 1) / (freedom + 2) + 1 / y
        return math.sqrt(freedom * y)
    x = NormalDist().inv_cdf(tail)
    if freedom < 5:
        c += 0.3 * (freedom - 4.5) * (x + 0.6)
    c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
    y = x**2
    y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
    return math.sqrt(freedom * math.expm1(a * y**2))


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
