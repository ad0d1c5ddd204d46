"""Checks on the first rollout for errors that would otherwise stay silent during training."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from workbench.errors import UserError
from workbench.models.adapters import adapter_name
from workbench.models.policy import Policy
from workbench.ppo.rollout import Rollout
from workbench.ppo.scoring import ROW_FIELDS
from workbench.ppo.sharded_policy import gathered
from workbench.rewards.contract import RewardModel


class Limits(NamedTuple):
    """What rounding alone may do before the first update, as means over tokens."""

    log_ratio: float  # nats, mean of the absolute values
    kl: float  # nats per token, estimated by k3


# Another number of rows is another order of summation on a GPU. The same tokens, summed in two valid orders by SmolLM2
# in bf16, differ by 0.05 nats in the mean and by 0.2 in the largest; dropout moves every token by more.
LIMITS = {
    torch.float32: Limits(1e-4, 1e-4),
    torch.float16: Limits(0.03, 5e-3),
    torch.bfloat16: Limits(0.12, 0.03),
}


def check_start(
    policy: nn.Module, accelerator: Accelerator, rollout: Rollout, *, rows: int, temperature: float, kl_per_token: float
) -> None:
    """Raise UserError, with the likely cause, unless the first `rows` responses pass before any update.

    KL to the reference is 0, the ratio of new to old probabilities is 1, the reference shares no trained
    weight, and a gradient reaches every adapter and the value head. All processes come to the same conclusion.
    """
    module: Policy = accelerator.unwrap_model(policy)
    limits = LIMITS[module.autocast_dtype or torch.float32]
    if not kl_per_token <= limits.kl:
        raise UserError(
            f"ppo: KL to the reference is {kl_per_token:.2g} nats per token before the first update "
            f"(limit {limits.kl}); "
            "the policy must start as a copy of its reference: is dropout on, or was another adapter loaded?"
        )
    with gathered(module):
        check_reference(module)
    part = slice(0, rows)
    batch = rollout.batch.rows(part)
    mask, scores = batch.response_mask, policy(batch, temperature)
    log_ratios = (scores.logprobs.detach() - rollout.logprobs[part])[mask]
    k3 = log_ratios.expm1() - log_ratios
    sums = torch.stack([log_ratios.abs().sum(), k3.sum(), mask.sum().float()])
    log_ratio, kl, count = accelerator.reduce(sums, "sum").tolist()
    if not (log_ratio / count <= limits.log_ratio and kl / count <= limits.kl):
        raise UserError(
            f"ppo: the log ratio of new to old probabilities is {log_ratio / count:.2g} nats in the mean before the "
            f"first update (limit {limits.log_ratio}), and their KL {kl / count:.2g} (limit {limits.kl}); the same "
            "weights must give the same probabilities: is dropout on?"
        )
    outputs = scores.logprobs if scores.values is None else scores.logprobs + scores.values
    accelerator.backward((outputs * mask).sum())
    unreached = without_gradient(module)
    policy.zero_grad()
    if unreached:
        raise UserError(
            f"ppo: no gradient reaches {len(unreached)} of the trained weights (first: {unreached[0]}); likely "
            "causes: an adapter that is not active, a module that the model does not use (policy.lora.target_modules), "
            "a LoRA adapter on the output head combined with ppo.value_model: separate (the value head reads the "
            "states before the output head), or 4-bit layers repacked for inference"
        )


def check_reference(policy: Policy) -> None:
    """Raise UserError if the reference would change along with the policy."""
    trained = {parameter.data_ptr() for parameter in policy.parameters() if parameter.requires_grad}
    frozen = policy.reference_parameters()
    if not frozen or any(parameter.data_ptr() in trained for parameter in frozen):
        raise UserError(
            "ppo: the reference shares weights with the policy and would change with it, so the KL would stay 0; use "
            "a frozen copy for full fine-tuning, and a separate adapter for LoRA"
        )


def without_gradient(policy: Policy) -> list[str]:
    """Return the names of trained weights that the backward pass did not reach.

    A new adapter's A has a gradient of exactly 0 because its B is 0, and saturated attention may leave a B at 0 too;
    but if most B are at 0, something between the layers blocks the gradient.
    """
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    missing = [name for name, p in trained.items() if p.grad is None]
    lora_b = {name: p.grad for name, p in trained.items() if "lora_B" in name and adapter_name(name) == "policy"}
    silent = [name for name, gradient in lora_b.items() if gradient is not None and not gradient.any()]
    return missing + (silent if len(silent) > len(lora_b) / 2 else [])


def check_sanity_pair(
    reward: RewardModel, pair: list[str], row: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise UserError unless the first of a pair of responses to the prompt of `row` scores higher."""
    columns = {name: [value] * 2 for name, value in row.items() if name not in ROW_FIELDS}
    columns["completion_ids"] = tokenizer(pair, add_special_tokens=False).input_ids
    good, bad = reward([row["prompt"]] * 2, pair, **columns)
    if not good > bad:
        raise UserError(
            f"reward.sanity_pair: {pair[0]!r} scores {good:g} and {pair[1]!r} scores {bad:g}, but the first must score "
            "higher; the reward points the wrong way or cannot tell them apart"
        )
