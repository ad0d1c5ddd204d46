"""What rewards and toxicity judges must return, and the wrappers that check every value they return.

A reward is a callable with TRL's signature. Further methods are optional: `judge` (OffersJudge), `terms` (OffersTerms),
`weights` (WeighsTerms), `check_columns` (ChecksColumns) and `max_completion_tokens` (TruncatesTexts).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from workbench.errors import RewardError, shorten
from workbench.rewards.arguments import WITHOUT_LOG
from workbench.rewards.coroutines import awaited
from workbench.rewards.foreign_code import contained
from workbench.rewards.signatures import call_arguments, check_signature, format_explained
from workbench.rewards.values import check_optional_scores, check_probabilities, require_scores, total_score

# The terms of a reward must sum to its score within ABSOLUTE plus RELATIVE times the sum of their magnitudes. A network
# scores the same text slightly differently in different batches; a wrong sum is off by far more.
ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE = 1e-4, 1e-3
FULLY_COMPARED_ROWS = 64
APPLIES_TO_ALL = (
    "each text needs a score; combine it with a reward that applies to this row, or remove such rows from the data"
)


class RewardModel(Protocol):
    """A reward that applies to every completion: one finite number for each, higher is better."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]: ...


Scores = Sequence[float | None]
"""One number per completion; None where a reward does not apply."""


class RewardFunction(Protocol):
    """TRL's reward-function signature, also of an `async def`; the texts can be messages (signatures.py)."""

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> Scores | Awaitable[Scores]: ...


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

    def terms(self, prompts: list[str], completions: list[str], **columns: list) -> Mapping[str, Scores]:
        """Return the terms by name, each with one number per completion; those that apply sum to the score."""
        ...


@runtime_checkable
class WeighsTerms(Protocol):
    """A reward whose terms are weighted scores."""

    def weights(self) -> Mapping[str, float]:
        """Return by what each term is multiplied, by name: numbers other than 0."""
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


