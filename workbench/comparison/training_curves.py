"""What validation measured along training: mean curves over seeds, values at a common KL, and the operating point."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

from workbench.evaluation.statistics import seed_std

MIN_SHARE_OF_MEDIAN = 0.1  # of the highest KLs of all rows
MAX_PERPLEXITY_RISE = 0.01
"""The operating point's limit: how much the perplexity of the fixed neutral texts may rise over the reference's."""
KEYS = {
    "kl": "validation/kl",
    "score": "validation/score_mean",
    "held_out": "validation/held_out_mean",
    "text_nll": "validation/text_nll",
    "text_nll_reference": "validation/text_nll_reference",
}


@dataclass(frozen=True)
class ValidationPoint:
    """One validation, of one seed or as the mean over seeds; None for what was not logged."""

    step: int
    kl: float | None
    """Nats per response from the reference."""
    score: float | None
    """Mean of the reward that training optimizes."""
    held_out: float | None
    """Mean of the reward that it never optimizes; higher is better."""
    text_nll: float | None
    """Nats per token of the fixed neutral texts under the policy."""
    text_nll_reference: float | None
    """The same under the reference."""


@dataclass(frozen=True)
class AtKL:
    """The values of one row at a KL."""

    held_out: float | None
    held_out_std: float | None
    """Standard deviation over seeds; None for one seed."""
    score: float | None
    score_std: float | None


@dataclass(frozen=True)
class OperatingPoint:
    """The checkpoint with the best held-out reward among those that keep the fixed neutral texts likely."""

    step: int
    kl: float | None
    held_out: float
    held_out_std: float | None
    """Standard deviation over seeds; None for one seed."""
    score: float | None
    perplexity_rise: float
    """Of the neutral texts over the reference's, as a fraction."""


def validation_points(log: Sequence[Mapping[str, Any]]) -> list[ValidationPoint]:
    """Return the validations in the lines of a metrics.jsonl, in the order of their steps."""
    values = KEYS.values()
    lines = {line["step"]: line for line in log if "step" in line and any(line.get(key) is not None for key in values)}
    return [
        ValidationPoint(step, **{name: lines[step].get(key) for name, key in KEYS.items()}) for step in sorted(lines)
    ]


def mean_points(by_seed: Sequence[Sequence[ValidationPoint]]) -> list[ValidationPoint]:
    """Return the mean over seeds at every step that all of them have; None where a seed lacks a value."""
    points = [{point.step: point for point in seed} for seed in by_seed]
    steps = sorted(set.intersection(*(set(seed) for seed in points))) if points else []
    names = [field.name for field in fields(ValidationPoint) if field.name != "step"]
    return [
        ValidationPoint(step, **{name: _mean([vars(seed[step])[name] for seed in points]) for name in names})
        for step in steps
    ]


def at_kl(points: Sequence[ValidationPoint], name: str, kl: float) -> float | None:
    """Return a value where training first reaches a KL, linear between checkpoints; None outside what was measured."""
    measured = [
        (point.kl, value)
        for point in points
        if point.kl is not None and math.isfinite(point.kl) and (value := vars(point)[name]) is not None
    ]
    if measured and measured[0][0] == kl:
        return measured[0][1]
    for (first, before), (second, after) in itertools.pairwise(measured):
        if first < kl <= second:
            return before + (after - before) * (kl - first) / (second - first)
    return None


def kl_range(points: Sequence[ValidationPoint]) -> tuple[float, float] | None:
    """Return the KL of the first checkpoint and the highest of all, between which training can be interpolated."""
    values = [point.kl for point in points if point.kl is not None and math.isfinite(point.kl)]
    return (values[0], max(values)) if values else None


def common_kl(ranges: Sequence[Sequence[tuple[float, float] | None]]) -> float | None:
    """Return the largest KL that every seed of the most rows passes, from the range of each row's seeds.

    A row that hardly leaves the reference does not count, since at its KL there is nothing to compare. None unless at
    least two rows pass it.
    """
    complete = [[pair for pair in seeds if pair is not None] for seeds in ranges if seeds and None not in seeds]
    reached = [min(high for _, high in seeds) for seeds in complete]
    enough = MIN_SHARE_OF_MEDIAN * statistics.median(reached) if reached else 0.0
    complete = [seeds for seeds, high in zip(complete, reached, strict=True) if high >= enough]

    def passing(kl: float) -> int:
        return sum(all(low <= kl <= high for low, high in seeds) for seeds in complete)

    candidates = [kl for kl in (min(high for _, high in seeds) for seeds in complete) if passing(kl) > 1]
    return max(candidates, key=lambda kl: (passing(kl), kl), default=None)


def values_at_kl(by_seed: Sequence[Sequence[ValidationPoint]], kl: float) -> AtKL | None:
    """Return the mean and deviation over seeds of each seed's values at a KL; None where a seed does not pass it."""
    ranges = [kl_range(points) for points in by_seed]
    if not ranges or not all(pair is not None and pair[0] <= kl <= pair[1] for pair in ranges):
        return None
    held_out, score = (_all([at_kl(points, name, kl) for points in by_seed]) for name in ("held_out", "score"))
    return AtKL(_mean(held_out), seed_std(held_out), _mean(score), seed_std(score))


def operating_point(by_seed: Sequence[Sequence[ValidationPoint]]) -> OperatingPoint | str:
    """Return the operating point of the mean over seeds, or why there is none.

    Step 0 is the reference, which no training led to and no checkpoint holds.
    """
    points = [point for point in mean_points(by_seed) if point.step > 0]
    candidates = [
        (point.held_out, math.expm1(point.text_nll - point.text_nll_reference), point)
        for point in points
        if point.held_out is not None and point.text_nll is not None and point.text_nll_reference is not None
    ]
    if not candidates:
        return "no validation has both a held-out reward and the nats per token of fixed neutral texts"
    allowed = [each for each in candidates if each[1] < MAX_PERPLEXITY_RISE]
    if not allowed:
        least = min(rise for _, rise, _ in candidates)
        return (
            f"no checkpoint qualifies: the perplexity of the fixed neutral texts rose by at least {least:.1%}, "
            f"and less than {MAX_PERPLEXITY_RISE:.0%} is allowed"
        )
    held_out, rise, best = max(allowed, key=lambda each: each[0])
    values = [point.held_out for seed in by_seed for point in seed if point.step == best.step]
    return OperatingPoint(best.step, best.kl, held_out, seed_std(_all(values)), best.score, rise)


def _all(values: Sequence[float | None]) -> list[float]:
    """Return the values if there is one of every seed, else none."""
    present = [value for value in values if value is not None]
    return present if len(present) == len(values) else []


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where a value is missing."""
    present = _all(values)
    return fmean(present) if present else None
