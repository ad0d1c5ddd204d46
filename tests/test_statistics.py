"""The statistics against brute force, the normal approximation and coverage."""

import math

import numpy as np
import pytest

from workbench.evaluation import statistics
from workbench.evaluation.statistics import paired_difference, sample_means, seed_std
from workbench.rewards.ranking import auroc


def test_interval_agrees_with_the_normal_approximation():
    generator = np.random.default_rng(1)
    before = generator.normal(size=400)
    after = before + generator.normal(loc=0.3, scale=0.5, size=400)
    result = paired_difference(before, after)
    changes = after - before
    half = 1.96 * changes.std(ddof=1) / math.sqrt(400)
    assert result.difference == pytest.approx(changes.mean())
    assert result.low == pytest.approx(changes.mean() - half, abs=0.1 * half)
    assert result.high == pytest.approx(changes.mean() + half, abs=0.1 * half)


def test_interval_covers_the_true_difference_nineteen_times_in_twenty():
    generator = np.random.default_rng(2)
    covered = 0
    for trial in range(300):
        before = generator.normal(scale=5.0, size=50)
        after = before + generator.normal(loc=0.2, size=50)
        result = paired_difference(before, after, seed=trial, resamples=500)
        covered += result.low <= 0.2 <= result.high
    # 0.95 within three standard errors, and the one percent that the percentile method loses at N=50.
    assert 0.90 <= covered / 300 <= 0.985


def test_interval_is_paired():
    before = np.arange(100.0)
    result = paired_difference(before, before + 1)
    assert (result.low, result.difference, result.high) == pytest.approx((1.0, 1.0, 1.0))


def test_prompts_that_rose_stayed_and_fell_are_counted():
    result = paired_difference([0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 9.0])
    assert (result.rose, result.same, result.fell) == (2, 1, 1)
    assert (result.mean_before, result.mean_after, result.difference) == (1.5, 3.0, 1.5)


def test_means_of_the_same_samples_in_another_order_are_the_same():
    samples = np.random.default_rng(5).random((200, 3))
    before, after = samples.sum(axis=1) / 3, samples[:, ::-1].sum(axis=1) / 3
    assert (before != after).any(), "rounding"
    result = paired_difference(before, after)
    assert (result.rose, result.same, result.fell) == (0, 200, 0)
    assert (result.low, result.difference, result.high) == (0, 0, 0)
    single = before.astype(np.float32)
    assert paired_difference(single, np.nextafter(single, np.float32(2))).same == 200, "single precision"
    assert paired_difference(before, before * 1.0001).rose == 200
    cancelled = np.array([[[0.1, 0.2, -0.3]], [[-0.3, 0.2, 0.1]]])
    assert (cancelled.mean(axis=(1, 2)) != 0).any()
    assert (sample_means(cancelled) == 0).all()


def test_reversing_the_comparison_reverses_the_interval():
    generator = np.random.default_rng(3)
    before, after = generator.normal(size=(2, 30))
    forward, back = paired_difference(before, after), paired_difference(after, before)
    assert (forward.low, forward.high) == pytest.approx((-back.high, -back.low))
    assert (forward.rose, forward.fell) == (back.fell, back.rose)


def test_chunks_do_not_change_how_many_resamples_there_are(monkeypatch):
    values = np.random.default_rng(4).normal(size=7)
    whole = statistics._resampled_means(values, seed=0, resamples=1000)
    monkeypatch.setattr(statistics, "CHUNK_ELEMENTS", 50)
    chunked = statistics._resampled_means(values, seed=0, resamples=1000)
    np.testing.assert_array_equal(whole, chunked)


def test_the_seed_decides():
    values = np.random.default_rng(5).normal(size=(2, 20))
    assert paired_difference(*values, seed=1) == paired_difference(*values, seed=1)
    assert paired_difference(*values, seed=1) != paired_difference(*values, seed=2)


def test_one_prompt_has_no_interval():
    result = paired_difference([1.0], [3.0])
    assert (result.difference, result.rose) == (2.0, 1)
    assert math.isnan(result.low)
    assert math.isnan(result.high)


@pytest.mark.parametrize(
    ("before", "after"), [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[2.0]]), ([1.0, math.nan], [1.0, 2.0])]
)
def test_malformed_rows_are_refused(before, after):
    with pytest.raises(ValueError, match=r"equally long|not finite"):
        paired_difference(before, after)


@pytest.mark.parametrize("seed", range(20))
def test_auroc_counts_ordered_pairs_and_half_of_the_ties(seed):
    generator = np.random.default_rng(seed)
    scores = generator.integers(6, size=40).astype(float)
    labels = np.r_[0, 1, generator.integers(2, size=38)]
    pairs = [(p, n) for p in scores[labels == 1] for n in scores[labels == 0]]
    expected = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)
    assert auroc(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_auroc_at_its_ends():
    assert auroc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == 1.0
    assert auroc([0.1, 0.2, 0.8, 0.9], [True, True, False, False]) == 0.0
    assert auroc([1.0, 1.0, 1.0], [0, 1, 0]) == 0.5


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [1, 1], "both labels"),
        ([1.0, 2.0], [0, 2], "0 or 1"),
        ([1.0, math.nan], [0, 1], "score 1 is NaN"),
        ([1.0], [0, 1], "equally long"),
        ([], [], "both labels"),
    ],
)
def test_auroc_refuses_what_it_cannot_rank(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        auroc(scores, labels)


def test_the_standard_deviation_over_seeds_needs_two_of_them():
    assert seed_std([1.0, 2.0, 4.0]) == pytest.approx(math.sqrt(7 / 3))
    assert seed_std([0.5]) is None
    assert seed_std([]) is None
