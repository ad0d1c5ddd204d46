"""When the reward and the scorer that PPO never sees part, and how that is read, told once and drawn."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from workbench.ppo.overoptimization import Point, divergence_step, divergence_warning, points
from workbench.report.overoptimization_page import overoptimization_page, overoptimization_section, standardized


def course(scores: list[float], watches: list[float], error: float = 0.1) -> list[Point]:
    """Points at steps 10, 20, ... and KLs 1.5, 3.0, ..."""
    return [Point(10 * i, 1.5 * i, *both, error) for i, both in enumerate(zip(scores, watches, strict=True), start=1)]


def parting_by_pairs(found: list[Point]) -> int | None:
    """The first best point so far by `watch` that a later point both beats in reward and loses to beyond doubt."""
    for now, point in enumerate(found):
        for best in found[:now]:
            is_best = all(best.watch > other.watch for other in found[: now + 1] if other is not best)
            lost = best.watch - point.watch > 2 * np.hypot(best.watch_error, point.watch_error)
            if is_best and lost and point.score > best.score:
                return best.step
    return None


def test_scorers_that_rise_together_do_not_part():
    assert divergence_step([]) is None
    assert divergence_step(course([1.0], [1.0])) is None
    assert divergence_step(course([0.0, 1.0, 2.0, 3.0], [0.0, 0.5, 0.6, 5.0], error=0.0)) is None


def test_they_part_at_the_best_of_the_watching_scorer():
    assert divergence_step(course([0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 1.5, 0.0])) == 30
    # A later rise does not unsay it, and what comes after does not move it.
    assert divergence_step(course([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 1.0, 0.0, 3.0, 1.0, 4.0])) == 20


def test_two_standard_errors_of_the_difference_are_no_parting():
    doubt = 2 * np.hypot(0.3, 0.4)  # 1.0
    for lost, expected in ((doubt - 1e-6, None), (doubt + 1e-6, 1)):
        assert divergence_step([Point(1, 0.0, 0.0, 2.0, 0.3), Point(2, 1.0, 1.0, 2.0 - lost, 0.4)]) == expected


def test_a_reward_that_falls_or_stays_is_no_parting():
    assert divergence_step(course([2.0, 1.0, 2.0], [5.0, 1.0, 0.0])) is None
    assert divergence_step(course([2.0, 1.0, 2.1], [5.0, 1.0, 0.0])) == 10  # even if it fell in between


def walks(seed: int) -> list[Point]:
    """Random points, about half of which part somewhere."""
    generator = np.random.default_rng(seed)
    scores, watches = generator.normal(size=(2, 12)).cumsum(axis=1)
    errors = generator.uniform(0.2, 1.2, size=12)
    return [Point(i, float(i), *map(float, row)) for i, row in enumerate(zip(scores, watches, errors, strict=True))]


def test_parting_is_what_every_pair_of_points_says():
    verdicts = [divergence_step(walks(seed)) for seed in range(200)]
    assert verdicts == [parting_by_pairs(walks(seed)) for seed in range(200)]
    assert 20 < sum(verdict is not None for verdict in verdicts) < 180


def test_a_growing_run_is_warned_once_and_only_if_it_parts():
    for seed in range(50):
        found = walks(seed)
        warnings = [divergence_warning(found[:length]) for length in range(len(found) + 1)]
        told = [warning for warning in warnings if warning is not None]
        assert len(told) == (divergence_step(found) is not None)
        for line in told:
            now = found[warnings.index(line) - 1].step
            assert f"since step {divergence_step(found)} " in line
            assert f"(now step {now})" in line
            assert "\n" not in line


def test_points_are_the_lines_that_were_watched(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert points(file) == []
    watched = {"validation/kl": 2.5, "validation/score_mean": 0.5, "validation/watch_mean": -1.0}
    lines = [
        {"step": 1, "objective/kl": 9.0},
        {"step": 2, "other": 0, **watched, "validation/watch_error": 0.25},
        {"step": 3, "validation/kl": 1.0, "validation/score_mean": 1.0},
        {"step": 4, **watched, "validation/watch_error": 0.0},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert points(file) == [Point(2, 2.5, 0.5, -1.0, 0.25), Point(4, 2.5, 0.5, -1.0, 0.0)]
    file.write_text("")
    assert points(file) == []


def test_curves_are_changes_over_their_largest():
    assert standardized([3.0, 4.0, 1.0, 3.0]) == [0.0, 0.5, -1.0, 0.0]
    assert standardized([7.0, 7.0]) == [0.0, 0.0]
    generator = np.random.default_rng(0)
    values = generator.normal(size=20)
    assert standardized(list(values)) == pytest.approx(standardized(list(5 * values + 3)))


def test_the_section_says_whether_and_marks_where_they_parted():
    parted = course([0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 1.0, 0.0])
    section = overoptimization_section(parted)
    assert "From step 20 on" in section
    assert 'class="warning"' in section
    for figure in re.findall("<figure>.*?</figure>", section):
        (mark,) = re.findall(r'class="reference" points="([\d.]+),[\d.]+ ([\d.]+),[\d.]+"', figure)
        circles = re.findall(r'class="mark c0" r="3.5" cx="([\d.]+)"', figure)
        assert mark == (circles[1], circles[1])  # upright, at the second point
        assert float(circles[-1]) - float(circles[0]) > 350  # of 392: the axis holds the points and little more
    from_zero = [point._replace(step=point.step - 20) for point in parted]
    assert overoptimization_section(from_zero).count('class="reference"') == 2
    apart = overoptimization_page(course([0.0, 1.0], [0.0, 2.0]))
    assert "did not part" in apart
    assert 'class="reference"' not in apart
