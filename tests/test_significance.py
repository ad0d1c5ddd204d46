"""p values and intervals of rates against scipy, brute force and enumeration; p values are those of the intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from workbench.evaluation import statistics
from workbench.evaluation.significance import (
    holm_adjusted,
    mcnemar_p,
    paired_rate_interval,
    paired_rate_p,
    student_tail,
)
from workbench.evaluation.statistics import paired_difference


@pytest.mark.parametrize("freedom", [1, 2, 3, 10, 29, 299, 5000])
def test_the_tail_of_students_t_is_scipys(freedom: int) -> None:
    for statistic in (0.0, 1e-4, 0.3, 1.0, 2.0, 5.0, 40.0):
        assert student_tail(statistic, freedom) == pytest.approx(stats.t.sf(statistic, freedom), rel=1e-8)


def test_mcnemars_p_is_that_of_a_binomial_test_on_the_prompts_that_changed() -> None:
    for rose in range(12):
        for fell in range(12):
            expected = stats.binomtest(rose, rose + fell).pvalue if rose + fell else 1.0
            assert mcnemar_p(rose, fell) == pytest.approx(expected)


def test_mcnemars_test_keeps_its_level() -> None:
    for changed in (3, 6, 20, 75):
        chances = stats.binom.pmf(np.arange(changed + 1), changed, 0.5)
        rejected = [mcnemar_p(rose, changed - rose) < 0.05 for rose in range(changed + 1)]
        assert chances[rejected].sum() <= 0.05


def score_by_brute_force(rose: int, fell: int, prompts: int, difference: float) -> float:
    """Return the standardized score with the likeliest probability of a fall under this difference, by a search."""

    def loss(falls: float) -> float:
        chances = (falls + difference, falls, 1 - 2 * falls - difference)
        counts = (rose, fell, prompts - rose - fell)
        return -sum(n * math.log(max(p, 1e-300)) for n, p in zip(counts, chances, strict=True) if n)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    falls = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = prompts * (2 * falls + difference * (1 - difference))
    return (rose - fell - prompts * difference) / math.sqrt(variance)


@pytest.mark.parametrize(("rose", "fell", "prompts"), [(3, 1, 30), (5, 0, 30), (0, 7, 100), (12, 9, 44), (20, 60, 300)])
@pytest.mark.parametrize("tail", [0.025, 0.025 / 7])
def test_the_ends_of_a_rates_interval_are_where_the_score_test_begins_to_reject(rose, fell, prompts, tail) -> None:
    low, high = paired_rate_interval(rose, fell, prompts, tail)
    reach = stats.norm.isf(tail)
    assert score_by_brute_force(rose, fell, prompts, low) == pytest.approx(reach, abs=1e-4)
    assert score_by_brute_force(rose, fell, prompts, high) == pytest.approx(-reach, abs=1e-4)


def test_the_interval_of_a_rate_that_never_changed_is_not_a_point() -> None:
    low, high = paired_rate_interval(0, 0, 30, 0.025)
    square = stats.norm.isf(0.025) ** 2
    assert (low, high) == pytest.approx((-square / (30 + square), square / (30 + square)))
    assert paired_rate_p(0, 0) == 1
    assert paired_rate_interval(30, 0, 30, 0.025)[1] == 1


def test_p_of_a_rate_is_that_of_its_interval() -> None:
    for rose in range(8):
        for fell in range(8):
            low, high = paired_rate_interval(rose, fell, 40, 0.025)
            assert (low > 0 or high < 0) == (paired_rate_p(rose, fell) < 0.05)
    low, high = paired_rate_interval(9, 2, 50, paired_rate_p(9, 2) / 2)
    assert low == pytest.approx(0, abs=1e-9), "at its own p an interval ends at zero"
    assert low < high


def test_holms_correction_of_an_example_by_hand() -> None:
    assert holm_adjusted([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02])
    assert holm_adjusted([0.5, 0.9, 0.6]) == [1.0, 1.0, 1.0]
    assert holm_adjusted([None]) == [None]


def test_holm_rejects_what_the_procedure_step_by_step_rejects() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        values = (generator.random(6) ** 3).tolist()
        rejected, left = set(), sorted(range(6), key=values.__getitem__)
        while left and values[left[0]] < 0.05 / len(left):
            rejected.add(left.pop(0))
        adjusted = holm_adjusted(values)
        assert {index for index, p in enumerate(adjusted) if p is not None and p < 0.05} == rejected


DRAWS = {
    "normal": lambda generator: generator.normal(loc=0.3, size=40),
    "exponential": lambda generator: generator.exponential(size=40) - 0.6,
    "mostly zero": lambda generator: (generator.random(40) < 0.15) * generator.choice([-1.0, 1.0, 1.0], 40),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("comparisons", [1, 7])
def test_p_is_below_the_error_exactly_where_the_interval_excludes_zero(draw, comparisons) -> None:
    generator, excluded = np.random.default_rng(1), 0
    for seed in range(150):
        values = draw(generator)
        result = paired_difference(np.zeros(40), values, seed=seed, resamples=300, comparisons=comparisons)
        excludes = result.low > 0 or result.high < 0
        assert excludes == (result.p < 0.05), seed
        excluded += excludes
    assert 0 < excluded < 150


def test_at_its_own_p_an_interval_ends_at_zero(monkeypatch) -> None:
    values = np.random.default_rng(2).exponential(size=40) - 0.7
    result = paired_difference(np.zeros(40), values)
    assert 0.01 < result.p < 0.5
    monkeypatch.setattr(statistics, "ERROR", result.p)
    ends = paired_difference(np.zeros(40), values)
    assert min(abs(ends.low), abs(ends.high)) == pytest.approx(0, abs=1e-6)


def test_p_is_about_that_of_a_paired_t_test() -> None:
    generator = np.random.default_rng(3)
    for shift in (0.0, 0.1, 0.2):
        before = generator.normal(size=200)
        after = before + generator.normal(loc=shift, size=200)
        expected = stats.ttest_rel(after, before).pvalue
        assert paired_difference(before, after).p == pytest.approx(expected, rel=0.15, abs=0.003)


def test_p_of_no_change_of_an_equal_change_and_of_one_prompt() -> None:
    assert paired_difference(np.zeros(40), np.zeros(40)).p == 1
    assert paired_difference(np.zeros(40), np.ones(40)).p == 0
    assert math.isnan(paired_difference([0.0], [1.0]).p)
    assert math.isnan(paired_difference([0.0], [1.0], is_rate=True).p)
