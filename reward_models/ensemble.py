"""Several rewards as one that is cautious where they disagree.

After "Reward Model Ensembles Help Mitigate Overoptimization" (arXiv 2310.02743), whose uncertainty-weighted objective
subtracts a multiple of the members' variance; here it is the standard deviation, so that k has no unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import UserError, error_context
from workbench.rewards.contract import CheckedReward, Judge
from workbench.rewards.registry import judge_of, load_reward


@dataclass(frozen=True)
class Ensemble:
    """The mean of the members' scores minus k of their standard deviations, per text."""

    members: list[CheckedReward]
    k: float
    toxicity: Judge | None
    """The mean of the members' toxicities; None where a member cannot judge."""

    def __call__(self, /, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """The sum of the two terms."""
        terms = self.terms(prompts, completions, **columns)
        return [mean + spread for mean, spread in zip(terms["mean"], terms["spread"], strict=True)]

    def terms(self, /, prompts: list[str], completions: list[str], **columns: list) -> dict[str, list[float]]:
        """The mean, and the (population) standard deviation times -k as `spread`."""
        scores = np.array([member(prompts, completions, **columns) for member in self.members])
        return {"mean": scores.mean(axis=0).tolist(), "spread": (-self.k * scores.std(axis=0)).tolist()}


def load(models: Sequence[str], *, k: float = 1.0, options: dict[str, Any] | None = None) -> Ensemble:
    """The ensemble of rewards named as for load_reward, all loaded with the same options."""
    if not isinstance(models, list | tuple) or len(models) < 2 or not all(isinstance(model, str) for model in models):
        raise UserError(f"options.models is {models!r}; give a list of the names of at least two rewards")
    if not isinstance(k, int | float) or not 0 <= k < math.inf:
        raise UserError(f"options.k is {k!r}; give a number of at least 0")
    if options is not None and not isinstance(options, dict):
        raise UserError(f"options.options is {options!r}; give a mapping, which every member gets")
    members = []
    for index, model in enumerate(models):
        with error_context(f"options.models[{index}]"):
            members.append(load_reward(model, **(options or {})))
    judges = [judge for member in members if (judge := judge_of(member)) is not None]
    return Ensemble(members, k, _mean_judge(judges) if len(judges) == len(members) else None)


def _mean_judge(judges: list[Judge]) -> Judge:
    def toxicity(texts: list[str]) -> list[float]:
        return np.mean([judge(texts) for judge in judges], axis=0).tolist()

    return toxicity
