"""Agreement of judges and flips against counts by hand, pairs of ranks, and the cases without a value."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from workbench.evaluation.agreement import (
    Flips,
    JudgeAgreement,
    cohens_kappa,
    count_flips,
    judge_agreement,
    rank_correlation,
)
from workbench.evaluation.reliability import judge_agreements, judge_flips
from workbench.evaluation.results import Metric, Scores


def classified(counts: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return two classifications with so many both toxic, first alone, second alone and neither."""
    pairs = [(True, True), (True, False), (False, True), (False, False)]
    rows = [pair for pair, count in zip(pairs, counts, strict=True) for _ in range(count)]
    first, second = np.array(rows).T
    return first, second


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((20, 5, 10, 15), 0.4),  # observed 35/50, expected 0.5 x 0.6 + 0.5 x 0.4
        ((45, 15, 25, 15), 0.13043478260869565),  # observed 0.6, expected 0.54
        ((10, 0, 0, 30), 1.0),
        ((0, 10, 10, 0), -1.0),
        ((0, 0, 7, 13), 0.0),  # the first calls every completion clean
        ((0, 0, 0, 9), None),
        ((9, 0, 0, 0), None),
    ],
)
def test_kappa_is_the_agreement_beyond_chance(counts: tuple[int, int, int, int], expected: float | None) -> None:
    first, second = classified(counts)
    assert cohens_kappa(first, second) == (None if expected is None else pytest.approx(expected, abs=1e-12))
    assert cohens_kappa(second, first) == cohens_kappa(first, second)


def test_kappa_of_independent_judges_is_zero_on_average() -> None:
    generator = np.random.default_rng(0)
    kappas = [cohens_kappa(generator.random(200) < 0.3, generator.random(200) < 0.1) for _ in range(300)]
    assert abs(np.mean(kappas)) < 3 * np.std(kappas) / math.sqrt(300)


def mean_ranks(values: list[float]) -> list[float]:
    """Return for each value one more than the number of smaller values, and half of the other equal ones."""
    return [1 + sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2 for value in values]


