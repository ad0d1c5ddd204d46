"""The statistics against brute force, the normal approximation and coverage."""

import math

import numpy as np
import pytest

from benchmarks.interval_coverage import DIFFERENCES, miss_rate
from workbench.evaluation import statistics
from workbench.evaluation.statistics import (
    paired_difference,
    prompt_contributions,
    sample_means,
    seed_std,
    student_quantile,
)
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
    assert 0.913 <= covered / 300 <= 0.987, "0.95 within three standard errors"


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
    values, sizes = np.random.default_rng(4).normal(size=7), np.ones(7)
    values -= values.mean()
    whole = statistics._studentized_means(values, sizes, 1.0, seed=0, resamples=1000)
    monkeypatch.setattr(statistics, "CHUNK_ELEMENTS", 50)
    chunked = statistics._studentized_means(values, sizes, 1.0, seed=0, resamples=1000)
    np.testing.assert_allclose(whole, chunked, rtol=1e-9, atol=1e-12)


def test_the_seed_decides():
    values = np.random.default_rng(5).normal(size=(2, 20))
    assert paired_difference(*values, seed=1) == paired_difference(*values, seed=1)
    assert paired_difference(*values, seed=1) != paired_difference(*values, seed=2)


def test_one_prompt_has_no_interval():
    result = paired_difference([1.0], [3.0])
    assert (result.difference, result.rose) == (2.0, 1)
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    repeated = paired_difference([1.0, 1.0], [3.0, 4.0], groups=["same", "same"])
    assert (repeated.difference, repeated.prompts, repeated.rose) == (2.5, 1, 2)
    assert math.isnan(repeated.low)


def test_repeated_rows_give_the_interval_of_single_ones():
    before, after = np.random.default_rng(6).normal(size=(2, 60))
    single = paired_difference(before, after, groups=[f"prompt {i}" for i in range(60)])
    assert single == paired_difference(before, after), "one row per prompt"
    thrice, labels = (np.tile(before, 3), np.tile(after, 3)), [f"prompt {i}" for i in range(60)] * 3
    repeated = paired_difference(*thrice, groups=labels)
    assert (repeated.difference, repeated.low, repeated.high) == pytest.approx(
        (single.difference, single.low, single.high)
    )
    assert (repeated.prompts, repeated.rose, repeated.fell) == (60, 3 * single.rose, 3 * single.fell)
    as_rows = paired_difference(*thrice)
    assert (as_rows.high - as_rows.low) / (single.high - single.low) == pytest.approx(3**-0.5, rel=0.05)


def test_prompts_are_drawn_with_all_their_rows():
    generator = np.random.default_rng(7)
    labels = generator.integers(9, size=40)
    changes = generator.exponential(size=40)
    result = paired_difference(np.zeros(40), changes, groups=labels, resamples=500)
    by_prompt = [changes[labels == label] for label in dict.fromkeys(labels.tolist())]
    error, student = standard_error(by_prompt), 2.306004
    studentized = []
    for row in np.random.default_rng(0).integers(9, size=(500, 9)):
        prompts = [by_prompt[prompt] for prompt in row]
        change = np.concatenate(prompts).mean() - changes.mean()
        studentized.append(change / max(standard_error(prompts), 0.2 * error))
    low, high = np.quantile(studentized, [0.025, 0.975])
    expected = (changes.mean() - max(high, student) * error, changes.mean() - min(low, -student) * error)
    assert (result.low, result.high) == pytest.approx(expected)
    assert (result.difference, result.prompts) == (pytest.approx(changes.mean()), 9)


def standard_error(by_prompt):
    """Return the linearized standard error of the mean over the rows of these prompts."""
    rows = np.concatenate(by_prompt)
    residuals = [(values - rows.mean()).sum() for values in by_prompt]
    return math.sqrt(len(residuals) / (len(residuals) - 1) * np.square(residuals).sum()) / rows.size


def test_an_interval_follows_the_skewness_of_the_differences():
    changes = np.random.default_rng(12).exponential(size=40)
    result = paired_difference(np.zeros(40), changes)
    assert result.high - result.difference > 1.15 * (result.difference - result.low)


