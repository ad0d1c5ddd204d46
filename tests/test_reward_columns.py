"""What rewards and metrics need from the data is checked in the plan, before anything trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_runs import CHAIN, drop, small

from reward_models.combine import Combination, Term
from workbench.errors import UserError
from workbench.rewards.contract import CheckedReward
from workbench.rewards.registry import load_reward
from workbench.run import cli

NO_REFERENCE = r"reward rouge: it needs a column 'reference'; the data passes on .*; map one with columns: \{reference:"


def by_solution(completions: list[str], solution: list[str], weight: float = 1.0, **columns: list) -> list[float]:
    """Score equality with the column `solution`, in the form of TRL's reward functions."""
    return [weight * (text == right) for text, right in zip(completions, solution, strict=True)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rouge", {}),
        ("combine", {"terms": ["length", "rouge"]}),
        ("ensemble", {"members": ["length", {"model": "combine", "options": {"terms": ["rouge"]}}]}),
    ],
)
def test_a_reward_and_its_parts_name_the_column_that_is_missing(name: str, options: Mapping[str, Any]) -> None:
    reward = load_reward(name, **options)
    reward.check_columns({"reference": ["a", ["b", "c"]]})
    with pytest.raises(UserError, match=NO_REFERENCE):
        reward.check_columns({"summary": ["a"]})
    with pytest.raises(UserError, match=r"row 1: reference is None; it must be a string or a list"):
        reward.check_columns({"reference": ["a", None]})


def test_a_function_needs_the_columns_of_its_parameters_without_a_default() -> None:
    reward = CheckedReward(by_solution, "by_solution")
    reward.check_columns({"solution": ["a"]})
    with pytest.raises(UserError, match="reward by_solution: it needs a column 'solution'; the data passes on none"):
        reward.check_columns({})
    CheckedReward(lambda prompts, completions: [0.0], "plain").check_columns({})


def without_columns(prompts: list[str], completions: list[str]) -> list[float]:
    """Score every completion 1, and take nothing else."""
    return [1.0] * len(completions)


def without_prompts(completions: list[str], label: list[str]) -> list[float]:
    """Score every completion 1, without the prompts."""
    return [1.0] * len(completions)


class Positional:
    """A reward that cannot be called by keyword."""

    def __call__(self, prompts: list[str], completions: list[str], /) -> list[float]:
        """Score every completion 1."""
        return [1.0] * len(completions)


class OldTerms:
    """A reward whose terms take less than it does itself."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """Score every completion 1."""
        return [1.0] * len(completions)

    def terms(self, prompts: list[str], completions: list[str]) -> dict[str, list[float]]:
        """Return one term."""
        return {"one": [1.0] * len(completions)}


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            without_columns,
            r"signature \(prompts, completions\) does not take label, which each call passes; add \*\*columns",
        ),
        (without_prompts, r"signature \(completions, label\) does not take prompts, which"),
        (Positional(), r"it is called by keyword; remove the / from its signature"),
        (OldTerms(), r"reward test, terms\(\): its signature \(prompts, completions\) does not take label, which"),
    ],
)
def test_a_signature_that_cannot_take_the_columns_is_refused(reward: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CheckedReward(reward, "test").check_columns({"label": ["a"]})
    with pytest.raises(UserError, match=message):
        CheckedReward(Combination({"test": Term(CheckedReward(reward, "test"), 1.0)}), "combine").check_columns(
            {"label": ["a"]}
        )


@pytest.mark.parametrize("options", [["--dry_run"], []])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward.model", "test_reward_columns:without_columns"], r"^ppo\.data: .* does not take .*add \*\*columns"),
        (["--reward.model", "rouge", "--ppo.data.columns", "{}"], rf"^ppo\.data: {NO_REFERENCE}"),
        (
            ["--reward.model", "length", "--reward.held_out", "{model: rouge}", "--ppo.data.columns", "{}"],
            rf"^ppo\.validation: {NO_REFERENCE}",
        ),
        (["--reward.model", "rouge"], rf"^evaluation\.data\.bare: {NO_REFERENCE}"),
        (["--evaluation.rewards", "[rouge]"], rf"^evaluation\.data\.bare: {NO_REFERENCE}"),
        (["--evaluation.similarity", "toy:gpt2"], r"^evaluation\.similarity: it compares completions with references"),
        (["--reward.sanity_pair", "[you idiot, thank you]"], r"^reward\.sanity_pair: 'you idiot' scores"),
    ],
)
def test_the_plan_refuses_what_would_end_the_run_after_its_training(
    arguments: list[str], message: str, options: list[str], tmp_path: Path, in_project: Path
) -> None:
    prompts = "path: toy:summaries, template: '{dialogue}', limit: 10"
    chain = [
        *drop(small("quickstart", tmp_path, *arguments), "--evaluation.data"),
        *("--evaluation.data", f"{{bare: {{{prompts}, split: test}}}}"),
        *("--ppo.validation", f"{{{prompts}, split: validation}}" if "held_out" in str(arguments) else "null"),
    ]
    with pytest.raises(UserError, match=message):
        cli.launch(CHAIN, "", [*chain, *options])
    assert not list(tmp_path.iterdir())
