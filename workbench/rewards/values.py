"""What a reward or judge returned, read value by value: numbers, None for "not applicable", or an error in one line."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from workbench.errors import RewardError, one_line, shorten
from workbench.rewards.foreign_code import failures_in_one_line

# PPO computes in float32, whose largest number is 3.4e38, and adds up squares of the scores over every token.
MAX_SCORE = 1e12


@runtime_checkable
class Array(Protocol):
    """A numpy or torch array."""

    def tolist(self) -> Any:
        """Return nested lists of Python numbers, or one number."""
        ...


def check_scores(values: Any, texts: Sequence[str], name: str) -> list[float]:
    """Return the values as one finite float per text; raises RewardError with `name`, the row and the text."""
    return require_scores(check_optional_scores(values, texts, name), texts, name, "each text needs a number")


def check_optional_scores(values: Any, texts: Sequence[str], name: str) -> list[float | None]:
    """Return the values as `check_scores` does, with None for a text to which the reward does not apply."""
    with failures_in_one_line(f"{name}: reading the {type(values).__name__} that it returned failed with"):
        return _read_scores(values, texts, name)


def require_scores(scores: Sequence[float | None], texts: Sequence[str], name: str, rule: str) -> list[float]:
    """Return the scores; raises RewardError, which states the rule, for the first text without one."""
    applicable = [score for score in scores if score is not None]
    if len(applicable) < len(scores):
        raise RewardError(f"{row_context(name, list(scores).index(None), texts)} None (not applicable), but {rule}")
    return applicable


def total_score(values: Iterable[float | None]) -> float | None:
    """Return the sum of the terms that apply to a text, None if none does."""
    applicable = [value for value in values if value is not None]
    return sum(applicable) if applicable else None


def check_probabilities(values: Any, texts: Sequence[str], name: str) -> list[float]:
    """Return the values as one float in [0, 1] per text; raises RewardError with `name`, the row and the text."""
    probabilities = check_scores(values, texts, name)
    for row, probability in enumerate(probabilities):
        if not 0.0 <= probability <= 1.0:
            context = row_context(name, row, texts)
            raise RewardError(f"{context} {probability!r}; toxicity must be a probability in [0, 1]")
    return probabilities


def finite_float(value: Any, context: str) -> float:
    """Return one value as a finite float; raises a RewardError that begins with `context`."""
    with failures_in_one_line(f"{context} {shorten(value)}, a {type(value).__name__}; reading it failed with"):
        number = value.tolist() if isinstance(value, Array) else value
    if not isinstance(number, numbers.Real):  # a bool is a number, 0 or 1
        raise RewardError(f"{context} {shorten(value)}, a {type(value).__name__}, not a number")
    try:
        result = float(number)
    except OverflowError:
        result = math.inf
    except Exception as error:  # a user's number may have a __float__ that fails
        raise RewardError(f"{context} {shorten(value)}; float() failed with {one_line(error)}") from error
    if not math.isfinite(result):
        raise RewardError(f"{context} {result}; it must be finite")
    if abs(result) > MAX_SCORE:
        raise RewardError(
            f"{context} {result:g}; PPO computes in float32, where scores beyond {MAX_SCORE:g} overflow; rescale the "
            "reward"
        )
    return result


def row_context(name: str, row: int, texts: Sequence[str]) -> str:
    """Return the beginning of an error message about one row."""
    return f"{name}, row {row}, text {shorten(texts[row])}: it returned"


def _read_scores(values: Any, texts: Sequence[str], name: str) -> list[float | None]:
    """Return the values as one finite float or None per text."""
    returned = values
    if isinstance(values, Array):
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise RewardError(f"{name} returned {shorten(returned)}; it must return a list with one number per text")
    if len(values) != len(texts):
        too_many = len(values) > len(texts)
        row = len(texts) - 1 if too_many else len(values)
        which = f" (row {row}, text {shorten(texts[row])}, is the {'last' if too_many else 'first without one'})"
        counts = f"{len(values)} numbers for {len(texts)} texts{which if texts else ''}"
        raise RewardError(f"{name} returned {counts}; it must return one per text: {shorten(values)}")
    return [
        None if value is None else finite_float(value, row_context(name, row, texts))
        for row, value in enumerate(values)
    ]
