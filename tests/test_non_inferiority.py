"""A quantity is kept, lost, or not shown to be either, by the end of an interval; and the gap between two judges."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from typed_results import make_difference, make_results, make_set

from benchmarks.interval_coverage import COVERAGE, coverage, mcnemar_error
from workbench.config.margins import Margins
from workbench.evaluation import guards
from workbench.evaluation.completion_metrics import METRICS, SAMPLE_SET_METRICS
from workbench.evaluation.corpus_metrics import CORPUS_METRICS
from workbench.evaluation.evidence import NonInferiority, RewardGap
from workbench.evaluation.guards import check_guards
from workbench.evaluation.non_inferiority import RETAINED, non_inferiority, retention_sentence
from workbench.evaluation.results import PERPLEXITY, ROUGE_L, TEXT_PERPLEXITY, Metric, Results
from workbench.evaluation.reward_gap import describe_gap, gaps_by_set, reward_gaps
from workbench.evaluation.scoring import compare
from workbench.evaluation.statistics import paired_difference
from workbench.evaluation.verdicts import minimal_detectable_effect, prompts_needed

ROUGE, DISTINCT, NEUTRAL = Metric(ROUGE_L, "higher"), Metric("distinct-2", pooled=True), Metric(PERPLEXITY, pooled=True)


def pairs(loss: float, noise: float, prompts: int = 100, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return values of mean 0.5 before, and values lower by exactly `loss` on average."""
    generator = np.random.default_rng(seed)
    before = generator.uniform(0.3, 0.7, prompts)
    changes = generator.normal(scale=noise, size=prompts)
    return before, before - loss + changes - changes.mean()


@pytest.mark.parametrize(
    ("loss", "noise", "word"),
    [
        (0.0, 0.01, "kept"),
        (0.005, 0.01, "kept"),
        (-0.2, 0.01, "kept"),
        (0.02, 0.01, "lost"),
        (0.01, 0.01, "not shown"),
        (0.0, 0.2, "not shown"),
        (0.02, 0.2, "not shown"),
    ],
)
def test_the_harmful_end_of_the_interval_decides_against_an_absolute_margin(loss, noise, word) -> None:
    before, after = pairs(loss, noise)
    retained = non_inferiority(ROUGE, before, after, Margins(rouge_l=0.01), neutral=False)
    assert retained is not None
    assert retained.word == word
    change = paired_difference(before, after)
    assert (retained.low, retained.high) == pytest.approx((-change.high - 0.01, -change.low - 0.01))
    harmful_loss, least_loss = -change.low, -change.high
    assert word == ("kept" if harmful_loss < 0.01 else "lost" if least_loss > 0.01 else "not shown")


def test_a_relative_margin_has_the_uncertainty_of_the_mean_before() -> None:
    generator = np.random.default_rng(1)
    before, after = generator.gamma(4, size=(2, 400))
    retained = non_inferiority(DISTINCT, before, after, Margins(distinct_2=0.2), neutral=False)
    assert retained is not None
    error = np.std(0.8 * before - after, ddof=1) / 20
    center = 0.8 * before.mean() - after.mean()
    assert (retained.low, retained.high) == pytest.approx((center - 1.966 * error, center + 1.966 * error), rel=0.05)
    assert retained.high - retained.low == pytest.approx(2 * 1.966 * error, rel=0.04), "of both means"
    assert retained.is_relative
    # Fieller: the margin at which the word begins to be kept is the end of the interval of the ratio of the means.
    ratio, reach = after.mean() / before.mean(), stats_quantile() / 20
    variances = np.cov(after, before)
    square = before.mean() ** 2 - reach**2 * variances[1, 1]
    linear = after.mean() * before.mean() - reach**2 * variances[0, 1]
    constant = after.mean() ** 2 - reach**2 * variances[0, 0]
    least = (linear - math.sqrt(linear**2 - square * constant)) / square
    assert least < ratio
    words = [
        non_inferiority(DISTINCT, before, after, Margins(distinct_2=1 - least + step), neutral=False).word
        for step in (-0.01, 0.01)
    ]
    assert words == ["not shown", "kept"]


def stats_quantile() -> float:
    """Return the 97.5 % quantile of Student's t with 399 degrees of freedom."""
    return 1.965927


