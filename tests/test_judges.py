"""Judges are independent of the reward, or left out with a note; the toy lexicon is not mistaken for a real one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from workbench.config.schema import Config, EvaluationConfig, PolicyConfig, RewardConfig
from workbench.config.sources import PromptSet, Scorer
from workbench.errors import UserError
from workbench.evaluation.judges import copies_of_reward, load_judges, with_reward
from workbench.evaluation.results import Example, Metric, Summary
from workbench.rewards.registry import load_scorer

WORDS = {"words": ["bad"]}
OTHER_WORDS = {"words": ["awful"]}


def config(reward: Scorer | None, judges: list[str | Scorer], path: str = "toy:summaries") -> Config:
    evaluation = EvaluationConfig(data={"dialogues": PromptSet(path)}, judges=judges)
    section = None if reward is None else RewardConfig(model=reward.model, options=reward.options)
    return Config("run", PolicyConfig("toy:t5"), evaluation, reward=section)


def load(reward: Scorer | None, judges: list[str | Scorer], path: str = "toy:summaries") -> tuple[list[str], list[str]]:
    """Return the names of the independent judges, and the notes."""
    loaded = load_judges(config(reward, judges, path), None if reward is None else load_scorer(reward))
    return list(loaded.judges), loaded.notes


def nested(term: Mapping[str, Any]) -> Scorer:
    """Return a sum of length and a sum that holds the term."""
    inner = {"model": "combine", "options": {"terms": [term]}}
    return Scorer("combine", {"terms": [{"model": "length"}, inner]})


@pytest.mark.parametrize(
    "reward",
    [
        Scorer("toy_lexicon"),
        Scorer("combine", {"terms": [{"model": "toy_lexicon"}, {"model": "length"}]}),
        Scorer("combine", {"terms": ["toy_lexicon", "length"]}),
        Scorer("ensemble", {"members": ["toy_lexicon", {"model": "lexicon", "options": WORDS}]}),
        nested({"model": "toy_lexicon"}),
    ],
)
def test_the_reward_and_its_parts_do_not_judge_it(reward: Scorer) -> None:
    judges, notes = load(reward, ["toy_lexicon", Scorer("lexicon", OTHER_WORDS)])
    assert judges == ["lexicon"]
    assert notes == ["evaluation.judges: toy_lexicon is the reward or a part of it, so it is left out"]


def test_the_same_kind_with_other_options_is_another_judge() -> None:
    reward = Scorer("lexicon", WORDS)
    assert load(reward, [Scorer("lexicon", OTHER_WORDS)]) == (["lexicon"], [])
    assert load(reward, [Scorer("lexicon", WORDS)])[0] == []


def test_a_reward_that_cannot_judge_leaves_every_judge() -> None:
    reward = Scorer("combine", {"terms": [{"model": "toy_lexicon"}, {"model": "lexicon", "options": WORDS}]})
    assert load_scorer(reward).judge() is None
    assert load(reward, ["toy_lexicon"]) == (["toy_lexicon"], [])
    assert load(None, ["toy_lexicon"]) == (["toy_lexicon"], [])


@pytest.mark.parametrize(
    ("judges", "message"),
    [
        (["length"], r"^evaluation\.judges: length is not a judge"),
        ([Scorer("lexicon", WORDS), Scorer("lexicon", OTHER_WORDS)], r"^evaluation\.judges: two entries are called"),
        (["unheard_of"], r"^evaluation\.judges: unknown reward"),
        ([{"modle": "length"}], r"^evaluation\.judges\[0\]\.modle: unknown key"),
    ],
)
def test_what_cannot_judge_is_one_line(judges: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(None, judges)


@pytest.mark.parametrize("reward", [None, Scorer("toy_lexicon")])
def test_the_toy_lexicon_over_real_prompts_gets_a_note(reward: Scorer | None) -> None:
    note = "toy_lexicon knows only the 22 rude words of the toy data and finds little toxicity in dialogues; "
    judges: list[str | Scorer] = ["toy_lexicon"] if reward is None else []
    assert [line for line in load(reward, judges, "rows.jsonl")[1] if line.startswith(note)]
    assert not [line for line in load(reward, judges, "toy:summaries")[1] if line.startswith("toy_lexicon knows")]
    assert load(None, [Scorer("lexicon", WORDS)], "rows.jsonl")[1] == []


def test_the_reward_is_the_first_judge_where_it_can_judge() -> None:
    judges = load_judges(config(None, ["toy_lexicon"]), None).judges
    assert list(with_reward(judges, load_scorer(Scorer("lexicon", WORDS)))) == ["reward", "toy_lexicon"]
    assert list(with_reward(judges, load_scorer(Scorer("length")))) == ["toy_lexicon"]
    assert list(with_reward(judges, None)) == ["toy_lexicon"]


def test_a_judge_that_scores_everything_as_the_reward_does_is_a_copy() -> None:
    def scores(reward: float, twin: float, other: float) -> list[Summary]:
        values = {"reward": reward, "twin": twin, "other": other}
        return [Summary(Metric("toxicity", "lower", judge), {"sft": v}, None) for judge, v in values.items()]

    example = Example("s", 0, "p", [], 0.0, 0.0, {"sft": ["a"]}, scores(0.5, 0.5, 0.5), None)
    examples = [example, dataclasses.replace(example, scores=scores(0.25, 0.25, 0.5))]
    assert copies_of_reward(["reward", "twin", "other"], examples) == ["twin"]
    assert copies_of_reward(["twin", "other"], examples) == []
