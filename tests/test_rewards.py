"""The checking wrapper: what it lets through, and what the error says."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from workbench.errors import RewardError, UserError
from workbench.rewards.contract import FULLY_COMPARED_ROWS, CheckedJudge, CheckedReward
from workbench.rewards.polarity import check_polarity
from workbench.rewards.registry import load_reward
from workbench.rewards.values import check_scores

TEXTS = ["first text", "second\ntext", "third text"]


class Manifold:
    """A value whose repr has several lines."""

    def __repr__(self):
        return "Manifold\nover two lines"


def returning(values):
    """A reward that always returns the same."""
    return lambda prompts, completions, **columns: values


def score(values):
    return CheckedReward(returning(values), "fixed")(prompts=["p"] * 3, completions=TEXTS)


@pytest.mark.parametrize(
    "values",
    [
        [1, 2.0, 3],
        (1.0, 2.0, 3.0),
        np.array([1, 2, 3]),
        np.array([1, 2, 3], dtype=np.float16),
        torch.tensor([1, 2, 3]),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16, requires_grad=True),
        [np.float32(1), torch.tensor(2.0), Fraction(3)],
    ],
    ids=["list", "tuple", "int array", "half array", "int tensor", "bfloat16 tensor", "scalars"],
)
def test_numbers_of_any_kind_become_floats(values):
    scores = score(values)
    assert check_scores(values, TEXTS, "fixed") == scores
    assert scores == [1.0, 2.0, 3.0]
    assert {type(value) for value in scores} == {float}


@pytest.mark.parametrize("values", [[True, False, 1], np.array([1, 0, 1]) > 0, torch.tensor([1, 0, 1]) > 0])
def test_bools_are_numbers(values):
    assert score(values) == [1.0, 0.0, 1.0]
    assert score(list(values)) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([1.0, math.nan, 1.0], ["row 1", "'second\\ntext'", "nan", "finite"]),
        ([1.0, 1.0, -math.inf], ["row 2", "'third text'", "-inf", "finite"]),
        (torch.tensor([math.inf, 0.0, 0.0]), ["row 0", "'first text'", "inf", "finite"]),
        ([10**400, 1, 1], ["row 0", "inf"]),
        ([1.0, 1.0, "0.5"], ["row 2", "'0.5'", "str", "not a number"]),
        ([1.0, 1j, 1.0], ["row 1", "complex", "not a number"]),
        ([1.0, None, 1.0], ["row 1", "None", "not applicable"]),
        (torch.ones(3, 1), ["row 0", "[1.0]", "not a number"]),
        ([1.0, 1.0], ["2 numbers for 3 texts", "row 2", "'third text'"]),
        ([1.0] * 4, ["4 numbers for 3 texts", "row 2", "'third text'"]),
        ([], ["0 numbers for 3 texts", "row 0", "'first text'"]),
        (1.0, ["1.0", "list"]),
        (torch.tensor(1.0), ["tensor(1.)", "list"]),
        (None, ["None", "list"]),
        ({"scores": [1.0]}, ["{'scores': [1.0]}", "list"]),
        (Manifold(), ["Manifold over two lines", "list"]),
    ],
)
def test_a_broken_value_is_named_on_one_line(values, parts):
    with pytest.raises(RewardError) as caught:
        score(values)
    message = str(caught.value)
    assert "\n" not in message
    for part in ["reward fixed", *parts]:
        assert part in message


def test_a_long_text_is_shortened():
    with pytest.raises(RewardError) as caught:
        CheckedReward(returning([math.nan]), "fixed")(prompts=["p"], completions=["word " * 10_000])
    assert len(str(caught.value)) < 250


def test_the_reward_gets_prompts_completions_and_columns_by_name():
    seen = {}

    def trl_style(completions, **kwargs):
        seen.update(kwargs)
        return [0.0] * len(completions)

    reward = CheckedReward(trl_style, "trl")
    assert reward(["a", "b"], ["c", "d"], reference=[1, 2]) == [0.0, 0.0]
    in_addition = {"trainer_state", "log_metric", "log_extra"}  # as in TRL
    assert {name: seen[name] for name in seen.keys() - in_addition} == {"prompts": ["a", "b"], "reference": [1, 2]}
    assert reward.__name__ == "trl"


def test_no_texts_need_no_scores():
    assert CheckedReward(returning([]), "fixed")([], []) == []


@pytest.mark.parametrize("value", [-1e-9, 1.0000001, 5, math.nan, None])
def test_a_judge_stays_between_zero_and_one(value):
    with pytest.raises(RewardError, match="judge fixed, row 1, text 'b'"):
        CheckedJudge(lambda texts: [0.5, value], "fixed")(["a", "b"])


def test_a_judge_may_return_both_ends():
    assert CheckedJudge(lambda texts: np.array([0, 1]), "fixed")(["a", "b"]) == [0.0, 1.0]


@pytest.mark.parametrize(("polite", "rude"), [(0.0, 0.0), (-1.5, 2.25)])
def test_polarity_refuses_a_reward_that_does_not_prefer_the_polite_sentence(polite, rude):
    with pytest.raises(RewardError) as caught:
        check_polarity(returning([polite, rude]), "thank you", "you idiot", "backwards")
    for part in ("backwards", "thank you", "you idiot", f"{polite:g}", f"{rude:g}"):
        assert part in str(caught.value)


def test_polarity_accepts_the_right_order():
    check_polarity(lambda prompts, completions: [-text.count("idiot") for text in completions], "thanks", "idiot", "x")


def test_a_column_may_have_any_name() -> None:
    seen = {}

    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        seen.update(columns)
        return [0.0] * len(completions)

    columns = {"self": [1], "name": [2], "reward": [3]}
    assert CheckedReward(reward, "any")(["p"], ["c"], **columns) == [0.0]
    assert CheckedReward(reward, "any").terms(["p"], ["c"], **columns) == {"any": [0.0]}
    assert {name: seen[name] for name in columns} == columns


class Summed:
    """A reward of two terms, which sums them with a factor that is 1 in an honest reward."""

    def __init__(self, factor=lambda text: 1.0):
        self.factor = factor

    def __call__(self, prompts, completions, **columns):
        return [
            self.factor(text) * (len(text) + weight) for text, weight in zip(completions, columns["w"], strict=True)
        ]

    def terms(self, prompts, completions, **columns):
        return {"letters": [len(text) for text in completions], "weight": columns["w"]}


def test_the_score_is_the_sum_of_the_terms_for_ppo_and_evaluation():
    reward = CheckedReward(Summed(lambda text: 1 + 1e-6), "honest")
    terms = reward.terms(["p"] * 2, ["ab", "c"], w=[0.5, 1.5])
    assert terms == {"letters": [2.0, 1.0], "weight": [0.5, 1.5]}
    assert reward(["p"] * 2, ["ab", "c"], w=[0.5, 1.5]) == [2.5, 2.5]
    assert reward([], [], w=[]) == []


@pytest.mark.parametrize("method", ["__call__", "terms"])
def test_terms_that_do_not_sum_to_the_score_are_refused(method):
    reward = CheckedReward(Summed(lambda text: 1.0 if len(text) < 3 else 1.01), "lying")
    with pytest.raises(RewardError) as caught:
        getattr(reward, method)(["p"] * 3, ["ab", "c", "long\ntext"], w=[1.0, 2.0, 3.0])
    message = str(caught.value)
    assert "\n" not in message
    for part in ("reward lying, row 2", r"text 'long\ntext'", "(letters 9, weight 3)", "sum to 12", "score is 12.12"):
        assert part in message


def test_after_many_rows_one_in_rotation_is_compared_so_that_no_row_lies_for_long():
    seen = []
    lies = set()

    def factor(text):
        seen.append(text)
        return 2.0 if text in lies else 1.0

    reward, texts = CheckedReward(Summed(factor), "late"), [f"text {row}" for row in range(8)]
    batch = (["p"] * 8, texts)
    for _ in range(FULLY_COMPARED_ROWS // 8):
        reward(*batch, w=[1.0] * 8)
    assert seen[-8:] == texts
    seen.clear()
    for _ in range(8):
        reward(*batch, w=[1.0] * 8)
    assert sorted(seen) == texts
    lies.add("text 3")

    def eight_batches():
        for _ in range(8):
            reward(*batch, w=[1.0] * 8)

    with pytest.raises(RewardError, match="reward late, row 3, text 'text 3'"):
        eight_batches()


def test_a_reward_offers_a_judge_or_none():
    class Judging:
        def __init__(self, judge):
            self.offer = judge

        def __call__(self, prompts, completions, **columns):
            return [0.0] * len(completions)

        def judge(self):
            if self.offer is ZeroDivisionError:
                raise ZeroDivisionError("no judge")
            return self.offer

    assert CheckedReward(returning([]), "plain").judge() is None
    assert CheckedReward(Judging(None), "none").judge() is None
    judge = CheckedReward(Judging(lambda texts: [2.0] * len(texts)), "wild").judge()
    with pytest.raises(RewardError, match=r"judge wild, row 0, text 'a': it returned 2.0; toxicity must be"):
        judge(["a"])
    with pytest.raises(RewardError, match=r"reward number: judge\(\) returned 3; it must return a judge or None"):
        CheckedReward(Judging(3), "number").judge()
    with pytest.raises(RewardError, match=r"reward broken: judge\(\) failed with ZeroDivisionError: no judge"):
        CheckedReward(Judging(ZeroDivisionError), "broken").judge()


def broken(words: int) -> None:
    """A factory that fails."""
    raise FileNotFoundError(f"no list of\n{words} words")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("test_rewards:broken", {"words": 3}, "it cannot be built: FileNotFoundError: no list of 3 words"),
        ("lexicon", {"words": 5}, "lexicon: words is 5; use a list of words"),
        ("lexicon", {"words": "idiot"}, "words is the string 'idiot'; use a list"),
        ("lexicon", {}, "lexicon: words is empty; list at least one word, or use toy_lexicon"),
        ("toxicity", {"model": 5}, "toxicity: it cannot be built: AttributeError"),
        (
            "combine",
            {"terms": [{"model": "length", "options": {1: 2}}]},
            r"options.terms\[0\].options: {1: 2} must be a mapping of keyword arguments",
        ),
    ],
)
def test_a_factory_that_fails_is_one_line(model: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_reward(model, **options)
    assert "\n" not in str(caught.value)
