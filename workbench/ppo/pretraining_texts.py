"""Texts that the policy keeps predicting while it is aligned: the pretraining term of PPO-ptx (arXiv 2203.02155).

Shapes: N texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from workbench.models.policy import Policy
from workbench.ppo.text_likelihood import without_ends


def draw_texts(texts: Sequence[dict[str, Any]], count: int, generator: torch.Generator) -> list[dict[str, Any]]:
    """Return as many texts, drawn with replacement; none where there are none."""
    return [texts[i] for i in torch.randint(len(texts), (count,), generator=generator).tolist()] if texts else []


def add_text_gradients(
    policy: nn.Module,
    accelerator: Accelerator,
    scaler: torch.amp.GradScaler,
    rows: Sequence[dict[str, Any]],
    coef: float,
    size: int,
) -> torch.Tensor:
    """Add the gradient of `coef` times the negative log-likelihood of N texts, in nats per token; return that mean.

    Up to `size` texts are computed at a time.

    `policy` is the module that `accelerator` prepared; the texts are this process's, without the EOS behind each.
    """
    module: Policy = accelerator.unwrap_model(policy)
    total = torch.zeros((), device=accelerator.device)
    tokens = sum(len(row["response_ids"]) - 1 for row in rows)
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        batch = module.make_batch([row["prompt_ids"] for row in part], [row["response_ids"] for row in part])
        scores = policy(batch, 1.0)
        loss = -without_ends(scores.logprobs, batch.response_mask).sum() / tokens
        if scores.values is not None:  # with several processes, every trained weight needs a gradient
            loss = loss + 0.0 * scores.values.sum()
        accelerator.backward(scaler.scale(coef * loss))
        total += loss.detach()
    return total
