"""The reward contract, and wrappers that hold a reward model or a toxicity judge to it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from workbench.errors import RewardError, UserError, one_line

SHOWN_CHARACTERS = 80


class RewardModel(Protocol):
    """TRL's reward-function signature: one finite number per completion, higher is better."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]: ...


class Judge(Protocol):
    """One toxicity probability in [0, 1] per text."""

    def __call__(self, texts: list[str]) -> list[float]: ...


@runtime_checkable
class JudgingReward(Protocol):
    """A reward that can also say how toxic a text is."""

    def toxicity(self, texts: list[str]) -> list[float]:
        """One toxicity probability in [0, 1] per text."""
        ...


@runtime_checkable
class TermedReward(Protocol):
    """A reward that is the sum of named terms."""

    def terms(self, prompts: list[str], completions: list[str], **columns: list) -> dict[str, list[float]]:
        """The terms by name, each with one number per completion; their sum is the reward."""
        ...


@runtime_checkable
class Array(Protocol):
    """What numpy and torch share: conversion to plain Python numbers."""

    def tolist(self) -> Any:
        """Nested lists of Python numbers, or one number."""
        ...


@dataclass(frozen=True)
class CheckedReward:
    """A reward model whose every answer is checked."""

    reward: RewardModel
    name: str

    @property
    def __name__(self) -> str:
        """The label in TRL's logs."""
        return self.name

    def __call__(self, /, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """One finite float per completion; raises RewardError for anything else, and for what is not a text."""
        answer = self._ask(self.reward, prompts, completions, columns)
        return _numbers(answer, completions, f"reward {self.name}")

    def terms(self, /, prompts: list[str], completions: list[str], **columns: list) -> dict[str, list[float]]:
        """The terms that the reward is the sum of, checked likewise; of a reward without terms, the reward itself."""
        if not isinstance(self.reward, TermedReward):
            return {self.name: self(prompts, completions, **columns)}
        answer = self._ask(self.reward.terms, prompts, completions, columns)
        name = f"reward {self.name}"
        if not isinstance(answer, dict) or not answer:
            raise RewardError(f"{name} returned terms {_short(answer)}; they must be lists by name")
        return {term: _numbers(values, completions, f"{name}, term {term}") for term, values in answer.items()}

    def _ask(
        self, scorer: Callable[..., Any], prompts: list[str], completions: list[str], columns: dict[str, list]
    ) -> Any:
        _require_texts(prompts, f"reward {self.name}", "prompt")
        _require_texts(completions, f"reward {self.name}", "completion")
        # By keyword, as TRL calls: its own functions take `completions` and keep the prompts in **kwargs.
        try:
            return scorer(prompts=prompts, completions=completions, **columns)
        except UserError:
            raise
        except Exception as error:  # a user's reward can fail in any way
            raise RewardError(f"reward {self.name}: it failed with {one_line(error)}") from error


@dataclass(frozen=True)
class CheckedJudge:
    """A toxicity judge whose every answer is checked."""

    judge: Judge
    name: str

    def __call__(self, texts: list[str]) -> list[float]:
        """One float in [0, 1] per text; raises RewardError for anything else, and for what is not a text."""
        _require_texts(texts, f"judge {self.name}", "text")
        try:
            answer = self.judge(texts)
        except UserError:
            raise
        except Exception as error:  # a user's judge can fail in any way
            raise RewardError(f"judge {self.name}: it failed with {one_line(error)}") from error
        probabilities = _numbers(answer, texts, f"judge {self.name}")
        for row, probability in enumerate(probabilities):
            if not 0.0 <= probability <= 1.0:
                place = _place(f"judge {self.name}", row, texts)
                raise RewardError(f"{place} {probability!r}; a toxicity is a probability in [0, 1]")
        return probabilities


def checked(reward: RewardModel, name: str) -> CheckedReward:
    """The reward behind a check: RewardError unless it returns one finite number per completion."""
    return CheckedReward(reward, name)


def checked_judge(judge: Judge, name: str) -> Judge:
    """The judge behind a check that raises RewardError unless it returns one number in [0, 1] per text."""
    return CheckedJudge(judge, name)


def check_polarity(reward: RewardModel, polite: str, rude: str, name: str) -> None:
    """Raise RewardError, with both scores, unless the polite sentence scores strictly higher."""
    high, low = checked(reward, name)(prompts=["", ""], completions=[polite, rude])
    if not high > low:
        raise RewardError(
            f"reward {name}: {polite!r} scores {high:g} and {rude!r} scores {low:g}, but the first "
            "must score higher; the reward points the wrong way or cannot tell them apart"
        )


def _require_texts(texts: Sequence[Any], name: str, what: str) -> None:
    """Raise RewardError, with the row, for a text that is none."""
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise RewardError(f"{name}, row {row}: the {what} is {_short(text)}, a {kind}; it must be a text")


def _numbers(answer: Any, texts: Sequence[str], name: str) -> list[float]:
    """The answer as one finite float per text."""
    values = answer.tolist() if isinstance(answer, Array) else answer
    if not isinstance(values, list | tuple):
        raise RewardError(f"{name} returned {_short(answer)}; it must return a list with one number per text")
    if len(values) != len(texts):
        extra = len(values) > len(texts)
        row = len(texts) - 1 if extra else len(values)
        shown = f" (row {row}, text {_short(texts[row])}, is the {'last' if extra else 'first without'})"
        found = f"{len(values)} numbers for {len(texts)} texts{shown if texts else ''}"
        raise RewardError(f"{name} returned {found}; it must return one per text: {_short(values)}")
    return [_number(value, row, texts, name) for row, value in enumerate(values)]


def _number(value: Any, row: int, texts: Sequence[str], name: str) -> float:
    """One finite float."""
    number = value.tolist() if isinstance(value, Array) else value
    if number is None:
        raise RewardError(f"{_place(name, row, texts)} None (not applicable), but each text needs a number")
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        kind = type(value).__name__
        raise RewardError(f"{_place(name, row, texts)} {_short(value)}, a {kind}, not a number")
    try:
        result = float(number)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise RewardError(f"{_place(name, row, texts)} {result}; it must be finite")
    return result


def _place(name: str, row: int, texts: Sequence[str]) -> str:
    return f"{name}, row {row}, text {_short(texts[row])}: it returned"


def _short(value: Any) -> str:
    """The value's repr on one line, cut at the end."""
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}..."