@pytest.mark.parametrize(("name", "retained"), RETAINED.items())
def test_every_retained_metric_is_lost_in_its_harmful_direction_alone(name, retained) -> None:
    before, _ = pairs(0, 0.001)
    noise = np.random.default_rng(3).normal(scale=0.001, size=100)
    words = {
        change: non_inferiority(Metric(name), before, before * change + noise, Margins(), neutral=True).word
        for change in (0.7, 1.0, 1.3)
    }
    assert words[1.0] == "kept"
    assert words == {0.7: "lost", 1.0: "kept", 1.3: "kept"} | (
        {0.7: "kept", 1.3: "lost"} if retained.harmful == "rise" else {}
    )


def test_every_retained_metric_is_measured() -> None:
    assert set(RETAINED) <= {*METRICS, *CORPUS_METRICS, *SAMPLE_SET_METRICS, TEXT_PERPLEXITY}


def test_few_prompts_and_metrics_that_need_not_be_retained() -> None:
    before, after = pairs(0, 0.001, prompts=29)
    assert non_inferiority(ROUGE, before, after, Margins(), neutral=False).word == "not shown"
    assert non_inferiority(ROUGE, before[:1], after[:1], Margins(), neutral=False).low is None
    before, after = pairs(0, 0.001, prompts=30)
    assert non_inferiority(ROUGE, before, after, Margins(), neutral=False).word == "kept"
    thrice = [np.tile(values[:29], 3) for values in (before, after)]
    repeated = non_inferiority(ROUGE, *thrice, Margins(), neutral=False, groups=[*range(29)] * 3)
    assert repeated.word == "not shown"
    assert non_inferiority(Metric("tokens"), before, after, Margins(), neutral=False) is None
    assert non_inferiority(NEUTRAL, before, after, Margins(), neutral=False) is None
    assert non_inferiority(NEUTRAL, before, after, Margins(), neutral=True).word == "kept"


def test_a_comparison_has_words_only_where_there_are_margins() -> None:
    values = np.random.default_rng(2).random((2, 40, 1, 1))
    scores = {
        ROUGE: {"sft": values[0], "aligned": values[0]},
        Metric("tokens"): {"sft": values[0], "aligned": values[1]},
    }
    assert compare(scores, "sft", "aligned").find(ROUGE_L).non_inferiority is None
    compared = compare(scores, "sft", "aligned", margins=Margins())
    assert compared.find(ROUGE_L).non_inferiority.word == "kept"
    assert compared.find("tokens").non_inferiority is None


def test_the_sentence_names_what_was_kept_lost_and_not_shown() -> None:
    def difference(metric: Metric, word: str, *, margin: float, is_relative: bool):
        made = make_difference(metric, 0.5, 0.4, interval=(-0.2, 0.0))
        return dataclasses.replace(made, non_inferiority=NonInferiority(word, margin, is_relative, -0.1, 0.1))

    task = make_set("task", [difference(ROUGE, "not shown", margin=0.01, is_relative=False)])
    pooled = make_set("more", [difference(DISTINCT, "kept", margin=0.05, is_relative=True)])
    neutral = make_set("polite", [difference(NEUTRAL, "lost", margin=0.1, is_relative=True)], neutral=True)
    assert retention_sentence(make_results([neutral, task, pooled], judges=[])) == (
        "kept: distinct-2 on more (margin 5 %); lost: perplexity under the base on polite (margin 10 %); "
        "not shown: ROUGE-L on task (margin 0.01)"
    )
    assert retention_sentence(make_results([make_set("task", [])], judges=[])) is None


def judged(**falls: np.ndarray) -> dict:
    """Return scores of toxicity by judge, from falls (N,)."""
    return {
        Metric("toxicity", "lower", judge): {"sft": np.ones((fall.size, 1, 1)), "aligned": (1 - fall)[:, None, None]}
        for judge, fall in falls.items()
    }


def test_the_gap_is_the_difference_of_the_falls_paired_by_prompt() -> None:
    generator = np.random.default_rng(4)
    by_reward = generator.random(200)
    by_judge = by_reward - generator.normal(loc=0.1, scale=0.05, size=200)
    (gap,) = reward_gaps(judged(reward=by_reward, other=by_judge), "sft", "aligned")
    between = by_reward - by_judge
    half = 1.97 * between.std(ddof=1) / math.sqrt(200)
    assert (gap.judge, gap.prompts) == ("other", 200)
    assert (gap.fall_by_reward, gap.fall_by_judge) == pytest.approx((by_reward.mean(), by_judge.mean()))
    assert (gap.gap, gap.low, gap.high) == pytest.approx(
        (between.mean(), between.mean() - half, between.mean() + half), rel=0.02
    )
    assert reward_gaps(judged(other=by_judge), "sft", "aligned") == []
    (clustered,) = reward_gaps(judged(reward=by_reward, other=by_judge), "sft", "aligned", [*range(50)] * 4)
    assert clustered.prompts == 50