@dataclass(eq=False)
class CheckedReward:
    """A wrapper that checks every value a reward returns.

    The score is the sum of `terms`, in PPO and in the evaluation alike. The sum is compared with the score the reward
    itself returns: for every row until FULLY_COMPARED_ROWS are checked, then for one row per call, in rotation.
    """

    reward: RewardFunction
    name: str
    rows_seen: int = field(default=0, init=False, repr=False)

    @property
    def __name__(self) -> str:
        """The label in TRL's logs."""
        return self.name

    def __call__(self, /, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Return one finite float per completion; raises RewardError for anything else."""
        scores = self.optional_scores(prompts, completions, **columns)
        return require_scores(scores, completions, f"reward {self.name}", APPLIES_TO_ALL)

    def optional_scores(self, /, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        """Return one finite float per completion, None where the reward does not apply."""
        terms = self._optional_terms(prompts, completions, columns)
        return [total_score(values) for values in zip(*terms.values(), strict=True)]

    def terms(self, /, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, list[float | None]]:
        """Return the checked terms by name, of which at least one applies to each completion.

        A reward without terms counts as a single term.
        """
        terms = self._optional_terms(prompts, completions, columns)
        scores = [total_score(values) for values in zip(*terms.values(), strict=True)]
        require_scores(scores, completions, f"reward {self.name}", APPLIES_TO_ALL)
        return terms

    def term_weights(self, terms: Sequence[str]) -> dict[str, float]:
        """Return by what each of the terms is multiplied; 1 where the reward does not say."""
        if not isinstance(self.reward, WeighsTerms):
            return dict.fromkeys(terms, 1.0)
        with contained(
            f"reward {self.name}: weights() failed with", f"reward {self.name} has been telling its weights"
        ):
            weights = {term: float(self.reward.weights()[term]) for term in terms}
        if not all(math.isfinite(weight) and weight for weight in weights.values()):
            raise RewardError(f"reward {self.name}: weights() returned {weights}; use finite numbers other than 0")
        return weights

    def check_columns(self, columns: Mapping[str, list]) -> None:
        """Raise UserError if the data lack a column that the reward requires, so that no training ends at its call."""
        if isinstance(self.reward, ChecksColumns):
            with contained(f"reward {self.name}: check_columns() failed with", f"reward {self.name} has been checking"):
                self.reward.check_columns(columns)
        activity = f"reward {self.name} has been telling its signature"
        with contained(f"reward {self.name}: its signature cannot be read:", activity):
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

    def _optional_terms(
        self, prompts: list[str], completions: list[str], columns: dict[str, Any]
    ) -> dict[str, list[float | None]]:
        """Return the checked terms by name, with None where a term does not apply."""
        if not isinstance(self.reward, OffersTerms):
            return {self.name: self._scores(prompts, completions, columns)}
        terms = self._call(self.reward.terms, prompts, completions, columns)
        if not isinstance(terms, dict) or not terms:
            raise RewardError(f"reward {self.name}: terms() returned {shorten(terms)}; it must return a dict of lists")
        checked = {
            term: check_optional_scores(values, completions, f"reward {self.name}, term {term}")
            for term, values in terms.items()
        }
        self._compare_with_scores(checked, prompts, completions, columns)
        return checked

    def _scores(self, prompts: list[str], completions: list[str], columns: dict[str, Any]) -> list[float | None]:
        """Return the reward's own scores, checked."""
        scores = self._call(self.reward, prompts, completions, columns)
        return check_optional_scores(scores, completions, f"reward {self.name}")

    def _compare_with_scores(
        self, terms: dict[str, list[float | None]], prompts: list[str], completions: list[str], columns: dict[str, Any]
    ) -> None:
        """Raise RewardError if the terms of a row do not sum to the reward's own score."""
        if not completions:
            return
        every_row = self.rows_seen < FULLY_COMPARED_ROWS
        rows = list(range(len(completions))) if every_row else [self.rows_seen % len(completions)]
        selected = {name: [values[row] for row in rows] for name, values in columns.items() if isinstance(values, list)}
        texts = [prompts[row] for row in rows], [completions[row] for row in rows]
        scores = self._scores(*texts, columns | selected | WITHOUT_LOG)
        for row, score in zip(rows, scores, strict=True):
            applicable = {name: value for name, values in terms.items() if (value := values[row]) is not None}
            total = total_score(applicable.values())
            tolerance = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * sum(map(abs, applicable.values()))
            if (total is None) != (score is None) or abs((total or 0.0) - (score or 0.0)) > tolerance:
                listed = ", ".join(f"{name} {value:g}" for name, value in applicable.items()) or "none applies"
                raise RewardError(
                    f"reward {self.name}, row {row}, text {shorten(completions[row])}: its terms ({listed}) sum to "
                    f"{_format(total)}, but its score is {_format(score)}; the terms must sum to the score in every "
                    "batch"
                )
        # One more than the rows of this call, so that batches of one size are compared at a different row each time.
        self.rows_seen += len(completions) + 1

    def _call(
        self, scorer: Callable[..., Any], prompts: list[str], completions: list[str], columns: dict[str, Any]
    ) -> Any:
        """Call the user's code on checked texts and return its result; raises RewardError if it fails."""
        name = f"reward {self.name}"
        failure, activity = f"{name}: it failed with", f"{name} has been scoring {len(completions)} texts"
        _require_texts(prompts, name, "prompt")
        _require_texts(completions, name, "completion")
        with contained(failure, activity):  # also where it makes a signature of its own
            arguments = call_arguments(scorer, name, prompts, completions, columns)
            before = {argument: list(map(repr, arguments[argument])) for argument in ("prompts", "completions")}
            with format_explained(scorer, columns, failure):
                result = awaited(scorer(**arguments), activity)
            after = {argument: list(map(repr, arguments[argument])) for argument in before}
        for argument, texts in before.items():
            _require_order(texts, after[argument], name, argument)
        return result


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
            probabilities = awaited(self.judge(passed), f"{name} has been scoring {len(texts)} texts")
        _require_order(texts, passed, name, "texts")
        return check_probabilities(probabilities, texts, name)


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


def _require_texts(texts: Sequence[Any], name: str, kind: str) -> None:
    """Raise RewardError, with the row, for a prompt, completion or text that is not a string."""
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise RewardError(
                f"{name}, row {row}: the {kind} is {shorten(text)}, a {type(text).__name__}; it must be a string"
            )


def _format(score: float | None) -> str:
    """Return a score as an error message shows it."""
    return "None" if score is None else f"{score:g}"


def _require_order(before: Sequence[str], after: Sequence[str], name: str, argument: str) -> None:
    """Raise RewardError if a user's code changed the rows of the list that it was passed; it may edit its texts."""
    if len(after) != len(before) or (list(before) != list(after) and Counter(before) == Counter(after)):
        raise RewardError(
            f"{name}: it reordered its {argument} or changed their number, so that its scores may belong to other "
            f"rows; let it work on a copy: list({argument})"
        )
