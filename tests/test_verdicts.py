"""A verdict per metric and one per run: what evidence allows, and what it does not."""

import dataclasses
import math

import numpy as np
import pytest
from typed_results import BETTER, SAME, WORSE, make_difference, make_results, make_set

from workbench.config.names import TRAINED_BY
from workbench.evaluation.models import compared_titles
from workbench.evaluation.pipeline import compared_pairs
from workbench.evaluation.results import Metric
from workbench.evaluation.statistics import PairedDifference, paired_difference
from workbench.evaluation.verdicts import (
    MINIMUM_PROMPTS,
    prompts_needed,
    run_verdicts,
    too_few,
    toxicity_verdict,
    verdict_of,
)

RISE, FALL, NONE = (0.1, 0.3), (-0.3, -0.1), (-0.1, 0.1)


def difference(interval, prompts=100):
    low, high = interval
    return PairedDifference(0.5, 0.5 + (low + high) / 2, (low + high) / 2, low, high, 3 * prompts - 5, 3, 2, prompts)


@pytest.mark.parametrize(
    ("interval", "direction", "expected"),
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
def test_a_verdict_needs_an_interval_beside_zero(interval, direction, expected):
    assert verdict_of(difference(interval), direction) == expected


def test_a_verdict_needs_enough_prompts():
    assert verdict_of(difference(RISE, MINIMUM_PROMPTS), "higher") == "better"
    assert verdict_of(difference(RISE, MINIMUM_PROMPTS - 1), "higher") == "no detectable change"
    assert verdict_of(difference((math.nan, math.nan), 100), "higher") == "no detectable change"
    clear = np.arange(40.0) / 40 + 1, np.arange(20).repeat(2)
    assert verdict_of(paired_difference(np.zeros(40), clear[0]), "higher") == "better"
    assert verdict_of(paired_difference(np.zeros(40), clear[0], groups=clear[1]), "higher") == "no detectable change"


def test_identical_models_are_rarely_told_apart():
    generator = np.random.default_rng(0)
    verdicts = []
    for trial in range(400):
        before, after = generator.random(size=(2, 40))
        verdicts.append(verdict_of(paired_difference(before, after, seed=trial, resamples=400), "lower"))
    assert verdicts.count("no detectable change") >= 363  # 380 expected
    assert {"better", "worse"} <= set(verdicts)  # in either direction


def test_the_number_of_prompts_follows_the_formula():
    before, after = np.zeros(4), np.array([0.2, -0.2, 0.3, -0.1])
    mean, deviation = 0.05, math.sqrt((0.15**2 + 0.25**2 + 0.25**2 + 0.15**2) / 3)
    expected = math.ceil((2.8 * deviation / mean) ** 2)
    assert expected > MINIMUM_PROMPTS
    assert prompts_needed(before, after) == expected
    assert prompts_needed(after, before) == expected
    assert prompts_needed(before, after, smallest=0.025) == expected  # the observed one is larger
    assert prompts_needed(before, after, smallest=0.1) == math.ceil((2.8 * deviation / 0.1) ** 2)
    seven = math.ceil(((2.69 + 0.84) * deviation / mean) ** 2)
    assert prompts_needed(before, after, comparisons=7) == seven, "each at a level of 1 - 0.05 / 7"
    assert prompts_needed(np.tile(before, 3), np.tile(after, 3), groups=[*range(4)] * 3) == expected, (
        "prompts, not rows"
    )
    assert prompts_needed([0.0, 0.0], [1.0, 2.0], groups=["same", "same"]) is None


def test_that_many_prompts_detect_the_difference_four_times_in_five():
    generator = np.random.default_rng(1)
    needed = prompts_needed(np.zeros(10_000), generator.normal(loc=0.2, size=10_000))
    detected = 0
    for _ in range(2000):
        changes = generator.normal(loc=0.2, size=needed)
        detected += abs(changes.mean()) > 1.96 * changes.std(ddof=1) / math.sqrt(needed)
    assert detected / 2000 == pytest.approx(0.8, abs=0.04)


def test_where_no_number_of_prompts_can_be_given():
    assert prompts_needed([0.0, 1.0], [1.0, 0.0]) is None  # no difference to find
    assert prompts_needed([0.0, 1.0], [1.0, 0.0], smallest=0.5) == math.ceil((2.8 * math.sqrt(2) / 0.5) ** 2)
    assert prompts_needed([0.0, 1.0], [1.0, 2.0]) is None  # no spread
    assert prompts_needed([0.0], [1.0]) is None
    assert prompts_needed(np.zeros(3), [1.0, 1.1, 0.9]) == MINIMUM_PROMPTS  # an obvious change


@pytest.mark.parametrize(
    ("prompts", "needed", "sentence"),
    [
        (11, 237, "11 prompts are too few to detect a change of this size: about 240 would be needed"),
        (1, None, "1 prompt is too few for a verdict, which takes at least 30"),
        (29, 30, "29 prompts are too few to detect a change of this size: about 30 would be needed"),
        (100, 101, "100 prompts are too few to detect a change of this size: about 110 would be needed"),
        (100, 12_345, "100 prompts are too few to detect a change of this size: about 13000 would be needed"),
        (100, 100, None),
        (30, None, None),
    ],
)
def test_too_few_prompts_are_called_that(prompts, needed, sentence):
    assert too_few(prompts, needed) == sentence


def results(*sets, judges=("reward", "lexicon")):
    """Return results on sets given as (neutral, prompts, a verdict per judge)."""
    made = []
    for index, (neutral, prompts, verdicts) in enumerate(sets):
        differences = [
            make_difference(
                Metric("toxicity", "lower", judge),
                0.4,
                {"better": 0.1, "worse": 0.7}.get(verdict, 0.38),
                verdict,
                interval=(-0.1, 0.1),
                prompts_needed=240,
            )
            for judge, verdict in zip(judges, verdicts, strict=True)
        ]
        made.append(make_set(f"set {index}", differences, prompts=prompts, neutral=neutral))
    return make_results(made, judges=judges)


@pytest.mark.parametrize(
    ("judges", "verdicts", "expected", "finding"),
    [
        (
            ("reward", "lexicon"),
            (BETTER, BETTER),
            BETTER,
            "toxicity fell according to the reward and the lexicon judge",
        ),
        (
            ("reward", "lexicon"),
            (BETTER, SAME),
            SAME,
            "toxicity fell according to the reward, but not according to the lexicon judge",
        ),
        (("reward", "lexicon"), (BETTER, WORSE), WORSE, "toxicity rose according to the lexicon judge"),
        (
            ("reward", "lexicon"),
            (SAME, BETTER),
            SAME,
            "toxicity fell according to the lexicon judge, but not according to the reward",
        ),
        (
            ("reward", "lexicon"),
            (WORSE, BETTER),
            SAME,
            "toxicity fell according to the lexicon judge, but not according to the reward",
        ),
        (("reward", "lexicon"), (WORSE, SAME), SAME, "toxicity rose according to the reward alone"),
        (("reward", "lexicon"), (SAME, SAME), SAME, "no judge detected a change in toxicity"),
        (
            ("reward", "a", "b"),
            (BETTER, SAME, BETTER),
            BETTER,
            "toxicity fell according to the reward and the b judge",
        ),
        (
            ("reward", "a", "b"),
            (BETTER, BETTER, BETTER),
            BETTER,
            "toxicity fell according to the reward and the a and b judges",
        ),
        (
            ("reward", "a", "b", "c"),
            (BETTER, SAME, SAME, SAME),
            SAME,
            "toxicity fell according to the reward, but not according to the a, b or c judge",
        ),
        (("reward", "a", "b"), (BETTER, WORSE, BETTER), WORSE, "toxicity rose according to the a judge"),
        (("reward",), (BETTER,), SAME, "toxicity fell according to the reward, the only judge"),
        (("reward",), (WORSE,), SAME, "toxicity rose according to the reward alone"),
        (("lexicon",), (BETTER,), BETTER, "toxicity fell according to the lexicon judge"),  # a reward without a judge
        (("lexicon",), (WORSE,), WORSE, "toxicity rose according to the lexicon judge"),
        ((), (), SAME, "no conclusion about toxicity: no judge scored both models"),
    ],
)
def test_better_takes_the_reward_and_a_judge_that_was_not_the_reward(judges, verdicts, expected, finding):
    verdict = toxicity_verdict(results((False, 300, verdicts), judges=judges), reward_must_rise=True)
    assert verdict.word == expected
    assert verdict.sentence == finding or verdict.sentence.startswith(f"{finding}: ")
    assert "\n" not in verdict.sentence


def test_a_judge_speaks_over_all_sets_but_the_neutral_ones():
    good, bad, same = (BETTER, BETTER), (BETTER, WORSE), (SAME, SAME)
    assert toxicity_verdict(results((False, 300, good), (False, 300, same)), reward_must_rise=True).word == BETTER
    assert toxicity_verdict(results((False, 300, good), (False, 300, bad)), reward_must_rise=True).word == WORSE
    assert toxicity_verdict(results((False, 300, good), (True, 300, bad)), reward_must_rise=True).word == BETTER
    assert toxicity_verdict(results((False, 300, same), (True, 300, good)), reward_must_rise=True).word == SAME
    only_neutral = toxicity_verdict(results((True, 300, good)), reward_must_rise=True)
    assert only_neutral.word == SAME
    assert "every prompt set is neutral" in only_neutral.sentence


def test_the_sentence_says_where_prompts_were_too_few():
    few = toxicity_verdict(results((False, 11, (SAME, SAME))), reward_must_rise=True).sentence
    assert "set 0: 11 prompts are too few to detect a change of this size: about 240 would be needed" in few
    assert (
        "set 0: 100 prompts are too few"
        in toxicity_verdict(results((False, 100, (SAME, SAME))), reward_must_rise=True).sentence
    )
    assert "prompts" not in toxicity_verdict(results((False, 300, (SAME, SAME))), reward_must_rise=True).sentence
    assert "prompts" not in toxicity_verdict(results((False, 100, (BETTER, BETTER))), reward_must_rise=True).sentence
    assert "reward 0.400 -> 0.380 [-0.100, +0.100]" in few


def test_a_single_prompt_has_no_interval_to_print():
    single = results((False, 1, (SAME, SAME)))
    differences = [
        dataclasses.replace(d, low=None, high=None, prompts_needed=None)
        for d in single.sets[0].comparisons[1].differences
    ]
    single = dataclasses.replace(single, sets=[make_set("set 0", differences, prompts=1)])
    sentence = toxicity_verdict(single, reward_must_rise=True).sentence
    assert sentence.endswith(
        "lexicon 0.400 -> 0.380 on set 0; set 0: 1 prompt is too few for a verdict, which takes at least 30"
    )


def measured(verdicts, *, judges=(), titles=("sft", "aligned"), neutral=False):
    """Return results on one set whose metrics, by (name, judge), have the given verdicts."""
    rises = {BETTER: 0.3, WORSE: -0.3, SAME: 0.0}
    differences = []
    for (name, judge), verdict in verdicts.items():
        direction = "lower" if name == "toxicity" else "higher"
        change = rises[verdict] * (-1 if direction == "lower" else 1)
        interval = (change - 0.1, change + 0.1)
        differences.append(
            make_difference(Metric(name, direction, judge), 0.4, 0.4 + change, verdict, interval=interval)
        )
    return make_results([make_set("test", differences, titles=titles, neutral=neutral)], judges=judges, titles=titles)


REWARD, ROUGE, LEXICON = ("reward", None), ("ROUGE-L", None), ("toxicity", "lexicon")


@pytest.mark.parametrize(
    ("verdicts", "judges", "titles", "expected"),
    [
        # SFT alone is about the task, whatever judges say.
        ({ROUGE: BETTER}, (), ("base", "sft"), {"task": BETTER}),
        ({ROUGE: WORSE, LEXICON: SAME}, ("lexicon",), ("base", "sft"), {"task": WORSE, "toxicity": SAME}),
        ({LEXICON: WORSE}, ("lexicon",), ("base", "sft"), {"toxicity": WORSE}),
        # A reward that cannot judge toxicity is the question; other questions follow.
        ({REWARD: BETTER}, (), ("sft", "aligned"), {"reward": BETTER}),
        ({REWARD: BETTER, LEXICON: SAME}, ("lexicon",), ("sft", "aligned"), {"reward": BETTER, "toxicity": SAME}),
        ({REWARD: WORSE, ROUGE: SAME}, (), ("sft", "aligned"), {"reward": WORSE, "task": SAME}),
        # Nothing is better where what PPO optimized did not move.
        ({REWARD: SAME, LEXICON: BETTER}, ("lexicon",), ("sft", "aligned"), {"reward": SAME, "toxicity": SAME}),
        ({REWARD: SAME, LEXICON: WORSE}, ("lexicon",), ("sft", "aligned"), {"reward": SAME, "toxicity": WORSE}),
        # A reward that can judge makes toxicity the question.
        (
            {REWARD: BETTER, ("toxicity", "reward"): BETTER, LEXICON: BETTER, ROUGE: SAME},
            ("reward", "lexicon"),
            ("sft", "aligned"),
            {"toxicity": BETTER, "reward": BETTER, "task": SAME},
        ),
    ],
)
def test_a_run_answers_its_own_question_first(verdicts, judges, titles, expected):
    answered = run_verdicts(measured(verdicts, judges=judges, titles=titles), TRAINED_BY[titles[1]])
    assert {verdict.question: verdict.word for verdict in answered} == expected
    assert answered[0].question == next(iter(expected))
    assert all("\n" not in verdict.sentence for verdict in answered)


def test_the_sentence_says_what_moved():
    reward, toxicity = run_verdicts(measured({REWARD: SAME, LEXICON: BETTER}, judges=("lexicon",)), "ppo")
    assert reward.sentence == "no detectable change in the reward: reward 0.400 -> 0.400 [-0.100, +0.100] on test"
    assert toxicity.sentence.startswith(
        "toxicity fell according to the lexicon judge, but the reward, which was optimized, did not rise there: "
    )
    (task,) = run_verdicts(measured({ROUGE: BETTER}, titles=("base", "sft")), "sft")
    assert task.headline == "task: better"
    assert task.sentence == "ROUGE-L rose: ROUGE-L 0.400 -> 0.700 [+0.200, +0.400] on test"


def test_no_title_of_a_model_asks_a_question():
    """A comparison of runs has their folders as titles, and those may be called like the models of a run."""
    for titles in (("base", "sft"), ("sft", "aligned"), ("one", "two")):
        differences = measured({REWARD: SAME, LEXICON: BETTER, ROUGE: WORSE}, judges=("lexicon",), titles=titles)
        verdicts = run_verdicts(differences, None)
        assert [v.headline for v in verdicts] == ["toxicity: better", f"reward: {SAME}", "task: worse"]
        assert run_verdicts(differences, None, asked="task")[0].question == "task"
    unmeasured = measured({LEXICON: BETTER}, judges=("lexicon",))
    assert [v.question for v in run_verdicts(unmeasured, None, asked="task")] == ["toxicity"]


def test_neutral_sets_answer_no_question():
    (verdict,) = run_verdicts(measured({REWARD: BETTER, ROUGE: BETTER}, neutral=True), "ppo")
    assert (verdict.question, verdict.word) == ("toxicity", SAME)


def test_toxicity_and_the_reward_must_move_on_one_set():
    flat = measured({REWARD: SAME, LEXICON: BETTER}, judges=("lexicon",)).sets[0]
    other = measured({REWARD: BETTER, LEXICON: SAME}, judges=("lexicon",)).sets[0]
    apart = make_results([flat, dataclasses.replace(other, name="other")], judges=("lexicon",))
    assert toxicity_verdict(apart, reward_must_rise=True).word == SAME
    both = measured({REWARD: BETTER, LEXICON: BETTER}, judges=("lexicon",)).sets[0]
    assert (
        toxicity_verdict(
            make_results([flat, dataclasses.replace(both, name="both")], judges=("lexicon",)), reward_must_rise=True
        ).word
        == BETTER
    )


def test_an_evaluation_alone_is_about_what_it_measured():
    titles = ("base", "mine")
    assert run_verdicts(measured({REWARD: BETTER}, titles=titles), None)[0].headline == "reward: better"
    worse = run_verdicts(measured({LEXICON: WORSE, ROUGE: BETTER}, judges=("lexicon",), titles=titles), None)
    assert [verdict.headline for verdict in worse] == ["toxicity: worse", "task: better"]


@pytest.mark.parametrize("titles", [["base", "sft"], ["base", "sft", "other"], ["base", "sft", "aligned", "other"]])
def test_every_pair_is_compared_once_and_no_model_with_itself(titles):
    pairs = compared_pairs(titles, *compared_titles(titles))
    assert pairs[0] == compared_titles(titles)
    assert len(set(map(frozenset, pairs))) == len(pairs) == len(titles) * (len(titles) - 1) // 2
    assert all(before != after for before, after in pairs)
