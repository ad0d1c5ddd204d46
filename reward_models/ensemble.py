"""An ensemble of rewards that is conservative where its members disagree.

After "Reward Model Ensembles Help Mitigate Overoptimization" (arXiv 2310.02743), whose uncertainty-weighted objective
subtracts a multiple of the members' variance; here it is the standard deviation, so that k has no unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.config.scorers import as_scorer
from workbench.config.sources import Scorer
from workbench.errors import UserError, error_context, shorten
from workbench.rewards.contract import CheckedReward, Judge, lowest_limit
from workbench.rewards.registry import load_scorer


@dataclass(frozen=True)
class Ensemble:
    """The mean of the members' scores minus k times their standard deviation, per completion."""

    members: list[CheckedReward]
    k: float

    def __call__(self, /, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Return the sum of the two terms."""
        terms = self.terms(prompts, completions, **columns)
        return [mean + penalty for mean, penalty in zip(terms["mean"], terms["disagreement"], strict=True)]

    def terms(self, /, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, list[float]]:
        """Return the `mean`, and -k times the (population) standard deviation as `disagreement`."""
        scores = np.array([member(prompts, completions, **columns) for member in self.members])
        return {"mean": scores.mean(axis=0).tolist(), "disagreement": (-self.k * scores.std(axis=0)).tolist()}

    def check_columns(self, columns: Mapping[str, list]) -> None:
        """Raise UserError if the data lack a column that a member requires."""
        for member in self.members:
            member.check_columns(columns)

    def max_completion_tokens(self) -> int | None:
        """Return how many tokens of a completion every member reads, or None if no member has a limit."""
        return lowest_limit(self.members)

    def judge(self) -> Judge | None:
        """Return the mean of the members' judges; None if a member has none."""
        judges = [judge for member in self.members if (judge := member.judge()) is not None]
        return _mean_judge(judges) if len(judges) == len(self.members) else None


def load(members: Sequence[str | Scorer | dict[str, Any]], *, k: float = 1.0) -> Ensemble:
    """Return the ensemble of `members`, each a name or a mapping with `model` and `options`."""
    if not isinstance(members, list | tuple) or len(members) < 2:
        raise UserError(f"options.members is {shorten(members)}; use a list of at least two rewards")
    if isinstance(k, bool) or not isinstance(k, int | float) or not 0 <= k < math.inf:
        raise UserError(f"options.k is {k!r}; must be a number of at least 0")
    rewards = []
    for index, value in enumerate(members):
        key = f"options.members[{index}]"
        scorer = as_scorer(value, key)
        with error_context(key):
            rewards.append(load_scorer(scorer))
    return Ensemble(rewards, k)


def _mean_judge(judges: list[Judge]) -> Judge:
    """Return the judge whose probability is the mean of the judges' probabilities."""

    def toxicity(texts: list[str]) -> list[float]:
        return np.mean([judge(texts) for judge in judges], axis=0).tolist()

    return toxicity
