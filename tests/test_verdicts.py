"""One word a metric and one a run: what evidence allows, and what it does not."""

import math

import numpy as np
import pytest

from workbench.evaluation.statistics import PairedDifference, paired_difference
from workbench.evaluation.verdicts import MINIMUM_PROMPTS, overall, prompts_needed, spread, too_few, word

RISE, FALL, NONE = (0.1, 0.3), (-0.3, -0.1), (-0.1, 0.1)


def difference(interval, prompts=100):
    low, high = interval
    return PairedDifference(0.5, 0.5 + (low + high) / 2, (low + high) / 2, low, high, prompts - 5, 3, 2)


@pytest.mark.parametrize(
    ("interval", "better", "expected"),
    [
        (RISE, "higher", "better"),
        (RISE, "lower", "worse"),
        (FALL, "higher", "worse"),
        (FALL, "lower", "better"),
        (NONE, "higher", "no detectable change"),
        ((0.0, 0.2), "higher", "no detectable change"),
        ((-0.2, 0.0), "higher", "no detectable change"),
        (RISE, None, None),
        (NONE, None, None),
    ],
)
def test_a_word_needs_an_interval_beside_zero(interval, better, expected):
    assert word(difference(interval), better) == expected


def test_a_word_needs_enough_prompts():
    assert word(difference(RISE, MINIMUM_PROMPTS), "higher") == "better"
    assert word(difference(RISE, MINIMUM_PROMPTS - 1), "higher") == "no detectable change"
    assert word(difference((math.nan, math.nan), 100), "higher") == "no detectable change"


def test_identical_models_are_rarely_told_apart():
    generator = np.random.default_rng(0)
    words = []
    for trial in range(200):
        before, after = generator.random(size=(2, 40))
        words.append(word(paired_difference(before, after, seed=trial, resamples=400), "lower"))
    assert words.count("no detectable change") >= 180  # 190 expected
    assert {"better", "worse"} <= set(words)  # and neither side is deaf


def test_the_number_of_prompts_follows_the_formula():
    before, after = np.zeros(4), np.array([0.2, -0.2, 0.3, -0.1])
    mean, deviation = 0.05, math.sqrt((0.15**2 + 0.25**2 + 0.25**2 + 0.15**2) / 3)
    expected = math.ceil((2.8 * deviation / mean) ** 2)
    assert expected > MINIMUM_PROMPTS
    assert prompts_needed(before, after) == expected
    assert prompts_needed(after, before) == expected
    assert prompts_needed(before, after, smallest=0.025) == expected  # the observed one is larger
    assert prompts_needed(before, after, smallest=0.1) == math.ceil((2.8 * deviation / 0.1) ** 2)


def test_that_many_prompts_detect_the_difference_four_times_in_five():
    generator = np.random.default_rng(1)
    needed = prompts_needed(np.zeros(10_000), generator.normal(loc=0.2, size=10_000))
    found = 0
    for _ in range(2000):
        changes = generator.normal(loc=0.2, size=needed)
        found += abs(changes.mean()) > 1.96 * changes.std(ddof=1) / math.sqrt(needed)
    assert found / 2000 == pytest.approx(0.8, abs=0.04)


def test_where_no_number_of_prompts_can_be_given():
    assert prompts_needed([0.0, 1.0], [1.0, 0.0]) is None  # no difference to find
    assert prompts_needed([0.0, 1.0], [1.0, 0.0], smallest=0.5) == math.ceil((2.8 * math.sqrt(2) / 0.5) ** 2)
    assert prompts_needed([0.0, 1.0], [1.0, 2.0]) is None  # no spread
    assert prompts_needed([0.0], [1.0]) is None
    assert prompts_needed(np.zeros(3), [1.0, 1.1, 0.9]) == MINIMUM_PROMPTS  # an obvious change


@pytest.mark.parametrize(
    ("prompts", "needed", "sentence"),
    [
        (11, 237, "11 prompts are no evidence: about 240 would be needed to see a change of this size"),
        (1, None, "1 prompt is no evidence: a verdict takes at least 30"),
        (29, 30, "29 prompts are no evidence: about 30 would be needed to see a change of this size"),
        (100, 101, "100 prompts are too few: about 110 would be needed to see a change of this size"),
        (100, 12_345, "100 prompts are too few: about 13000 would be needed to see a change of this size"),
        (100, 100, None),
        (30, None, None),
    ],
)
def test_too_few_prompts_are_called_that(prompts, needed, sentence):
    assert too_few(prompts, needed) == sentence


