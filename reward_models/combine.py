"""A weighted sum of rewards; PPO logs every term by its name."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any

from workbench.errors import UserError, error_context
from workbench.rewards.contract import CheckedReward, Judge
from workbench.rewards.registry import judge_of, load_reward

KEYS = ("model", "weight", "options", "name")


@dataclass(frozen=True)
class Term:
    """One reward and its weight in the sum."""

    reward: CheckedReward
    weight: float


@dataclass(frozen=True)
class Combination:
    """The weighted sum of its terms."""

    parts: dict[str, Term]
    toxicity: Judge | None
    """That of the one term that can judge; None where none can, or several, which may disagree."""

    def __call__(self, /, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """The sum of the terms, per completion."""
        terms = self.terms(prompts, completions, **columns)
        return [sum(values) for values in zip(*terms.values(), strict=True)]

    def terms(self, /, prompts: list[str], completions: list[str], **columns: list) -> dict[str, list[float]]:
        """Weight times score, by the term's name."""
        return {
            name: [part.weight * score for score in part.reward(prompts, completions, **columns)]
            for name, part in self.parts.items()
        }


def load(terms: list[dict[str, Any]]) -> Combination:
    """The sum of `terms`, mappings with `model` and perhaps `weight` (1), `options` and `name` (the model's)."""
    if not isinstance(terms, list) or not terms:
        raise UserError(f"options.terms is {terms!r}; give a list like [{{model: lexicon, weight: 0.5}}]")
    parts: dict[str, Term] = {}
    for index, term in enumerate(terms):
        key = f"options.terms[{index}]"
        _check(term, key)
        name = term.get("name", term["model"])
        if name in parts:
            raise UserError(f"{key}: there is a term {name} before it; give this one a name of its own with `name`")
        with error_context(key):
            parts[name] = Term(load_reward(term["model"], **term.get("options", {})), term.get("weight", 1.0))
    judges = [judge for part in parts.values() if (judge := judge_of(part.reward)) is not None]
    return Combination(parts, judges[0] if len(judges) == 1 else None)


def _check(term: Any, key: str) -> None:
    """Raise UserError unless the term has known keys with values of the right kind."""
    if not isinstance(term, dict):
        raise UserError(f"{key} is {term!r}; a term is a mapping with {', '.join(KEYS)}")
    for name in term:
        if name not in KEYS:
            near = difflib.get_close_matches(str(name), KEYS, n=1)
            raise UserError(
                f"{key}.{name}: unknown, {f'did you mean {near[0]}?' if near else 'use ' + ', '.join(KEYS)}"
            )
    if "model" not in term:
        raise UserError(f"{key}.model: missing; name a reward, for example lexicon")
    for name, kind in {"model": str, "name": str, "options": dict}.items():
        if name in term and not isinstance(term[name], kind):
            found = term[name]
            raise UserError(f"{key}.{name} is {found!r}; it must be a {'mapping' if kind is dict else 'text'}")
    weight = term.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight == 0:
        raise UserError(f"{key}.weight is {weight!r}; give a finite number other than 0")
