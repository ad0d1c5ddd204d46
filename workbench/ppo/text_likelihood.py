"""How well a policy predicts fixed texts.

Shapes: N texts, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from workbench.models.policy import Policy
from workbench.ppo.micro_batches import MicroBatches


def nats_per_token(policy: Policy, variant: str, rows: Sequence[dict[str, Any]], limit: MicroBatches) -> list[float]:
    """Return for each of N texts the mean negative log-likelihood of the tokens of its second half, in nats.

    The EOS behind it is left out: whether a model ends there is what it was taught, not how well it knows the text.
    """
    values: list[float] = []

    def predict(count: int) -> list[float]:
        part = rows[len(values) : len(values) + count]
        batch = policy.make_batch([row["prompt_ids"] for row in part], [row["response_ids"] for row in part])
        logprobs = without_ends(policy.logprobs(variant, batch, 1.0), batch.response_mask)
        nats: list[float] = (-logprobs.sum(dim=1) / (batch.response_mask.sum(dim=1) - 1)).tolist()
        return nats

    while len(values) < len(rows):
        values += limit.run(predict)
    return values


def without_ends(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return log-probabilities (N, T) with 0 for the last token of each row of the mask (N, T)."""
    return logprobs.scatter(1, mask.sum(dim=1, keepdim=True) - 1, 0.0)


def gathered_nats(
    policy: Policy, variant: str, rows: Sequence[dict[str, Any]], limit: MicroBatches, accelerator: Accelerator
) -> list[float]:
    """Return what `nats_per_token` returns; the processes share the work."""
    with accelerator.split_between_processes(list(rows)) as local:
        nats = nats_per_token(policy, variant, local, limit)
    gathered: list[float] = gather_object(nats)
    return gathered[: len(rows)]  # with fewer texts than processes, accelerate repeats the last one


def corpus_nats_per_token(
    policy: Policy, variant: str, rows: Sequence[dict[str, Any]], limit: MicroBatches, accelerator: Accelerator
) -> float:
    """Return the negative log-likelihood of all texts together, in nats per token; the processes share the work."""
    nats = gathered_nats(policy, variant, rows, limit, accelerator)
    tokens = [len(row["response_ids"]) - 1 for row in rows]
    return sum(value * count for value, count in zip(nats, tokens, strict=True)) / sum(tokens)


def text_metrics(
    policy: Policy, rows: Sequence[dict[str, Any]], limit: MicroBatches, accelerator: Accelerator
) -> dict[str, float]:
    """Return how well the policy and its reference predict the texts, in nats per token; nothing without texts."""
    variants = {"validation/text_nll": "policy", "validation/text_nll_reference": "reference"} if rows else {}
    return {
        metric: corpus_nats_per_token(policy, variant, rows, limit, accelerator) for metric, variant in variants.items()
    }
