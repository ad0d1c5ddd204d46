"""DPO's mathematics, as pure functions.

Shapes: B responses in groups of K to a prompt, G groups or pairs, T response tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class Ranked(NamedTuple):
    """The best and the worst response to each prompt."""

    best: Tensor  # (G,) rows
    worst: Tensor  # (G,) rows
    differ: Tensor  # (G,) bool, False where all responses to the prompt are equally good


def best_and_worst(rewards: Tensor, samples: int) -> Ranked:
    """Return the rows with the highest and the lowest of the rewards (B,) of each prompt's `samples` responses.

    The responses to a prompt follow one another; of equal rewards, the first counts.
    """
    groups = rewards.view(-1, samples)
    first = torch.arange(len(groups), device=rewards.device) * samples
    highest, lowest = groups.max(dim=1), groups.min(dim=1)
    # On a GPU, max and min may return any of equal ones.
    best, worst = (
        (groups == value.unsqueeze(1)).long().argmax(dim=1) + first for value in (highest.values, lowest.values)
    )
    return Ranked(best, worst, highest.values > lowest.values)


class DPOLoss(NamedTuple):
    """The loss of each pair, and the rewards that the policy's probabilities imply (arXiv 2305.18290 eq. 5)."""

    losses: Tensor  # (G,) carries the gradient
    chosen_rewards: Tensor  # (G,)
    rejected_rewards: Tensor  # (G,)


def dpo_loss(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, beta: float) -> DPOLoss:
    """Return the loss of arXiv 2305.18290 eq. 7 for pairs of rows (2 G, T), each chosen before its rejected one."""
    rewards = beta * ((logprobs - ref_logprobs) * mask).sum(dim=1)
    chosen, rejected = rewards[::2], rewards[1::2]
    return DPOLoss(-logsigmoid(chosen - rejected), chosen.detach(), rejected.detach())
