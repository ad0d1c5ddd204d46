"""Quality and calibration of probabilities against brute force, hand-worked examples and simulated data."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.rewards.training.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    Confusion,
    average_precision,
    calibration_error,
    confusion,
    fit_temperature,
    reliability,
)


def drawn(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (size,) in steps of a twentieth, so that many are equal, 0 or 1, and truths with both values."""
    generator = np.random.default_rng(seed)
    truth = generator.random(size) < 0.4
    truth[:2] = True, False
    return generator.integers(0, 21, size) / 20, truth


def precision_over_thresholds(scores: np.ndarray, truth: np.ndarray) -> float:
    """Average precision by its definition: the sum of precision times gain of recall over falling thresholds."""
    total = recall = 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        called = [bool(positive) for score, positive in zip(scores, truth, strict=True) if score >= threshold]
        now = sum(called) / truth.sum()
        total, recall = total + (now - recall) * sum(called) / len(called), now
    return total


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_is_its_definition_also_with_ties(seed):
    scores, truth = drawn(seed, 3 + 3 * seed)
    assert average_precision(scores, truth) == pytest.approx(precision_over_thresholds(scores, truth))
    order = np.random.default_rng(seed).permutation(len(scores))
    assert average_precision(scores[order], truth[order]) == pytest.approx(average_precision(scores, truth))


def test_average_precision_of_examples_worked_by_hand():
    # Ranks of the positive ones are 1, 3 and 4: (1/1 + 2/3 + 3/4) / 3.
    assert average_precision([5.0, 4.0, 3.0, 2.0, 1.0], [1, 0, 1, 1, 0]) == pytest.approx(29 / 36)
    # One rank of all four: precision 1/4 takes recall from 0 to 1.
    assert average_precision([7.0, 7.0, 7.0, 7.0], [True, False, False, False]) == 0.25
    assert average_precision([2.0, 1.0], [True, False]) == 1.0
    with pytest.raises(ValueError, match="positive row"):
        average_precision([1.0, 2.0], [False, False])


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.55, 1.0, 1.1])
def test_confusion_counts_every_text_once(threshold):
    probabilities, truth = drawn(3, 60)
    pairs = [(p >= threshold, bool(t)) for p, t in zip(probabilities, truth, strict=True)]
    counts = confusion(probabilities, truth, threshold)
    expected = tuple(pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False)))
    assert counts == Confusion(*expected)
    assert counts.total == 60
    assert counts.accuracy == pytest.approx(sum(called == positive for called, positive in pairs) / 60)


def test_rates_of_an_example_worked_by_hand():
    counts = Confusion(true_positives=6, false_positives=2, false_negatives=3, true_negatives=9)
    assert (counts.accuracy, counts.precision, counts.recall) == pytest.approx((15 / 20, 6 / 8, 6 / 9))
    assert counts.f1 == pytest.approx(2 / (8 / 6 + 9 / 6))


def test_rates_without_a_denominator_are_zero():
    nothing, only_negatives = Confusion(0, 0, 0, 0), Confusion(0, 0, 0, 5)
    for counts in (nothing, only_negatives):
        assert (counts.precision, counts.recall, counts.f1) == (0, 0, 0)
    assert (nothing.accuracy, only_negatives.accuracy) == (0, 1)


@pytest.mark.parametrize("bins", [1, 5, 10, 16])
def test_bins_hold_every_probability_once_zero_and_one_too(bins):
    probabilities = np.append(np.random.default_rng(4).random(200), [0.0, 1.0])
    truth = np.random.default_rng(5).random(202) < probabilities
    filled = reliability(probabilities, truth, bins)
    gap = 0.0
    for index in range(bins):
        inside = []
        for index_of_text, value in enumerate(probabilities):
            if index / bins <= value < (index + 1) / bins or (value == 1 and index == bins - 1):
                inside.append(index_of_text)
        part = next(part for part in filled if part.low == index / bins)
        assert (part.high, part.count) == (pytest.approx((index + 1) / bins), len(inside))
        assert part.probability == pytest.approx(sum(probabilities[i] for i in inside) / len(inside))
        assert part.positive_rate == pytest.approx(sum(truth[i] for i in inside) / len(inside))
        gap += len(inside) * abs(part.probability - part.positive_rate)
    assert calibration_error(filled) == pytest.approx(gap / 202)


def test_calibration_error_of_known_cases():
    assert calibration_error(reliability([0.0] * 3 + [1.0] * 2, [False] * 3 + [True] * 2)) == 0
    assert calibration_error(reliability([0.25] * 4 + [0.75] * 4, [1, 0, 0, 0, 1, 1, 1, 0])) == 0
    filled = reliability([0.9] * 10, [True] * 5 + [False] * 5)
    assert len(filled) == 1  # empty bins are left out
    assert calibration_error(filled) == pytest.approx(0.4)
    # Opposite gaps in two bins do not cancel: 1/4 of the texts are off by 0.8, 3/4 by 0.3.
    assert calibration_error(reliability([0.8, 0.3, 0.3, 0.3], [False] + [False] * 3)) == pytest.approx(0.425)
    assert calibration_error(reliability([0.2, 0.7], [True, False])) == pytest.approx(0.75)


def cross_entropy(temperature: float, log_odds: np.ndarray, truth: np.ndarray) -> float:
    """Mean negative log-likelihood of the truths, by the textbook formula."""
    towards_truth = np.where(truth, log_odds, -log_odds) / temperature
    return float(np.log1p(np.exp(-towards_truth)).mean())


@pytest.mark.parametrize("seed", range(5))
def test_no_temperature_of_a_fine_grid_is_better(seed):
    generator = np.random.default_rng(seed)
    log_odds = generator.normal(scale=2.0, size=200)
    truth = log_odds + generator.normal(scale=0.5 + seed, size=200) > 0
    grid = np.geomspace(MIN_TEMPERATURE * 2, MAX_TEMPERATURE, 2000)
    best = grid[np.argmin([cross_entropy(temperature, log_odds, truth) for temperature in grid])]
    assert fit_temperature(log_odds, truth) == pytest.approx(best, rel=4e-3)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_recovered(temperature):
    generator = np.random.default_rng(7)
    true_log_odds = generator.normal(scale=2.0, size=20_000)
    truth = generator.random(20_000) < 1 / (1 + np.exp(-true_log_odds))
    assert fit_temperature(true_log_odds * temperature, truth) == pytest.approx(temperature, rel=0.05)


def test_a_temperature_without_a_best_value_ends_at_its_bound():
    for scale in (1.0, 40.0, 1e6):  # 1e6: every loss on the way is 0
        assert fit_temperature([scale, -scale], [True, False]) == pytest.approx(MIN_TEMPERATURE, rel=1e-3)
    assert fit_temperature([-1.0, 1.0], [True, False]) == pytest.approx(MAX_TEMPERATURE, rel=1e-3)