@pytest.mark.parametrize("seed", range(10))
def test_rank_correlation_with_ties_is_that_of_the_mean_ranks(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first = generator.integers(5, size=40).astype(float)
    second = first * (seed % 3 - 1) + generator.integers(4, size=40)
    expected = np.corrcoef(mean_ranks(first.tolist()), mean_ranks(second.tolist()))[0, 1]
    assert rank_correlation(first, second) == pytest.approx(expected, abs=1e-12)


def test_rank_correlation_without_ties_is_that_of_the_squared_differences() -> None:
    first, second = np.random.default_rng(1).random((2, 30))
    distance = sum((a - b) ** 2 for a, b in zip(mean_ranks(list(first)), mean_ranks(list(second)), strict=True))
    assert rank_correlation(first, second) == pytest.approx(1 - 6 * distance / (30 * (30**2 - 1)))
    assert rank_correlation(first, np.exp(9 * first)) == 1.0, "whatever the scale"
    assert rank_correlation(first, -first) == -1.0


@pytest.mark.parametrize("constant", [np.zeros(8), np.full(8, 0.3), 0.3 * (1 + 1e-7 * np.arange(8))])
def test_a_judge_that_gives_one_probability_has_no_rank_correlation(constant: np.ndarray) -> None:
    other = np.linspace(0, 1, 8)
    assert rank_correlation(constant, other) is None
    assert rank_correlation(other, constant) is None
    agreement = judge_agreement("constant", "other", constant, other, 0.5)
    assert (agreement.rank_correlation, agreement.kappa, agreement.agreement) == (None, 0.0, 0.5)
    assert (agreement.both_toxic, agreement.first_only, agreement.second_only) == (0, 0, 4)


def test_a_completion_is_toxic_at_the_threshold_or_above() -> None:
    agreement = judge_agreement("a", "b", [0.5, 0.5, 0.49, 0.1], [0.9, 0.2, 0.5, 0.3], 0.5)
    kappa, correlation = pytest.approx(0.0), pytest.approx(np.corrcoef([3.5, 3.5, 2, 1], [4, 1, 3, 2])[0, 1])
    assert agreement == JudgeAgreement("a", "b", 4, 1, 1, 1, 0.5, kappa, correlation)
    assert agreement.neither_toxic == 1
    assert count_flips("a", [0.5, 0.5, 0.49, 0.1], [0.9, 0.2, 0.5, 0.3], 0.5) == Flips("a", 4, 1, 1)
    assert count_flips("a", [0.5, 0.9, 0.7], [0.1, 0.2, 0.7], 0.5) == Flips("a", 3, 2, 0)


@pytest.mark.parametrize(
    ("first", "second"), [([], []), ([0.1], [0.1, 0.2]), ([[0.1]], [[0.2]]), ([math.nan, 0.1], [0.1, 0.2])]
)
def test_malformed_probabilities_are_refused(first: list, second: list) -> None:
    with pytest.raises(ValueError, match=r"equally long|not finite"):
        judge_agreement("a", "b", first, second, 0.5)
    with pytest.raises(ValueError, match=r"equally long|not finite"):
        count_flips("a", first, second, 0.5)


def scores_of(models: tuple[str, ...] = ("base", "sft", "aligned")) -> Scores:
    """Return probabilities of three judges, 6 prompts, 2 seeds and 3 samples, and another metric."""
    generator = np.random.default_rng(3)
    scores: Scores = {
        Metric("toxicity", "lower", judge): {model: generator.random((6, 2, 3)) for model in models}
        for judge in ("reward", "a", "b")
    }
    scores[Metric("toxic rate", "lower", "a")] = {model: generator.random((6, 2, 3)) for model in models}
    scores[Metric("reward", "higher")] = {model: generator.random((6, 2, 3)) for model in models}
    return scores


def test_every_two_judges_are_compared_on_the_completions_of_all_models() -> None:
    scores = scores_of()
    agreements = judge_agreements(scores, 0.6)
    assert [(each.first, each.second) for each in agreements] == [("reward", "a"), ("reward", "b"), ("a", "b")]
    by_judge = {metric.judge: by_title for metric, by_title in scores.items() if metric.name == "toxicity"}
    for each in agreements:
        pairs = [
            (by_judge[each.first][model][index] >= 0.6, by_judge[each.second][model][index] >= 0.6)
            for model in ("base", "sft", "aligned")
            for index in itertools.product(range(6), range(2), range(3))
        ]
        assert each.completions == len(pairs) == 108
        assert each.both_toxic == sum(first and second for first, second in pairs)
        assert each.first_only == sum(first and not second for first, second in pairs)
        assert each.second_only == sum(second and not first for first, second in pairs)
        assert each.agreement == pytest.approx(sum(first == second for first, second in pairs) / 108)
    assert judge_agreements({Metric("toxicity", "lower", "a"): scores[Metric("toxicity", "lower", "a")]}, 0.5) == []


def test_a_flip_is_of_the_same_prompt_seed_and_sample() -> None:
    scores = scores_of()
    (_, flips, _) = judge_flips(scores, "sft", "aligned", 0.6)
    before, after = (scores[Metric("toxicity", "lower", "a")][model] for model in ("sft", "aligned"))
    cells = list(itertools.product(range(6), range(2), range(3)))
    assert flips == Flips(
        judge="a",
        completions=36,
        toxic_to_clean=sum(before[cell] >= 0.6 > after[cell] for cell in cells),
        clean_to_toxic=sum(before[cell] < 0.6 <= after[cell] for cell in cells),
    )
    rate = (after >= 0.6).mean() - (before >= 0.6).mean()
    assert rate == pytest.approx((flips.clean_to_toxic - flips.toxic_to_clean) / 36), "they make the toxic rate"
    assert judge_flips(scores, "sft", "missing", 0.5) == []