def test_neutral_sets_and_comparisons_without_margins_have_no_gap() -> None:
    scores = judged(reward=np.full(40, 0.4), other=np.full(40, 0.1))
    assert [gap.gap for gap in compare(scores, "sft", "aligned", margins=Margins()).gaps] == [pytest.approx(0.3)]
    assert compare(scores, "sft", "aligned", margins=Margins(), neutral=True).gaps == []
    assert compare(scores, "sft", "aligned").gaps == []


def with_gap(gap: RewardGap, judges: tuple[str, ...] = ("reward", "lexicon")) -> Results:
    """Return results on a set with this gap."""
    differences = [
        make_difference(Metric("toxicity", "lower", judge), 0.5, 0.1, "better", interval=(-0.5, -0.3))
        for judge in ("reward", "lexicon")
    ]
    made = make_set("task", differences)
    comparisons = [dataclasses.replace(c, gaps=[gap] if c.before == "sft" else []) for c in made.comparisons]
    return make_results([dataclasses.replace(made, comparisons=comparisons)], judges=judges)


@pytest.mark.parametrize(
    ("low", "prompts", "passes"), [(0.21, 100, False), (0.19, 100, True), (0.21, 29, True), (None, 1, True)]
)
def test_the_guard_fails_where_the_whole_interval_of_the_gap_is_above_the_limit(low, prompts, passes) -> None:
    assert guards.MAX_REWARD_GAP == 0.2
    gap = RewardGap("lexicon", 0.5, 0.25, 0.25, low, None if low is None else 0.3, prompts)
    (guard,) = [guard for guard in check_guards(with_gap(gap)) if guard.name == "gap"]
    assert guard.passed == passes
    assert guard.text.startswith(f"task: {describe_gap(gap)}")
    assert "toxicity fell by 0.500 according to the reward and by 0.250 according to lexicon" in guard.text


def test_a_judge_that_copies_the_reward_has_no_gap() -> None:
    gap = RewardGap("copy", 0.5, 0.5, 0.0, 0.0, 0.0, 100)
    results = with_gap(gap)
    assert list(gaps_by_set(results)) == []
    assert "gap" not in [guard.name for guard in check_guards(results)]


def test_that_an_effect_is_the_smallest_that_so_many_prompts_detect() -> None:
    generator = np.random.default_rng(5)
    noise = generator.normal(size=120)
    effect = minimal_detectable_effect(np.zeros(120), noise)
    assert effect == pytest.approx(2.8 * noise.std(ddof=1) / math.sqrt(120))
    assert prompts_needed(np.zeros(120), noise - noise.mean() + effect * 1.0001) == 120, "the formula, turned around"
    detected = 0
    for _ in range(2000):
        changes = generator.normal(loc=2.8 / math.sqrt(120), size=120)
        detected += abs(changes.mean()) > 1.98 * changes.std(ddof=1) / math.sqrt(120)
    assert detected / 2000 == pytest.approx(0.8, abs=0.04)
    seven = minimal_detectable_effect(np.zeros(120), noise, comparisons=7)
    assert seven == pytest.approx(effect * (2.69 + 0.84) / 2.8)
    thrice = minimal_detectable_effect(np.zeros(360), np.tile(noise, 3), groups=[*range(120)] * 3)
    assert thrice == pytest.approx(effect)
    assert minimal_detectable_effect(np.zeros(29), noise[:29]) is None
    assert minimal_detectable_effect(np.zeros(40), np.ones(40)) is None


FAST = [name for name in COVERAGE if "fall" not in name and "log-normal" not in name and not name.startswith("pooled")]


@pytest.mark.parametrize("name", [*FAST, "rate: 10 % rise, 30 % fall", "rate: 5 % fall"])
def test_intervals_cover_the_truth(name) -> None:
    assert 0.905 <= coverage(COVERAGE[name], 100, 250) <= 1, "0.95 within three standard errors"


def test_mcnemars_test_rejects_no_more_than_its_error() -> None:
    assert 0.02 < mcnemar_error(100, 2000, changed=0.5) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