def test_spread_over_seeds():
    assert spread([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, math.sqrt(7 / 3)))
    assert spread([0.5]) == (0.5, None)


def results(*sets, judges=("reward", "lexicon")):
    """results.json of sets given as (neutral, prompts, a verdict per judge)."""
    found = {}
    for index, (neutral, prompts, words) in enumerate(sets):
        comparison = {
            f"toxicity ({judge})": {
                "mean_before": 0.4,
                "mean_after": {"better": 0.1, "worse": 0.7}.get(said, 0.38),
                "low": -0.1,
                "high": 0.1,
                "verdict": said,
                "prompts_needed": 240,
            }
            for judge, said in zip(judges, words, strict=True)
        }
        found[f"set {index}"] = {
            "neutral": neutral,
            "prompts": prompts,
            "metrics": {},
            "comparisons": {"aligned - sft": comparison, "aligned - base": {}},
        }
    return {"before": "sft", "after": "aligned", "reward": "r", "judges": list(judges), "sets": found}


BETTER, WORSE, SAME = "better", "worse", "no detectable change"


@pytest.mark.parametrize(
    ("judges", "words", "expected", "said"),
    [
        (("reward", "lexicon"), (BETTER, BETTER), BETTER, "fell by the reward and lexicon"),
        (("reward", "lexicon"), (BETTER, SAME), SAME, "fell by the reward alone, not by lexicon"),
        (("reward", "lexicon"), (BETTER, WORSE), WORSE, "rose by lexicon"),
        (("reward", "lexicon"), (SAME, BETTER), SAME, "fell by lexicon, but not by the reward"),
        (("reward", "lexicon"), (WORSE, BETTER), SAME, "fell by lexicon, but not by the reward"),
        (("reward", "lexicon"), (WORSE, SAME), SAME, "rose by the reward alone"),
        (("reward", "lexicon"), (SAME, SAME), SAME, "no judge saw toxicity change"),
        (("reward", "a", "b"), (BETTER, SAME, BETTER), BETTER, "fell by the reward and b"),
        (("reward", "a", "b"), (BETTER, WORSE, BETTER), WORSE, "rose by a"),
        (("reward",), (BETTER,), SAME, "alone, and no other judge was given"),
        (("reward",), (WORSE,), SAME, "rose by the reward alone"),
        (("lexicon",), (BETTER,), BETTER, "fell by lexicon"),  # a reward that cannot judge
        (("lexicon",), (WORSE,), WORSE, "rose by lexicon"),
        ((), (), SAME, "no judge of toxicity was given"),
    ],
)
def test_better_takes_the_reward_and_a_judge_that_was_not_the_reward(judges, words, expected, said):
    verdict = overall(results((False, 300, words), judges=judges))
    assert verdict["word"] == expected
    assert said in verdict["sentence"]
    assert "\n" not in verdict["sentence"]


def test_a_judge_speaks_over_all_sets_but_the_neutral_ones():
    good, bad, same = (BETTER, BETTER), (BETTER, WORSE), (SAME, SAME)
    assert overall(results((False, 300, good), (False, 300, same)))["word"] == BETTER
    assert overall(results((False, 300, good), (False, 300, bad)))["word"] == WORSE
    assert overall(results((False, 300, good), (True, 300, bad)))["word"] == BETTER
    assert overall(results((False, 300, same), (True, 300, good)))["word"] == SAME
    only_neutral = overall(results((True, 300, good)))
    assert only_neutral["word"] == SAME
    assert "every prompt set is neutral" in only_neutral["sentence"]


def test_the_sentence_says_where_prompts_were_too_few():
    few = overall(results((False, 11, (SAME, SAME))))["sentence"]
    assert "set 0: 11 prompts are no evidence: about 240 would be needed" in few
    assert "set 0: 100 prompts are too few" in overall(results((False, 100, (SAME, SAME))))["sentence"]
    assert "prompts" not in overall(results((False, 300, (SAME, SAME))))["sentence"]
    assert "prompts" not in overall(results((False, 100, (BETTER, BETTER))))["sentence"]
    assert "reward 0.400 -> 0.380 [-0.100, +0.100]" in few


def test_a_single_prompt_has_no_interval_to_print():
    single = results((False, 1, (SAME, SAME)))
    for comparison in single["sets"]["set 0"]["comparisons"]["aligned - sft"].values():
        comparison |= {"low": None, "high": None, "prompts_needed": None}
    sentence = overall(single)["sentence"]
    assert sentence.endswith(
        "lexicon 0.400 -> 0.380 on set 0; set 0: 1 prompt is no evidence: a verdict takes at least 30"
    )
