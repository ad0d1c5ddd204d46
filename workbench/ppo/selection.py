"""Which of a rollout's responses to learn from, where more are sampled than an update needs.

Sampling and scoring cost less than learning, and most responses of a policy that is nearly aligned score alike, so that
their advantages are near 0. Of groups, those whose scores differ most are taken, as by dynamic sampling (arXiv
2503.14476) and down-sampling (arXiv 2504.13818), and of single responses those furthest from the median.

Shapes: B responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workbench.config.schema import PPOConfig
from workbench.ppo.advantages import score_transform
from workbench.ppo.checkpoint import TrainState
from workbench.ppo.rollout import Choice, Responses
from workbench.rewards.arguments import RewardLog


def selection(config: PPOConfig, state: TrainState, batch_size: int) -> Choice | None:
    """Return what chooses this process's `batch_size` responses to learn from; None where that is all of them."""
    if config.oversampling == 1:
        return None
    transform = score_transform(config, state)

    def chosen(responses: Responses, rows: Sequence[dict[str, Any]]) -> tuple[Responses, Sequence[dict[str, Any]]]:
        scores = transform(responses.scores, responses.truncated)
        samples = config.samples_per_prompt
        index = (
            furthest_from_median(scores, batch_size)
            if samples == 1
            else most_different_groups(scores, batch_size, samples)
        )
        return take(responses, index), [rows[i] for i in index.tolist()]

    return chosen


def take(responses: Responses, index: Tensor) -> Responses:
    """Return the responses at `index`."""
    rows = index.tolist()
    extra = {name: [values[row] for row in rows] for name, values in responses.log.extra.items()}
    return replace(
        responses,
        batch=responses.batch.rows(index),
        prompts=[responses.prompts[row] for row in rows],
        completions=[responses.completions[row] for row in rows],
        terms={name: values[index] for name, values in responses.terms.items()},
        scores=responses.scores[index],
        truncated=responses.truncated[index],
        log=RewardLog(len(rows), responses.log.metrics, extra),
    )


def furthest_from_median(scores: Tensor, count: int) -> Tensor:
    """Return the indices (count,), in order, of the scores (B,) that are furthest from their median."""
    distance = (scores - scores.median()).abs()
    return distance.argsort(descending=True, stable=True)[:count].sort().values


def most_different_groups(scores: Tensor, count: int, samples: int) -> Tensor:
    """Return the indices (count,), in order, of the groups whose scores have the largest standard deviation.

    The scores (B,) have the `samples` responses to a prompt one after another.
    """
    spread = scores.view(-1, samples).std(dim=1)
    groups = spread.argsort(descending=True, stable=True)[: count // samples].sort().values
    return (groups.unsqueeze(1) * samples + torch.arange(samples, device=scores.device)).flatten()