def test_an_interval_is_finite_where_hardly_any_prompt_differs():
    changes = np.zeros(40)
    changes[:2] = 1
    result = paired_difference(np.zeros(40), changes)
    half = student_quantile(0.025, 39) * changes.std(ddof=1) / math.sqrt(40)
    assert result.low == pytest.approx(0.05 - half)
    assert 0.05 + half <= result.high <= 0.05 + 5 * half


@pytest.mark.parametrize(("name", "draw"), DIFFERENCES.items())
def test_intervals_miss_no_more_than_their_error(name, draw):
    single, seven = miss_rate(draw, 30, 1, 400), miss_rate(draw, 30, 7, 400)
    assert single < 0.083, "0.05 within three standard errors"
    assert seven < 0.0203, "0.05 / 7 within three standard errors"


@pytest.mark.parametrize(
    ("tail", "freedom", "expected"),
    [
        (0.025, 1, 12.7062), (0.025, 2, 4.30265), (0.025, 3, 3.18245), (0.025, 4, 2.77645), (0.025, 29, 2.04523),
        (0.005, 9, 3.24984), (0.0005, 29, 3.65941), (0.0005, 3, 12.9240), (0.025, 10**6, 1.95997),
    ],
)  # fmt: skip
def test_quantiles_of_students_t_are_those_of_the_tables(tail, freedom, expected):
    assert student_quantile(tail, freedom) == pytest.approx(expected, rel=1e-5)


def test_contributions_of_prompts_have_the_mean_of_the_rows_and_the_standard_error_of_the_bootstrap():
    generator = np.random.default_rng(8)
    labels = np.repeat(np.arange(400), generator.integers(1, 6, size=400))
    values = generator.normal(size=400)[labels] + np.bincount(labels)[labels]  # the larger, the more rows
    contributions = prompt_contributions(values, labels)
    assert contributions.mean() == pytest.approx(values.mean())
    result = paired_difference(np.zeros(values.size), values, groups=labels)
    error = contributions.std(ddof=1) / math.sqrt(400)
    assert result.high - result.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    np.testing.assert_array_equal(prompt_contributions(values), values)


def test_the_interval_covers_where_rows_share_a_prompt():
    generator = np.random.default_rng(9)
    labels = np.repeat(np.arange(50), 3)
    covered = {"prompts": 0, "rows": 0}
    for trial in range(300):
        changes = np.repeat(generator.normal(loc=0.2, size=50), 3) + generator.normal(scale=0.3, size=150)
        for resampled, groups in (("prompts", labels), ("rows", None)):
            result = paired_difference(np.zeros(150), changes, groups=groups, seed=trial, resamples=500)
            covered[resampled] += result.low <= 0.2 <= result.high
    assert 0.90 <= covered["prompts"] / 300 <= 0.985
    assert covered["rows"] / 300 < 0.82


def test_several_intervals_hold_together():
    generator = np.random.default_rng(10)
    any_missed = {1: 0, 7: 0}
    for trial in range(150):
        changes = generator.normal(size=(7, 80))
        for comparisons in any_missed:
            results = [
                paired_difference(np.zeros(80), row, seed=trial, resamples=500, comparisons=comparisons)
                for row in changes
            ]
            any_missed[comparisons] += any(not result.low <= 0 <= result.high for result in results)
    assert any_missed[7] / 150 < 0.11, "0.05, within three standard errors"
    assert any_missed[1] / 150 > 0.2, "0.3 expected"


def test_an_interval_of_several_has_the_level_of_its_part_of_the_error_and_more_resamples(monkeypatch):
    changes, counts = np.random.default_rng(11).normal(size=400), []
    resample = statistics._studentized_means
    monkeypatch.setattr(statistics, "_studentized_means", lambda *args: (counts.append(args[-1]), resample(*args))[1])
    result = paired_difference(np.zeros(400), changes, comparisons=7, resamples=1000)
    assert counts == [math.ceil(1000 * math.sqrt(7))]
    half = 2.69 * changes.std(ddof=1) / math.sqrt(400)
    assert result.high - result.low == pytest.approx(2 * half, rel=0.08)


@pytest.mark.parametrize("groups", [[], ["a"], ["a", "b", "c"]])
def test_a_group_for_each_row_is_needed(groups):
    with pytest.raises(ValueError, match=f"{len(groups)} groups of 2 rows"):
        paired_difference([1.0, 2.0], [2.0, 3.0], groups=groups)


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
