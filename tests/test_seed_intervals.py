"""Differences between rows of several seeds: against a direct bootstrap, a known quantile, and simulated truth."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.seed_coverage import draw
from workbench.comparison.intervals import difference_over_seeds
from workbench.evaluation.statistics import paired_difference

T_975 = {2: 4.302653, 4: 2.776445}
"""What Student's t exceeds with probability 0.025, by degrees of freedom (tables)."""
T_995 = 4.604095
"""What it exceeds with probability 0.005 at four degrees of freedom."""


def test_one_seed_each_is_the_paired_difference_of_the_house() -> None:
    generator = np.random.default_rng(0)
    before, after = generator.normal(size=(2, 60))
    result = difference_over_seeds(before[:, None], after[:, None], comparisons=6)
    expected = paired_difference(before, after, comparisons=6)
    assert result.over_prompts == expected
    assert (result.low, result.high) == (expected.low, expected.high)


def test_the_interval_over_prompts_is_that_of_a_direct_bootstrap() -> None:
    generator = np.random.default_rng(1)
    before, after = generator.normal(size=(400, 3)), generator.normal(0.3, size=(400, 2))
    changes = after.mean(axis=1) - before.mean(axis=1)
    resampled = changes[generator.integers(400, size=(20_000, 400))].mean(axis=1)
    result = difference_over_seeds(before, after).over_prompts
    assert result.difference == pytest.approx(after.mean() - before.mean())
    assert (result.low, result.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.004)


def test_what_only_seeds_vary_in_is_welchs_interval() -> None:
    """Three seeds each with the same variance: four degrees of freedom; with one side fixed, two."""
    prompts = np.linspace(0, 1, 50)[:, None]
    effects = np.array([-0.1, 0.0, 0.1])
    error = np.sqrt(0.01 / 3)
    both = difference_over_seeds(prompts + effects, prompts + 1 + effects)
    assert (both.low, both.high) == pytest.approx((1 - T_975[4] * error * 2**0.5, 1 + T_975[4] * error * 2**0.5))
    of_five = difference_over_seeds(prompts + effects, prompts + 1 + effects, comparisons=5)
    assert of_five.high == pytest.approx(1 + T_995 * error * 2**0.5)
    one = difference_over_seeds(prompts, prompts + 1 + effects)
    assert (one.low, one.high) == pytest.approx((1 - T_975[2] * error, 1 + T_975[2] * error))
    assert (one.over_prompts.low, one.over_prompts.high) == pytest.approx((1, 1)), "which says nothing about seeds"


def test_no_end_is_closer_than_that_over_prompts() -> None:
    generator = np.random.default_rng(2)
    for _ in range(20):
        before, after = generator.exponential(size=(40, 2)), generator.exponential(size=(40, 3))
        result = difference_over_seeds(before, after, comparisons=3)
        assert result.low <= result.over_prompts.low < result.over_prompts.high <= result.high


def test_rows_that_share_a_prompt_are_one() -> None:
    generator = np.random.default_rng(3)
    before, after = generator.normal(size=(2, 30, 2))
    groups = [f"prompt {index}" for index in range(30)]
    single = difference_over_seeds(before, after, groups=groups)
    repeated = difference_over_seeds(
        np.repeat(before, 4, axis=0), np.repeat(after, 4, axis=0), groups=[name for name in groups for _ in range(4)]
    )
    assert repeated.over_prompts.prompts == 30
    assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high))


def test_a_single_prompt_has_no_interval() -> None:
    result = difference_over_seeds(np.zeros((1, 2)), np.ones((1, 2)))
    assert np.isnan([result.low, result.high]).all()


def test_it_covers_seeds_where_the_interval_over_prompts_does_not() -> None:
    generator = np.random.default_rng(0)
    results = [difference_over_seeds(*draw(generator, 3, (0.3, 0.3))) for _ in range(120)]
    missed = np.mean([not each.low <= 0 <= each.high for each in results])
    missed_over_prompts = np.mean([not each.over_prompts.low <= 0 <= each.over_prompts.high for each in results])
    assert missed < 0.1 < 0.3 < missed_over_prompts
