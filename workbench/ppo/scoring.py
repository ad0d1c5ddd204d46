"""The scores of sampled responses, and what the reward logs about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.models.policy import Batch
from workbench.rewards.arguments import WITHOUT_TRAINER, RewardLog, TrainerState, trainer_arguments
from workbench.rewards.contract import CheckedReward

# Row fields that are not passed to the reward as columns, and the names of the reward's own arguments.
ROW_FIELDS = frozenset(
    {"prompt", "prompt_ids", "response", "response_ids", "chosen_ids", "rejected_ids", "prompts", "completions"}
)
UNTRAINED: TrainerState = WITHOUT_TRAINER["trainer_state"]


@dataclass(frozen=True)
class Scored:
    """The scores of B responses."""

    terms: dict[str, Tensor]  # (B,) float32 each: the reward's terms by name, NaN where one does not apply
    weights: dict[str, float]  # by what the reward has multiplied each term, by name
    scores: Tensor  # (B,) float32: the sums of the terms that apply
    log: RewardLog


def score_responses(
    reward: CheckedReward,
    rows: Sequence[dict[str, Any]],
    completions: list[str],
    batch: Batch,
    trainer_state: TrainerState,
) -> Scored:
    """Return the reward's scores of the responses in `batch`, whose texts are `completions`."""
    log, device = RewardLog(len(rows)), batch.response_ids.device
    arguments = reward_columns(rows) | trainer_arguments(trainer_state, log, sampled_ids(batch))
    terms = {
        name: torch.tensor([float("nan") if value is None else value for value in values], device=device)
        for name, values in reward.terms([row["prompt"] for row in rows], completions, **arguments).items()
    }
    return Scored(terms, reward.term_weights(list(terms)), torch.stack(list(terms.values())).nansum(dim=0), log)


def reward_columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the columns of the rows that are passed to a reward by name."""
    return {name: [row[name] for row in rows] for name in rows[0] if name not in ROW_FIELDS}


def sampled_ids(batch: Batch) -> list[list[int]]:
    """Return the token ids of the B responses, the stop token included, without padding."""
    return [ids[mask].tolist() for ids, mask in zip(batch.response_ids, batch.response_mask, strict=True)]
