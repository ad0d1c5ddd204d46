"""Values at a common KL and operating points, against independent references."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np
import pytest

from workbench.comparison.training_curves import (
    AtKL,
    OperatingPoint,
    ValidationPoint,
    at_kl,
    common_kl,
    kl_range,
    mean_points,
    operating_point,
    validation_points,
    values_at_kl,
)


def curve(kls: Sequence[float], held_out: Sequence[float], nats: Sequence[float] = ()) -> list[ValidationPoint]:
    """Return points whose score is twice the held-out reward; the first of `nats` is that under the reference."""
    return [
        ValidationPoint(step, kl, 2 * value, value, nats[step] if nats else None, nats[0] if nats else None)
        for step, (kl, value) in enumerate(zip(kls, held_out, strict=True), 1)
    ]


def test_between_checkpoints_values_are_linear_as_numpys() -> None:
    generator = np.random.default_rng(0)
    kls = np.sort(generator.uniform(0, 5, 9))
    values = generator.normal(size=9)
    points = curve(kls.tolist(), values.tolist())
    for kl in generator.uniform(kls[0], kls[-1], 50):
        assert at_kl(points, "held_out", kl) == pytest.approx(np.interp(kl, kls, values))
        assert at_kl(points, "score", kl) == pytest.approx(2 * np.interp(kl, kls, values))
    assert at_kl(points, "held_out", kls[0]) == values[0]
    assert at_kl(points, "held_out", kls[-1]) == pytest.approx(values[-1])


@pytest.mark.parametrize("kl", [0.0, 0.99, 3.01, 10.0])
def test_nothing_is_extrapolated(kl: float) -> None:
    assert at_kl(curve([1.0, 2.0, 3.0], [0.1, 0.2, 0.3]), "held_out", kl) is None


def test_a_kl_that_falls_and_rises_again_counts_where_it_is_first_passed() -> None:
    points = curve([1.0, 3.0, 1.5, 4.0], [0.0, 0.2, 0.9, 1.0])
    assert at_kl(points, "held_out", 2.0) == pytest.approx(0.1)
    assert at_kl(points, "held_out", 3.5) == pytest.approx(0.9 + 0.1 * (3.5 - 1.5) / 2.5)
    assert kl_range(points) == (1.0, 4.0)


def test_points_without_a_kl_or_a_value_are_left_out() -> None:
    points = curve([1.0, math.nan, 3.0], [0.0, 9.0, 0.2])
    points.insert(0, ValidationPoint(0, None, None, None, 2.0, None))
    points.insert(3, ValidationPoint(9, 2.9, None, None, None, None))
    assert at_kl(points, "held_out", 2.0) == pytest.approx(0.1)
    assert kl_range(points) == (1.0, 3.0)
    assert kl_range(points[:1]) is None


def test_the_common_kl_is_the_largest_that_every_seed_of_the_most_rows_passes() -> None:
    assert common_kl([[(0.5, 3.0), (0.4, 2.0)], [(0.1, 5.0)], [(1.0, 4.0)]]) == 2.0
    assert common_kl([[(0.5, 3.0)], [(0.1, 5.0)], [(3.5, 6.0)]]) == 5.0, "of two pairs of rows, the larger KL"
    assert common_kl([[(0.5, 3.0)], [(3.5, 6.0)]]) is None, "no KL is passed by both"
    assert common_kl([[(0.5, 3.0)]]) is None
    assert common_kl([[(0.5, 3.0)], [(0.5, 4.0), None]]) is None, "a seed without validations passes nothing"
    assert common_kl([]) is None
    assert common_kl([[(0.0, 5.0)], [(0.0, 6.0)], [(0.0, 4.0)], [(0.0, 0.02)]]) == 4.0, "one that hardly moved"


def test_seeds_are_interpolated_one_by_one() -> None:
    seeds = [curve([1.0, 2.0], [0.0, 1.0]), curve([0.0, 4.0], [0.0, 1.0])]
    values = [0.5, 1.5 / 4]
    expected = AtKL(np.mean(values), np.std(values, ddof=1), 2 * np.mean(values), 2 * np.std(values, ddof=1))
    result = values_at_kl(seeds, 1.5)
    assert result is not None
    assert dataclasses.astuple(result) == pytest.approx(dataclasses.astuple(expected))
    assert values_at_kl(seeds, 2.5) is None, "one seed does not pass it"
    one = values_at_kl(seeds[:1], 1.5)
    assert one == AtKL(0.5, None, 1.0, None)


def test_the_mean_curve_has_the_steps_of_all_seeds() -> None:
    seeds = [curve([1.0, 2.0, 3.0], [0.0, 0.2, 0.4]), curve([2.0, 4.0], [0.2, 0.6])]
    assert mean_points(seeds) == [
        ValidationPoint(1, 1.5, 0.2, 0.1, None, None),
        ValidationPoint(2, 3.0, 0.8, 0.4, None, None),
    ]
    assert mean_points([]) == []


def test_the_log_is_read_in_the_order_of_its_steps() -> None:
    log = [
        {"step": 1, "objective/kl": 0.1},
        {"step": 2, "validation/kl": 0.2, "validation/score_mean": 1.0},
        {"step": 0, "validation/text_nll": 3.0, "validation/text_nll_reference": 2.5},
        {"epoch": 1.0, "validation/kl": 0.5},
    ]
    assert validation_points(log) == [
        ValidationPoint(0, None, None, None, 3.0, 2.5),
        ValidationPoint(2, 0.2, 1.0, None, None, None),
    ]


def test_the_operating_point_is_the_best_below_one_percent_more_perplexity() -> None:
    just_below, just_above = math.log(1.0099), math.log(1.0101)
    seeds = [
        curve([0.5, 1.0, 2.0], [0.1, 0.3, 0.9], [2.0, 2.0, 2.0 + just_below, 2.0 + just_above]),
        curve([0.7, 1.2, 2.2], [0.1, 0.4, 0.8], [2.0, 2.0, 2.0 + just_below, 2.0 + just_above]),
    ]
    result = operating_point(seeds)
    assert isinstance(result, OperatingPoint)
    assert result.step == 2, "the third is better, but too far from the neutral texts"
    expected = (2, 1.1, 0.35, np.std([0.3, 0.4], ddof=1), 0.7, 0.0099)
    assert dataclasses.astuple(result) == pytest.approx(expected)


def test_the_reference_at_step_0_is_no_operating_point() -> None:
    start = ValidationPoint(0, 0.0, 1.8, 0.9, 2.0, 2.0)
    below, above = (curve([1.0], [0.1], [2.0, 2.0 + math.log(1 + rise)]) for rise in (0.005, 0.5))
    best = operating_point([[start, *below]])
    assert isinstance(best, OperatingPoint)
    assert best.step == 1, "the reference is better, but training did not lead to it"
    assert operating_point([[start, *above]]) == operating_point([above]), "it hides no policy that lost its texts"


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (curve([1.0], [0.1]), "no validation has both"),
        (curve([1.0], [0.1], [2.0, 2.5]), "no checkpoint qualifies: .* rose by at least 64.9%, and less than 1%"),
        ([ValidationPoint(1, 0.0, 1.0, None, 2.0, 2.0)], "no validation has both"),
        ([], "no validation has both"),
    ],
)
def test_why_there_is_no_operating_point(points: list[ValidationPoint], reason: str) -> None:
    result = operating_point([points])
    assert isinstance(result, str)
    assert re.search(reason, result)
