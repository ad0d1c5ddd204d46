"""One PPO update: epochs x minibatches optimizer steps on a rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from workbench.config.schema import PPOConfig
from workbench.models.policy import Policy
from workbench.models.sharding import full_tensor, is_sharded
from workbench.ppo import algorithm
from workbench.ppo.micro_batches import MicroBatches, minibatches
from workbench.ppo.rollout import Rollout

# Quantities summed over the tokens of a micro batch, in the order of the vector that holds the sums.
SUMS = ("tokens", "policy_loss", "value_loss", "entropy", "clipped", "value_clipped", "approx_kl", "ratio")
VALUE_METRICS = ("value/loss", "value/clip_fraction")


class MicroBatch(NamedTuple):
    """What a micro batch contributes to a minibatch."""

    loss: Tensor  # scalar, a sum over the tokens, carries the gradient
    sums: Tensor  # (len(SUMS),)
    ratio_max: Tensor  # scalar, largest probability ratio


def update(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor | None,
    config: PPOConfig,
    *,
    kl_coef: float,
    minibatch_size: int,
    micro_batches: MicroBatches,
    generator: torch.Generator,
    scaler: torch.amp.GradScaler,
    frozen: Sequence[nn.Parameter] = (),
) -> dict[str, float]:
    """Take the optimizer steps for `advantages` and `returns` (B, T) and return the metrics over all of them.

    `kl_coef` is the weight of the KL to the reference in the loss; without `returns` no values are learned.
    `policy` is the module that `accelerator` prepared, so that gradients are averaged over processes; sizes are per
    process. A step whose gradient is not finite is skipped and counted; a minibatch past `target_kl` ends the update.
    `scaler` keeps the gradients of fp16 within its range, and is disabled in other precisions. Parameters in `frozen`
    keep their values.
    """
    total = torch.zeros(len(SUMS), device=accelerator.device)
    ratio_max = torch.zeros((), device=accelerator.device)
    steps = skipped = 0
    norm_sum, stopped_early = 0.0, False
    for rows in minibatches(len(rollout), config.epochs, minibatch_size, generator):
        tokens = accelerator.reduce(rollout.batch.response_mask[rows].sum(), "sum").item()
        # Gradients are averaged over processes; the weight makes the average the mean over all tokens.
        weight = accelerator.num_processes / max(tokens, 1)
        losses = partial(micro_loss, policy, accelerator, rollout, advantages, returns, config, kl_coef)
        work = partial(accumulate_gradients, policy, accelerator, scaler, losses, rows, weight)
        sums, largest = micro_batches.run(work, undo=optimizer.zero_grad)
        ratio_max = torch.maximum(ratio_max, largest)
        total += sums
        if config.target_kl is not None:
            approx_kl = accelerator.reduce(sums[SUMS.index("approx_kl")], "sum").item() / max(tokens, 1)
            if approx_kl > config.target_kl:
                optimizer.zero_grad()
                stopped_early = True
                break
        for parameter in frozen:
            parameter.grad = None
        scaler.unscale_(optimizer)
        norm = full_tensor(accelerator.clip_grad_norm_(policy.parameters(), config.max_grad_norm))
        steps += 1
        if torch.isfinite(norm):
            scaler.step(optimizer)
            norm_sum += norm.item()
        else:
            skipped += 1
        scaler.update()
        optimizer.zero_grad()
    metrics = update_metrics(total, ratio_max, accelerator)
    absent = ("policy/entropy",) * (not config.entropy_coef) + VALUE_METRICS * (returns is None)
    return {name: value for name, value in metrics.items() if name not in absent} | {
        "grad_norm": norm_sum / max(steps - skipped, 1),
        "optimizer_steps": steps,
        "skipped_steps": skipped,
        "stopped_early": float(stopped_early),
        **({"loss_scale": scaler.get_scale()} if scaler.is_enabled() else {}),
    }


def accumulate_gradients(
    policy: nn.Module,
    accelerator: Accelerator,
    scaler: torch.amp.GradScaler,
    losses: Callable[[Tensor], MicroBatch],
    rows: Tensor,
    weight: float,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Add up the gradients of the weighted losses of rows, `size` at a time; return the SUMS and the largest ratio."""
    sums, largest = torch.zeros(len(SUMS), device=accelerator.device), torch.zeros((), device=accelerator.device)
    # A sharded policy adds up shards of gradients: whole ones, as without the collective, may not fit.
    adds_shards = is_sharded(policy)
    for micro_rows in rows.split(size):
        is_last = bool(micro_rows[-1] == rows[-1])
        with nullcontext() if is_last or adds_shards else accelerator.no_sync(policy):
            micro = losses(micro_rows)
            accelerator.backward(scaler.scale(micro.loss * weight))
        sums += micro.sums
        largest = torch.maximum(largest, micro.ratio_max)
    return sums, largest


def micro_loss(
    policy: nn.Module,
    accelerator: Accelerator,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor | None,
    config: PPOConfig,
    kl_coef: float,
    rows: Tensor,
) -> MicroBatch:
    """Run the policy over `rows` of the rollout and return the loss and the sums for its metrics."""
    module: Policy = accelerator.unwrap_model(policy)
    batch, with_entropy = module.trim(rollout.batch.rows(rows)), config.entropy_coef != 0
    mask, length = batch.response_mask, batch.response_mask.shape[1]
    scores = policy(batch, config.temperature, with_entropy)
    surrogate = algorithm.policy_loss(
        scores.logprobs, rollout.logprobs[rows, :length], advantages[rows, :length], mask, config.clip_range
    )
    zero = torch.zeros_like(surrogate.loss)
    entropy, value = scores.entropies.sum() if with_entropy else zero, algorithm.ValueLoss(zero, zero)
    if rollout.values is not None and returns is not None:
        old_values = rollout.values[rows, :length]
        value = algorithm.value_loss(scores.values, old_values, returns[rows, :length], mask, config.value_clip_range)
    loss = surrogate.loss + config.vf_coef * value.loss - config.entropy_coef * entropy
    if kl_coef:
        old, reference = rollout.logprobs[rows, :length], rollout.ref_logprobs[rows, :length]
        loss = loss + kl_coef * algorithm.kl_loss(scores.logprobs, old, reference, mask)
    sums = (
        mask.sum(),
        surrogate.loss,
        value.loss,
        entropy,
        surrogate.clipped,
        value.clipped,
        surrogate.approx_kl,
        surrogate.ratio,
    )
    return MicroBatch(loss, torch.stack([part.detach().float() for part in sums]), surrogate.ratio_max)


def update_metrics(total: Tensor, ratio_max: Tensor, accelerator: Accelerator) -> dict[str, float]:
    """Return the metrics that are means over the tokens of all minibatches, from this process's SUMS."""
    largest_ratio = accelerator.gather(ratio_max.unsqueeze(0)).max().item()
    sums = dict(zip(SUMS, accelerator.reduce(total, "sum").tolist(), strict=True))
    tokens = max(sums.pop("tokens"), 1)
    mean = {name: value / tokens for name, value in sums.items()}
    return {
        "policy/loss": mean["policy_loss"],
        "policy/approx_kl": mean["approx_kl"],
        "policy/clip_fraction": mean["clipped"],
        "policy/ratio_mean": mean["ratio"],
        "policy/ratio_max": largest_ratio,
        "value/loss": mean["value_loss"],
        "value/clip_fraction": mean["value_clipped"],
        "policy/entropy": mean["entropy"],
    }
