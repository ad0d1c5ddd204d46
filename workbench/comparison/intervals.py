"""Differences between rows that were each trained with several seeds, with intervals over seeds and prompts.

Shapes: N rows of a prompt set, S seeds of the one row and T of the other.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.evaluation.statistics import (
    ERROR,
    PairedDifference,
    paired_changes,
    paired_difference,
    prompt_contributions,
    student_quantile,
)


@dataclass(frozen=True)
class SeedDifference:
    """After minus before, each the mean over its seeds."""

    over_prompts: PairedDifference
    """Paired by prompt, with seeds averaged per prompt; its interval holds for these seeds alone."""
    low: float
    """Lower end of the interval over seeds and prompts; NaN for a single prompt."""
    high: float
    """Upper end of the interval over seeds and prompts; NaN for a single prompt."""


def difference_over_seeds(
    before: np.ndarray, after: np.ndarray, *, groups: Sequence[Hashable] | None = None, comparisons: int = 1
) -> SeedDifference:
    """Compare values (N, S) before and (N, T) after; raise ValueError if malformed.

    The variance over prompts, paired, and that over the seeds of either side add up; their degrees of freedom are
    Satterthwaite's (Biometrics Bulletin 2, 1946), rounded down. A side with one seed adds nothing, so that the interval
    does not cover other seeds. No end is closer than that of the interval over prompts, which follows their skewness.
    """
    first, second = before.mean(axis=1), after.mean(axis=1)
    paired = paired_difference(first, second, groups=groups, comparisons=comparisons)
    low, high = paired.low, paired.high
    contributions = prompt_contributions(paired_changes(first, second), groups)
    variances = [(float(contributions.var(ddof=1)) / contributions.size, contributions.size - 1)] if low == low else []
    for values in (before, after):
        seeds = values.shape[1]
        if seeds > 1:
            variances.append((float(values.mean(axis=0).var(ddof=1)) / seeds, seeds - 1))
    total = sum(variance for variance, _ in variances)
    if low == low and total > 0:
        freedom = total**2 / sum(variance**2 / degrees for variance, degrees in variances)
        reach = student_quantile(ERROR / (2 * comparisons), max(1, math.floor(freedom + 1e-9))) * math.sqrt(total)
        low, high = min(low, paired.difference - reach), max(high, paired.difference + reach)
    return SeedDifference(paired, low, high)
