"""The components of the variance by hand, with known ones, and against how means really scatter."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from workbench.evaluation.reliability import metric_variances
from workbench.evaluation.results import Metric, Scores
from workbench.evaluation.statistics import prompt_contributions
from workbench.evaluation.variance_components import VarianceSplit, moment_estimates, split_variance


def draw(
    generator: np.random.Generator, sizes: tuple[int, int, int], deviations: tuple[float, float, float, float]
) -> np.ndarray:
    """Return values (P, S, K) with these standard deviations of prompts, seeds, prompts x seeds and samples."""
    units, seeds, samples = sizes
    shapes = [(units, 1, 1), (1, seeds, 1), (units, seeds, 1), (units, seeds, samples)]
    parts = [scale * generator.normal(size=shape) for scale, shape in zip(deviations, shapes, strict=True)]
    return sum(parts, np.zeros(sizes))


def variances(split: VarianceSplit) -> dict[str, float]:
    """Return the variance of each component by its level."""
    return {component.level: component.variance for component in split.components}


def test_a_balanced_example_by_hand() -> None:
    # Two prompts, two seeds, two samples. Cell means: 2, 4 and 6, 12; each sample is one off its cell's mean.
    values = np.array([[[1.0, 3.0], [3.0, 5.0]], [[5.0, 7.0], [11.0, 13.0]]])
    # MS prompts = 4 (3^2 + 3^2) / 1 = 72; seeds = 4 (2^2 + 2^2) / 1 = 32; cells = 2 (4 x 1^2) / 1 = 8; within = 8 / 4.
    assert moment_estimates(values) == pytest.approx(
        {"prompts": (72 - 8) / 4, "seeds": (32 - 8) / 4, "prompts x seeds": (8 - 2) / 2, "samples": 2}
    )
    split = split_variance(values)
    squared = 16 / 2 + 6 / 2 + 3 / 4 + 2 / 8
    assert split.standard_error == pytest.approx(math.sqrt(squared))
    assert [component.share for component in split.components] == pytest.approx(
        [8 / squared, 3 / squared, 0.75 / squared, 0.25 / squared]
    )
    assert split.twice_prompts == pytest.approx(math.sqrt(4 + 3 + 0.375 + 0.125))
    assert split.twice_samples == pytest.approx(math.sqrt(8 + 3 + 0.75 + 0.125))
    assert split.twice_seeds == pytest.approx(math.sqrt(8 + 1.5 + 0.375 + 0.125))
    assert (split.units, split.seeds, split.samples) == (2, 2, 2)


def test_one_seed_has_two_components_and_one_sample_three() -> None:
    one_seed = np.array([[[1.0, 3.0]], [[6.0, 8.0]]])  # cell means 2 and 7; MS prompts 2 x 12.5, within 4 / 2
    split = split_variance(one_seed)
    assert variances(split) == pytest.approx({"prompts": (25 - 2) / 2, "samples": 2})
    assert split.twice_seeds is None
    assert split.standard_error == pytest.approx(math.sqrt(25 / 4)), "the mean square of prompts by their values"
    one_sample = np.array([[[1.0], [5.0]], [[7.0], [15.0]]])  # MS prompts 64, seeds 36, residual 4
    split = split_variance(one_sample)
    assert variances(split) == pytest.approx({"prompts": 30, "seeds": 16, "samples": 4})
    assert split.twice_samples == pytest.approx(math.sqrt(15 + 8 + 0.5))


@pytest.mark.parametrize(
    "deviations", [(1.0, 0.5, 0.7, 1.5), (0.0, 0.0, 0.0, 1.0), (2.0, 0.0, 0.0, 0.5), (0.3, 1.0, 0.0, 0.3)]
)
def test_the_estimates_are_unbiased(deviations: tuple[float, float, float, float]) -> None:
    generator = np.random.default_rng(1)
    estimates = [moment_estimates(draw(generator, (8, 4, 3), deviations)) for _ in range(600)]
    for level, deviation in zip(("prompts", "seeds", "prompts x seeds", "samples"), deviations, strict=True):
        values = np.array([estimate[level] for estimate in estimates])
        assert values.mean() == pytest.approx(deviation**2, abs=4 * values.std(ddof=1) / math.sqrt(600)), level


def test_the_standard_error_is_how_means_scatter_also_with_twice_as_many() -> None:
    generator, deviations, sizes = np.random.default_rng(2), (1.0, 0.6, 0.5, 2.0), (10, 6, 2)
    splits = [split_variance(draw(generator, sizes, deviations)) for _ in range(500)]
    for field, factors in (
        ("standard_error", (1, 1, 1)),
        ("twice_prompts", (2, 1, 1)),
        ("twice_seeds", (1, 2, 1)),
        ("twice_samples", (1, 1, 2)),
    ):
        larger = tuple(size * factor for size, factor in zip(sizes, factors, strict=True))
        means = [draw(generator, larger, deviations).mean() for _ in range(1500)]
        expected = math.sqrt(np.mean([getattr(split, field) ** 2 for split in splits]))
        assert expected == pytest.approx(np.std(means, ddof=1), rel=0.08), field


def test_negative_estimates_count_as_zero_and_are_named() -> None:
    # Every prompt has the same mean over its samples, which differ: less between prompts than chance would give.
    values = np.tile(np.array([[-1.0, 1.0]]), (6, 3, 1))
    estimates = moment_estimates(values)
    assert estimates["prompts x seeds"] < 0
    split = split_variance(values)
    assert {component.level for component in split.components if component.is_truncated} == {"prompts x seeds"}
    assert variances(split) == pytest.approx(
        {"prompts": 0, "seeds": 0, "prompts x seeds": 0, "samples": 36 / (6 * 3 * 1)}
    )
    assert split.standard_error == pytest.approx(math.sqrt(2 / 36))
    assert sum(component.share for component in split.components) == pytest.approx(1)


def test_without_variance_no_component_has_a_share() -> None:
    split = split_variance(np.full((5, 2, 2), 0.1 + 0.2))
    assert split.standard_error == split.twice_prompts == 0
    assert [component.share for component in split.components] == [None] * 4
    assert not any(component.is_truncated for component in split.components), "rounding is not negative"


def test_rows_without_a_value_and_single_units_are_left_out() -> None:
    values = draw(np.random.default_rng(4), (7, 2, 2), (1, 1, 1, 1))
    missing = np.concatenate([values, np.full((3, 2, 2), np.nan)])
    assert split_variance(missing) == split_variance(values)
    assert split_variance(values[:, :1, :1]) is None, "one seed with one sample"
    assert split_variance(values[:1]) is None
    assert split_variance(values, ["same"] * 7) is None
    assert split_variance(np.full((3, 2, 2), np.nan)) is None


def test_rows_of_a_unit_count_together_and_by_their_number() -> None:
    generator = np.random.default_rng(5)
    labels = ["a", "a", "a", "b", "c", "c", "d", "e"]
    values = draw(generator, (8, 3, 2), (1, 0.2, 0.3, 1))
    split = split_variance(values, labels)
    by_hand = np.zeros((5, 3, 2))
    for seed, sample in itertools.product(range(3), range(2)):
        by_hand[:, seed, sample] = prompt_contributions(values[:, seed, sample], labels)
    assert split == split_variance(by_hand)
    assert by_hand.mean() == pytest.approx(values.mean())
    alike = split_variance(np.repeat(values, 3, axis=0), [f"{number // 3}" for number in range(24)])
    assert variances(alike) == pytest.approx(variances(split_variance(values))), "three equal rows are one"


def test_the_main_metrics_are_split_where_both_models_have_them() -> None:
    generator = np.random.default_rng(6)
    names = [("toxicity", "a"), ("toxic rate", "a"), ("reward", None), ("ROUGE-L", None), ("tokens", None)]
    scores: Scores = {
        Metric(name, None, judge): {model: generator.random((9, 2, 2)) for model in ("sft", "aligned")}
        for name, judge in names
    }
    scores[Metric("toxicity", "lower", "b")] = {"sft": generator.random((9, 2, 2))}
    measured = metric_variances(scores, "sft", "aligned")
    assert [each.metric.label for each in measured] == ["toxicity (a)", "reward", "ROUGE-L"]
    by_title = scores[Metric("reward")]
    assert measured[1].split == split_variance(by_title["aligned"] - by_title["sft"])
