"""When reward and held-out reward diverge, and how that is read, warned of once and drawn."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from workbench.ppo.overoptimization import Point, divergence_step, divergence_warning, read_points
from workbench.report.overoptimization_page import overoptimization_page, overoptimization_section, relative_changes


def course(scores: list[float], held_outs: list[float], error: float = 0.1) -> list[Point]:
    """Return points at steps 10, 20, ... and KLs 1.5, 3.0, ..."""
    return [Point(10 * i, 1.5 * i, *pair, error) for i, pair in enumerate(zip(scores, held_outs, strict=True), start=1)]


def divergence_by_pairs(course: list[Point]) -> int | None:
    """Return the first best point so far by `held_out` that a later one beats in reward and loses to significantly."""
    for now, point in enumerate(course):
        for best in course[:now]:
            is_best = all(best.held_out > other.held_out for other in course[: now + 1] if other is not best)
            lost = best.held_out - point.held_out > 2 * np.hypot(best.held_out_error, point.held_out_error)
            if is_best and lost and point.score > best.score:
                return best.step
    return None


def test_rewards_that_rise_together_do_not_diverge():
    assert divergence_step([]) is None
    assert divergence_step(course([1.0], [1.0])) is None
    assert divergence_step(course([0.0, 1.0, 2.0, 3.0], [0.0, 0.5, 0.6, 5.0], error=0.0)) is None


def test_they_diverge_at_the_best_of_the_held_out_reward():
    assert divergence_step(course([0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 1.5, 0.0])) == 30
    # A later rise does not undo it, and what comes after does not move it.
    assert divergence_step(course([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 1.0, 0.0, 3.0, 1.0, 4.0])) == 20


def test_two_standard_errors_of_the_difference_are_no_divergence():
    margin = 2 * np.hypot(0.3, 0.4)  # 1.0
    for lost, expected in ((margin - 1e-6, None), (margin + 1e-6, 1)):
        assert divergence_step([Point(1, 0.0, 0.0, 2.0, 0.3), Point(2, 1.0, 1.0, 2.0 - lost, 0.4)]) == expected


def test_a_reward_that_falls_or_stays_is_no_divergence():
    assert divergence_step(course([2.0, 1.0, 2.0], [5.0, 1.0, 0.0])) is None
    assert divergence_step(course([2.0, 1.0, 2.1], [5.0, 1.0, 0.0])) == 10  # even if it fell in between


def walks(seed: int) -> list[Point]:
    """Return random points, about half of which diverge somewhere."""
    generator = np.random.default_rng(seed)
    scores, held_outs = generator.normal(size=(2, 12)).cumsum(axis=1)
    errors = generator.uniform(0.2, 1.2, size=12)
    return [Point(i, float(i), *map(float, row)) for i, row in enumerate(zip(scores, held_outs, errors, strict=True))]


def test_divergence_is_what_every_pair_of_points_says():
    steps = [divergence_step(walks(seed)) for seed in range(200)]
    assert steps == [divergence_by_pairs(walks(seed)) for seed in range(200)]
    assert 20 < sum(step is not None for step in steps) < 180


def test_a_growing_run_is_warned_once_and_only_if_it_diverges():
    for seed in range(50):
        course = walks(seed)
        warnings = [divergence_warning(course[:length]) for length in range(len(course) + 1)]
        lines = [warning for warning in warnings if warning is not None]
        assert len(lines) == (divergence_step(course) is not None)
        for line in lines:
            now = course[warnings.index(line) - 1].step
            assert f"since step {divergence_step(course)} " in line
            assert f"(now step {now})" in line
            assert "\n" not in line


def test_points_are_the_lines_with_a_held_out_reward(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert read_points(file) == []
    validated = {"validation/kl": 2.5, "validation/score_mean": 0.5, "validation/held_out_mean": -1.0}
    lines = [
        {"step": 1, "objective/kl": 9.0},
        {"step": 2, "other": 0, **validated, "validation/held_out_error": 0.25},
        {"step": 3, "validation/kl": 1.0, "validation/score_mean": 1.0},
        {"step": 4, **validated, "validation/held_out_error": 0.0},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_points(file) == [Point(2, 2.5, 0.5, -1.0, 0.25), Point(4, 2.5, 0.5, -1.0, 0.0)]
    file.write_text("")
    assert read_points(file) == []


def test_curves_are_changes_divided_by_the_largest():
    assert relative_changes([3.0, 4.0, 1.0, 3.0]) == [0.0, 0.5, -1.0, 0.0]
    assert relative_changes([7.0, 7.0]) == [0.0, 0.0]
    generator = np.random.default_rng(0)
    values = generator.normal(size=20)
    assert relative_changes(list(values)) == pytest.approx(relative_changes(list(5 * values + 3)))


def test_the_section_says_whether_and_marks_where_they_diverge():
    diverged = course([0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 1.0, 0.0])
    section = overoptimization_section(diverged)
    assert "Divergence step 20" in section
    assert 'class="warning"' in section
    figures = re.findall("<figure>.*?</figure>", section)
    assert len(figures) == 2
    for figure in figures:
        (mark,) = re.findall(r'class="reference" points="([\d.]+),[\d.]+ ([\d.]+),[\d.]+"', figure)
        circles = re.findall(r'class="mark c0" r="3.5" cx="([\d.]+)"', figure)
        assert mark == (circles[1], circles[1])  # upright, at the second point
        assert float(circles[-1]) - float(circles[0]) > 350  # of 392: the axis holds the points and little more
    from_zero = [dataclasses.replace(point, step=point.step - 20) for point in diverged]
    assert overoptimization_section(from_zero).count('class="reference"') == 2
    together = overoptimization_page(course([0.0, 1.0], [0.0, 2.0]))
    assert "did not diverge" in together
    assert 'class="reference"' not in together
