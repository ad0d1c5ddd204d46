"""A weighted sum of rewards; PPO logs every term by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.config.scorers import as_scorer
from workbench.config.sources import Scorer
from workbench.errors import UserError, error_context, shorten, suggestion
from workbench.rewards.contract import CheckedReward, Judge, lowest_limit
from workbench.rewards.registry import load_scorer
from workbench.rewards.values import total_score

TERM_KEYS = ("model", "options", "weight", "name")


@dataclass(frozen=True)
class Term:
    """One reward and its weight in the sum."""

    reward: CheckedReward
    weight: float


@dataclass(frozen=True)
class Combination:
    """The weighted sum of the terms that apply to a completion."""

    terms_by_name: dict[str, Term]

    def __call__(self, /, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        """Return the sum of the terms, per completion; None where no term applies."""
        terms = self.terms(prompts, completions, **columns)
        return [total_score(values) for values in zip(*terms.values(), strict=True)]

    def terms(self, /, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, list[float | None]]:
        """Return weight times score, by the term's name; None where a term does not apply."""
        return {
            name: [
                None if score is None else term.weight * score
                for score in term.reward.optional_scores(prompts, completions, **columns)
            ]
            for name, term in self.terms_by_name.items()
        }

    def weights(self) -> dict[str, float]:
        """Return the weights by the terms' names."""
        return {name: term.weight for name, term in self.terms_by_name.items()}

    def check_columns(self, columns: Mapping[str, list]) -> None:
        """Raise UserError if the data lack a column that a term requires."""
        for term in self.terms_by_name.values():
            term.reward.check_columns(columns)

    def max_completion_tokens(self) -> int | None:
        """Return how many tokens of a completion every term reads, or None if no term has a limit."""
        return lowest_limit(term.reward for term in self.terms_by_name.values())

    def judge(self) -> Judge | None:
        """Return the judge of the only term that has one; None if no term has one, or several do."""
        judges = [judge for term in self.terms_by_name.values() if (judge := term.reward.judge()) is not None]
        return judges[0] if len(judges) == 1 else None


def load(terms: list[str | Scorer | dict[str, Any]]) -> Combination:
    """Return the sum of `terms`.

    A term is the name of a reward, or a mapping with `model` and, where needed, `options`, `weight` (default: 1) and
    `name` (default: the model's).
    """
    if not isinstance(terms, list | tuple) or not terms:
        raise UserError(f"options.terms is {shorten(terms)}; use a list like [{{model: length, weight: 0.5}}]")
    terms_by_name: dict[str, Term] = {}
    for index, value in enumerate(terms):
        key = f"options.terms[{index}]"
        scorer, weight, name = _read_term(value, key)
        if name in terms_by_name:
            raise UserError(f"{key}: an earlier term is also named {name}; rename this one with `name`")
        with error_context(key):
            terms_by_name[name] = Term(load_scorer(scorer), weight)
    return Combination(terms_by_name)


def _read_term(value: Any, key: str) -> tuple[Scorer, float, str]:
    """Return the scorer, weight and name of the term at `key`; raises UserError for a wrong key or value."""
    if not isinstance(value, dict):
        scorer = as_scorer(value, key)
        return scorer, 1.0, scorer.model
    for name in value:
        if name not in TERM_KEYS:
            raise UserError(f"{key}.{name}: unknown key{suggestion(str(name), TERM_KEYS)}")
    scorer = as_scorer({name: value[name] for name in ("model", "options") if name in value}, key)
    weight, name = value.get("weight", 1.0), value.get("name", scorer.model)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight == 0:
        raise UserError(f"{key}.weight is {weight!r}; use a finite number other than 0")
    if not isinstance(name, str):
        raise UserError(f"{key}.name is {shorten(name)}; it must be a string")
    return scorer, weight, name
