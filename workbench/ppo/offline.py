"""Responses from data: chosen and rejected ones to the same prompt, in place of what the policy samples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from workbench.data.preferences import PAIR
from workbench.models.policy import Policy
from workbench.models.sampling import is_truncated
from workbench.ppo.micro_batches import RowLimits
from workbench.ppo.rollout import Responses, Rollout, with_tokens
from workbench.rewards.arguments import RewardLog


def read_pairs(policy: Policy, rows: Sequence[dict[str, Any]], temperature: float, limits: RowLimits) -> Rollout:
    """Return the chosen and the rejected response of each two of `rows`, which are the same row of the data twice.

    A chosen response scores 1 and a rejected one 0.
    """
    start, names = time.perf_counter(), [PAIR[index % 2] for index in range(len(rows))]
    response_ids = [row[f"{name}_ids"] for row, name in zip(rows, names, strict=True)]
    batch = policy.make_batch([row["prompt_ids"] for row in rows], response_ids)
    scores = torch.tensor([1.0, 0.0], device=policy.device).repeat(len(rows) // 2)
    return with_tokens(
        Responses(
            batch=batch,
            prompts=[row["prompt"] for row in rows],
            completions=[row[name].strip() for row, name in zip(rows, names, strict=True)],
            terms={"preference": scores},
            weights={"preference": 1.0},
            scores=scores,
            log=RewardLog(len(rows)),
            truncated=is_truncated(batch.response_ids, batch.response_mask, policy.stop_ids),
            sampled_scores=scores,
            prefix_scores=None,
            seconds={"generate": 0.0, "score": time.perf_counter() - start},
        ),
        policy,
        temperature,
        limits,
    )
