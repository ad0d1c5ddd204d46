"""The checking wrapper: what it lets through, and what the error says."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from workbench.errors import RewardError, UserError
from workbench.rewards.contract import check_polarity, checked, checked_judge
from workbench.rewards.registry import load_reward

TEXTS = ["first text", "second\ntext", "third text"]


def returning(answer):
    """A reward that always answers the same."""
    return lambda prompts, completions, **columns: answer


def score(answer):
    return checked(returning(answer), "fixed")(prompts=["p"] * 3, completions=TEXTS)


@pytest.mark.parametrize(
    "answer",
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
def test_numbers_of_any_kind_become_floats(answer):
    scores = score(answer)
    assert scores == [1.0, 2.0, 3.0]
    assert {type(value) for value in scores} == {float}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([1.0, math.nan, 1.0], ["row 1", "'second\\ntext'", "nan", "finite"]),
        ([1.0, 1.0, -math.inf], ["row 2", "'third text'", "-inf", "finite"]),
        (torch.tensor([math.inf, 0.0, 0.0]), ["row 0", "'first text'", "inf", "finite"]),
        ([10**400, 1, 1], ["row 0", "inf"]),
        ([1.0, 1.0, "0.5"], ["row 2", "'0.5'", "str", "not a number"]),
        ([1.0, True, 1.0], ["row 1", "True", "bool", "not a number"]),
        ([1.0, np.bool_(True), 1.0], ["row 1", "bool", "not a number"]),
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
    ],
)
def test_a_broken_answer_is_named_on_one_line(answer, said):
    with pytest.raises(RewardError) as caught:
        score(answer)
    message = str(caught.value)
    assert "\n" not in message
    for part in ["reward fixed", *said]:
        assert part in message


def test_a_long_text_is_shortened():
    with pytest.raises(RewardError) as caught:
        checked(returning([math.nan]), "fixed")(prompts=["p"], completions=["word " * 10_000])
    assert len(str(caught.value)) < 250


def test_the_reward_gets_prompts_completions_and_columns_by_name():
    seen = {}

    def trl_style(completions, **kwargs):
        seen.update(kwargs)
        return [0.0] * len(completions)

    reward = checked(trl_style, "trl")
    assert reward(["a", "b"], ["c", "d"], answer=[1, 2]) == [0.0, 0.0]
    assert seen == {"prompts": ["a", "b"], "answer": [1, 2]}
    assert reward.__name__ == "trl"


def test_no_texts_need_no_scores():
    assert checked(returning([]), "fixed")([], []) == []


@pytest.mark.parametrize("value", [-1e-9, 1.0000001, 5, math.nan, None])
def test_a_judge_stays_between_zero_and_one(value):
    with pytest.raises(RewardError, match="judge fixed, row 1, text 'b'"):
        checked_judge(lambda texts: [0.5, value], "fixed")(["a", "b"])


def test_a_judge_may_answer_both_ends():
    assert checked_judge(lambda texts: np.array([0, 1]), "fixed")(["a", "b"]) == [0.0, 1.0]


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
    assert checked(reward, "any")(["p"], ["c"], **columns) == [0.0]
    assert checked(reward, "any").terms(["p"], ["c"], **columns) == {"any": [0.0]}
    assert seen == columns


def broken(words: int) -> None:
    """A factory that fails."""
    raise FileNotFoundError(f"no list of\n{words} words")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("test_rewards:broken", {"words": 3}, "it cannot be made: FileNotFoundError: no list of 3 words"),
        ("lexicon", {"words": 5}, "lexicon: it cannot be made: TypeError"),
        ("lexicon", {"words": "idiot"}, "words is the text 'idiot'; give a list"),
        ("toxicity", {"model": 5}, "toxicity: it cannot be made: AttributeError"),
        ("combine", {"terms": [{"model": "length", "options": {1: 2}}]}, "combine: it cannot be made: TypeError"),
    ],
)
def test_a_factory_that_fails_is_one_line(model: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_reward(model, **options)
    assert "\n" not in str(caught.value)
