"""Texts that the policy keeps predicting while it is aligned: the pretraining term of PPO-ptx (arXiv 2203.02155).

Their negative log-likelihood teaches the texts, and pulls at a policy that has not moved, too. Where the point is not
to move, the reference is the better target: half the squared log ratio of policy and reference, k2 of
http://joschu.net/blog/kl-approx.html, has no gradient until the policy moves.

Shapes: N texts, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

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
    target: Literal["text", "reference"],
    coef: float,
    size: int,
) -> torch.Tensor:
    """Add the gradient of `coef` times the loss on N texts, a mean over their tokens; return that mean.

    The loss is the negative log-likelihood in nats or, with the reference as target, half the squared log ratio to it.
    Up to `size` texts are computed at a time. `policy` is the module that `accelerator` prepared; the texts are this
    process's, without the EOS behind each.
    """
    module: Policy = accelerator.unwrap_model(policy)
    total = torch.zeros((), device=accelerator.device)
    tokens = sum(len(row["response_ids"]) - 1 for row in rows)
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        batch = module.make_batch([row["prompt_ids"] for row in part], [row["response_ids"] for row in part])
        # The reference first: with an adapter it is the same model, whose graph the backward pass needs as it is.
        reference = module.logprobs("reference", batch, 1.0) if target == "reference" else None
        scores = policy(batch, 1.0)
        losses = -scores.logprobs if reference is None else 0.5 * (scores.logprobs - reference).square()
        loss = without_ends(losses, batch.response_mask).sum() / tokens
        if scores.values is not None:  # with several processes, every trained weight needs a gradient
            loss = loss + 0.0 * scores.values.sum()
        accelerator.backward(scaler.scale(coef * loss))
        total += loss.detach()
    return total
