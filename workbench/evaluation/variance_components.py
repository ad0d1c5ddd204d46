"""The variance of a paired difference by its sources, and what more prompts, samples or seeds would do to its error.

The value of prompt p, seed s and sample k is taken as mean + P_p + S_s + (PS)_ps + E_psk, with independent random
effects: every prompt is sampled with every seed (crossed), and each sample belongs to one prompt and seed (nested). The
variances are estimated by the method of moments: each mean square equals its expectation (Searle, Casella and
McCulloch, Variance Components, 1992).

Shapes: N rows, P units (prompts, or clusters of prompts), S seeds, K samples per prompt and seed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from workbench.evaluation.statistics import CANCELLATION, prompt_contributions, prompt_numbers

Level = Literal["prompts", "seeds", "prompts x seeds", "samples"]


@dataclass(frozen=True)
class Component:
    """The part of one source in the variance of a difference."""

    level: Level
    """What varies; "samples" includes "prompts x seeds" with one sample, and "prompts" all of it with one seed."""
    variance: float
    """Of one effect, not of a mean; 0 where the estimate is negative."""
    share: float | None
    """Fraction of the squared standard error; None where that is 0."""
    is_truncated: bool
    """Whether the estimate was negative, as it may be by chance where there is little variance."""


@dataclass(frozen=True)
class VarianceSplit:
    """Where the variance of after - before comes from, and the standard errors that other sizes would give."""

    units: int
    """Prompts, or clusters of prompts where a column names them, that have the metric."""
    seeds: int
    samples: int
    """Per prompt and seed."""
    components: list[Component]
    """Without "seeds" and "prompts x seeds" for one seed, which cannot show them."""
    standard_error: float
    """Of the mean difference, over other prompts, seeds and samples."""
    twice_prompts: float
    """The standard error with twice as many prompts, or clusters."""
    twice_samples: float
    """The standard error with twice as many samples per prompt and seed."""
    twice_seeds: float | None
    """The standard error with twice as many seeds; None for one seed."""


def split_variance(changes: np.ndarray, groups: Iterable[Hashable] | None = None) -> VarianceSplit | None:
    """Return the components of the variance of changes (N, S, K), without the rows that have a NaN.

    `groups` labels the unit of each row, which is resampled as a whole; without, every row is one. None for one seed
    with one sample, where only prompts can be seen, and for fewer than two units.
    """
    rows, seeds, samples = changes.shape
    known = np.isfinite(changes).all(axis=(1, 2))
    numbers = prompt_numbers(groups, rows)[known]
    if seeds * samples == 1 or len(np.unique(numbers)) < 2:
        return None
    values = unit_values(changes[known], numbers)
    units = len(values)
    estimates = moment_estimates(values)
    # A variance that is only rounding is zero, not negative.
    rounding = CANCELLATION * float(np.square(values).mean())
    variances = {level: 0.0 if estimate <= rounding else estimate for level, estimate in estimates.items()}
    squared = squared_error(variances, units, seeds, samples)
    parts = {level: squared_error({level: value}, units, seeds, samples) for level, value in variances.items()}
    return VarianceSplit(
        units=units,
        seeds=seeds,
        samples=samples,
        components=[
            Component(level, value, parts[level] / squared if squared else None, estimates[level] < -rounding)
            for level, value in variances.items()
        ],
        standard_error=math.sqrt(squared),
        twice_prompts=math.sqrt(squared_error(variances, 2 * units, seeds, samples)),
        twice_samples=math.sqrt(squared_error(variances, units, seeds, 2 * samples)),
        twice_seeds=math.sqrt(squared_error(variances, units, 2 * seeds, samples)) if seeds > 1 else None,
    )


def unit_values(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the contributions (P, S, K) of units to the mean of values (N, S, K), by the number of each row's unit.

    Where every unit has as many rows, these are their means.
    """
    _, seeds, samples = values.shape
    columns = [prompt_contributions(column, numbers) for column in values.reshape(len(values), -1).T]
    return np.stack(columns, axis=1).reshape(-1, seeds, samples)


def moment_estimates(values: np.ndarray) -> dict[Level, float]:
    """Return the estimated variance of each level from values (P, S, K), P > 1 and S K > 1; some may be negative."""
    units, seeds, samples = values.shape
    mean, by_unit, by_seed, by_cell = (values.mean(axis=axes) for axes in (None, (1, 2), (0, 2), 2))
    unit_square = seeds * samples * float(np.square(by_unit - mean).sum()) / (units - 1)
    within = float(np.square(values - by_cell[..., None]).sum())
    if seeds == 1:
        error = within / (units * (samples - 1))
        return {"prompts": (unit_square - error) / samples, "samples": error}
    seed_square = units * samples * float(np.square(by_seed - mean).sum()) / (seeds - 1)
    residuals = by_cell - by_unit[:, None] - by_seed[None, :] + mean
    cell_square = samples * float(np.square(residuals).sum()) / ((units - 1) * (seeds - 1))
    estimates: dict[Level, float] = {
        "prompts": (unit_square - cell_square) / (seeds * samples),
        "seeds": (seed_square - cell_square) / (units * samples),
    }
    if samples == 1:
        return {**estimates, "samples": cell_square}
    error = within / (units * seeds * (samples - 1))
    return {**estimates, "prompts x seeds": (cell_square - error) / samples, "samples": error}


def squared_error(variances: dict[Level, float], units: int, seeds: int, samples: int) -> float:
    """Return the variance of the mean of units x seeds x samples values by the variance of each level."""
    sizes: dict[Level, int] = {
        "prompts": units,
        "seeds": seeds,
        "prompts x seeds": units * seeds,
        "samples": units * seeds * samples,
    }
    return sum(variance / sizes[level] for level, variance in variances.items())
