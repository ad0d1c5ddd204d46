"""The scores of the policy before its first update, by which later ones are normalized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workbench.config.derived import normalizing_responses, sampled_responses
from workbench.config.schema import PPOConfig
from workbench.errors import UserError
from workbench.models.policy import Policy
from workbench.ppo.micro_batches import RowLimits
from workbench.ppo.rollout import respond
from workbench.ppo.sampler import derive_seed
from workbench.rewards.arguments import TrainerState
from workbench.rewards.contract import CheckedReward

MIN_DEVIATION = 1e-6


def score_initial_policy(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    reward: CheckedReward,
    batch: Callable[[int], Sequence[dict[str, Any]]],
    config: PPOConfig,
    limits: RowLimits,
    *,
    seed: int,
    process: int,
) -> Tensor:
    """Return this process's part of the initial policy's scores; `batch` returns its rows of a rollout."""
    scores: list[Tensor] = []
    for number in range(normalizing_responses(config) // sampled_responses(config)):
        torch.manual_seed(derive_seed(seed, number, process, 1))
        responses = respond(
            policy,
            tokenizer,
            reward,
            batch(number),
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            limits=limits,
            trainer_state=TrainerState(0, config.steps),
        )
        scores.append(responses.scores)
    return torch.cat(scores)


def mean_and_deviation(scores: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of the scores (N,); raises UserError if all are the same."""
    deviation = scores.std(correction=0).item()
    if deviation < MIN_DEVIATION:
        raise UserError(
            f"ppo.score_samples: all {len(scores)} responses of the initial policy score {scores[0].item():g}, so "
            "there is nothing to normalize by; set it to 0, or check the reward"
        )
    return scores.mean().item(), deviation
