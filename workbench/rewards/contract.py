"""What rewards and toxicity judges must return, and the wrappers that check every value they return.

A reward is a callable with TRL's signature. Further methods are optional: `judge` (OffersJudge), `terms` (OffersTerms),
`check_columns` (ChecksColumns) and `max_completion_tokens` (TruncatesTexts).
"""

from __future__ import annotations

import copy
import inspect
import math
import numbers
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from workbench.errors import RewardError, UserError, one_line, shorten
from workbench.rewards.foreign_code import contained, failures_in_one_line

# The terms of a reward must sum to its score within ABSOLUTE plus RELATIVE times the sum of their magnitudes. A network
# scores the same text slightly differently in different batches; a wrong sum is off by far more.
ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE = 1e-4, 1e-3
FULLY_COMPARED_ROWS = 64
# PPO computes in float32, whose largest number is 3.4e38, and adds up squares of the scores over every token.
MAX_SCORE = 1e12


class RewardModel(Protocol):
    """TRL's reward-function signature: one finite number per completion, higher is better."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]: ...


class Judge(Protocol):
    """One toxicity probability in [0, 1] per text."""

    def __call__(self, texts: list[str]) -> list[float]: ...


@runtime_checkable
class OffersJudge(Protocol):
    """A reward that can also judge how toxic a text is."""

    def judge(self) -> Judge | None:
        """Return the toxicity judge, or None if this reward has none as configured."""
        ...


@runtime_checkable
class OffersTerms(Protocol):
    """A reward that is the sum of named terms."""

    def terms(self, prompts: list[str], completions: list[str], **columns: list) -> dict[str, list[float]]:
        """Return the terms by name, each with one number per completion; they sum to the score."""
        ...


@runtime_checkable
class ChecksColumns(Protocol):
    """A reward that reads columns of the data which its signature does not name."""

    def check_columns(self, columns: Mapping[str, list]) -> None:
        """Raise UserError if the columns, by name with one value per row, lack what the reward reads."""
        ...


@runtime_checkable
class TruncatesTexts(Protocol):
    """A reward that reads only the beginning of a long text."""

    def max_completion_tokens(self) -> int | None:
        """Return how many tokens of a completion it reads, by its own tokenizer, or None for no limit."""
        ...


@runtime_checkable
class Array(Protocol):
    """A numpy or torch array."""

    def tolist(self) -> Any:
        """Return nested lists of Python numbers, or one number."""
        ...


@dataclass(eq=False)
class CheckedReward:
    """A wrapper that checks every value a reward returns.

    The score is the sum of `terms`, in PPO and in the evaluation alike. The sum is compared with the score the reward
    itself returns: for every row until FULLY_COMPARED_ROWS are checked, then for one row per call, in rotation.
    """

    reward: RewardModel
    name: str
    rows_seen: int = field(default=0, init=False, repr=False)

    @property
    def __name__(self) -> str:
        """The label in TRL's logs."""
        return self.name

    def __call__(self, /, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """Return one finite float per completion; raises RewardError for anything else."""
        terms = self.terms(prompts, completions, **columns)
        return [sum(values) for values in zip(*terms.values(), strict=True)]

    def terms(self, /, prompts: list[str], completions: list[str], **columns: list) -> dict[str, list[float]]:
        """Return the checked terms by name; a reward without terms counts as a single term."""
        if not isinstance(self.reward, OffersTerms):
            return {self.name: self._scores(prompts, completions, columns)}
        terms = self._call(self.reward.terms, prompts, completions, columns)
        if not isinstance(terms, dict) or not terms:
            raise RewardError(f"reward {self.name}: terms() returned {shorten(terms)}; it must return a dict of lists")
        checked = {
            term: check_scores(values, completions, f"reward {self.name}, term {term}")
            for term, values in terms.items()
        }
        self._compare_with_scores(checked, prompts, completions, columns)
        return checked

    def check_columns(self, columns: Mapping[str, list]) -> None:
        """Raise UserError if the data lack a column that the reward requires, so that no training ends at its call."""
        if isinstance(self.reward, ChecksColumns):
            with contained(f"reward {self.name}: check_columns() failed with", f"reward {self.name} has been checking"):
                self.reward.check_columns(columns)
        check_signature(self.reward, self.name, columns)
        if isinstance(self.reward, OffersTerms):
            check_signature(self.reward.terms, f"{self.name}, terms()", columns)

    def max_completion_tokens(self) -> int | None:
        """Return how many tokens of a completion the reward reads, or None if it has no limit or does not say."""
        if not isinstance(self.reward, TruncatesTexts):
            return None
        name = f"reward {self.name}"
        with contained(f"{name}: max_completion_tokens() failed with", f"{name} has been telling its limit"):
            limit = self.reward.max_completion_tokens()
        if limit is not None and not (isinstance(limit, int) and limit > 0):
            raise RewardError(f"{name}: max_completion_tokens() returned {shorten(limit)}; return an integer or None")
        return limit

    def judge(self) -> Judge | None:
        """Return the reward's toxicity judge in a checking wrapper, or None if it has none."""
        if not isinstance(self.reward, OffersJudge):
            return None
        with contained(f"reward {self.name}: judge() failed with", f"reward {self.name} has been making its judge"):
            judge = self.reward.judge()
        if judge is not None and not callable(judge):
            raise RewardError(f"reward {self.name}: judge() returned {shorten(judge)}; it must return a judge or None")
        return None if judge is None else CheckedJudge(judge, self.name)

    def _scores(self, prompts: list[str], completions: list[str], columns: dict[str, list]) -> list[float]:
        """Return the reward's own scores, checked."""
        scores = self._call(self.reward, prompts, completions, columns)
        return check_scores(scores, completions, f"reward {self.name}")

    def _compare_with_scores(
        self, terms: dict[str, list[float]], prompts: list[str], completions: list[str], columns: dict[str, list]
    ) -> None:
        """Raise RewardError if the terms of a row do not sum to the reward's own score."""
        if not completions:
            return
        every_row = self.rows_seen < FULLY_COMPARED_ROWS
        rows = list(range(len(completions))) if every_row else [self.rows_seen % len(completions)]
        selected = {name: [values[row] for row in rows] for name, values in columns.items() if isinstance(values, list)}
        scores = self._scores([prompts[row] for row in rows], [completions[row] for row in rows], columns | selected)
        for row, score in zip(rows, scores, strict=True):
            values = [term[row] for term in terms.values()]
            tolerance = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * sum(map(abs, values))
            if abs(sum(values) - score) > tolerance:
                listed = ", ".join(f"{name} {value:g}" for name, value in zip(terms, values, strict=True))
                raise RewardError(
                    f"reward {self.name}, row {row}, text {shorten(completions[row])}: its terms ({listed}) sum to "
                    f"{sum(values):g}, but its score is {score:g}; the terms must sum to the score in every batch"
                )
        # One more than the rows of this call, so that batches of one size are compared at a different row each time.
        self.rows_seen += len(completions) + 1

    def _call(
        self, scorer: Callable[..., Any], prompts: list[str], completions: list[str], columns: dict[str, list]
    ) -> Any:
        """Call the user's code on checked texts and return its result; raises RewardError if it fails."""
        name = f"reward {self.name}"
        _require_texts(prompts, name, "prompt")
        _require_texts(completions, name, "completion")
        bound = _bound_parameter(scorer)
        # Copies, because the rows outlive the call.
        texts = {"prompts": list(prompts), "completions": list(completions)}
        copies = {
            key: copy.deepcopy(values) if isinstance(values, list) else values
            for key, values in columns.items()
            if key != bound
        }
        # By keyword, as TRL does: its own reward functions take `completions` and leave the prompts in **kwargs.
        with contained(f"{name}: it failed with", f"{name} has been scoring {len(completions)} texts"):
            result = scorer(**texts, **copies)
        _require_order(prompts, texts["prompts"], name, "prompts")
        _require_order(completions, texts["completions"], name, "completions")
        return result


def _bound_parameter(scorer: Callable[..., Any]) -> str | None:
    """Return the name, mostly self, under which a method has its object, so that no column can have it; else None."""
    function: Any = scorer.__func__ if inspect.ismethod(scorer) else type(scorer).__call__
    first = next(iter(inspect.signature(function).parameters.values()), None)
    return first.name if first is not None and first.kind is first.POSITIONAL_OR_KEYWORD else None


@dataclass(frozen=True)
class CheckedJudge:
    """A wrapper that checks every value a toxicity judge returns."""

    judge: Judge
    name: str

    def __call__(self, texts: list[str]) -> list[float]:
        """Return one float in [0, 1] per text; raises RewardError for anything else."""
        name = f"judge {self.name}"
        _require_texts(texts, name, "text")
        passed = list(texts)
        with contained(f"{name}: it failed with", f"{name} has been scoring {len(texts)} texts"):
            probabilities = self.judge(passed)
        _require_order(texts, passed, name, "texts")
        return check_probabilities(probabilities, texts, name)


def check_signature(function: Callable[..., Any], name: str, columns: Mapping[str, list]) -> None:
    """Raise UserError if the function cannot be called with prompts, completions and these columns by keyword."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters
    for parameter in parameters.values():
        is_required = parameter.default is parameter.empty and parameter.kind not in variadic
        if is_required and parameter.kind is parameter.POSITIONAL_ONLY:
            raise UserError(f"reward {name}: it is called by keyword; remove the / from its signature")
        if is_required and parameter.name not in ("prompts", "completions", *columns):
            raise UserError(missing_column(name, parameter.name, columns))
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    surplus = [argument for argument in ("prompts", "completions", *columns) if argument not in parameters]
    if surplus:
        raise UserError(
            f"reward {name}: its signature ({', '.join(parameters)}) does not take {', '.join(surplus)}, which each "
            "call passes; add **columns to its parameters"
        )


def lowest_limit(rewards: Iterable[CheckedReward]) -> int | None:
    """Return how many tokens of a completion all of the rewards read, or None if none has a limit."""
    return min(filter(None, (reward.max_completion_tokens() for reward in rewards)), default=None)


def truncation_line(key: str, name: str, reads: int | None, max_new_tokens: int, limit_key: str) -> list[str]:
    """Return a line of the plan if a reward reads fewer tokens than a response may have, else none."""
    if reads is None or reads >= max_new_tokens:
        return []
    return [
        f"{key}: {name} reads at most {reads} tokens (by its own tokenizer) of a response, which may have "
        f"{max_new_tokens}: up to {max_new_tokens - reads} tokens at its end are not scored; lower {limit_key}, or "
        "use a reward that reads more"
    ]


def missing_column(reward: str, column: str, columns: Iterable[str]) -> str:
    """Return the message for a column that a reward needs and the data does not have."""
    available = ", ".join(columns) or "none"
    return (
        f"reward {reward}: it needs a column {column!r}; the data passes on {available}; map one with "
        f"columns: {{{column}: ...}}, or choose another reward"
    )


def check_scores(values: Any, texts: Sequence[str], name: str) -> list[float]:
    """Return the values as one finite float per text; raises RewardError with `name`, the row and the text."""
    with failures_in_one_line(f"{name}: reading the {type(values).__name__} that it returned failed with"):
        return _read_scores(values, texts, name)


def _read_scores(values: Any, texts: Sequence[str], name: str) -> list[float]:
    """Return the values as one finite float per text."""
    returned = values
    if inspect.iscoroutine(values):
        values.close()  # Python would warn that nobody awaited it
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
    return [_finite_float(value, _row_context(name, row, texts)) for row, value in enumerate(values)]


def check_probabilities(values: Any, texts: Sequence[str], name: str) -> list[float]:
    """Return the values as one float in [0, 1] per text; raises RewardError with `name`, the row and the text."""
    probabilities = check_scores(values, texts, name)
    for row, probability in enumerate(probabilities):
        if not 0.0 <= probability <= 1.0:
            context = _row_context(name, row, texts)
            raise RewardError(f"{context} {probability!r}; toxicity must be a probability in [0, 1]")
    return probabilities


def _require_texts(texts: Sequence[Any], name: str, kind: str) -> None:
    """Raise RewardError, with the row, for a prompt, completion or text that is not a string."""
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise RewardError(
                f"{name}, row {row}: the {kind} is {shorten(text)}, a {type(text).__name__}; it must be a string"
            )


def _finite_float(value: Any, context: str) -> float:
    """Return one value as a finite float; raises a RewardError that begins with `context`."""
    with failures_in_one_line(f"{context} {shorten(value)}, a {type(value).__name__}; reading it failed with"):
        number = value.tolist() if isinstance(value, Array) else value
    if number is None:
        raise RewardError(f"{context} None (not applicable), but each text needs a number")
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


def _require_order(before: Sequence[str], after: Sequence[str], name: str, argument: str) -> None:
    """Raise RewardError if a user's code changed the rows of the list that it was passed; it may edit its texts."""
    if len(after) != len(before) or (list(before) != list(after) and Counter(before) == Counter(after)):
        raise RewardError(
            f"{name}: it reordered its {argument} or changed their number, so that its scores may belong to other "
            f"rows; let it work on a copy: list({argument})"
        )


def _row_context(name: str, row: int, texts: Sequence[str]) -> str:
    """Return the beginning of an error message about one row."""
    return f"{name}, row {row}, text {shorten(texts[row])}: it returned"
