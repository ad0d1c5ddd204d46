"""One PPO update: epochs x minibatches optimizer steps on a rollout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from workbench.models.policy import Policy
from workbench.ppo import algorithm
from workbench.ppo.rollout import Rollout


@dataclass(frozen=True)
class UpdateSettings:
    """Hyper-parameters of an update; sizes are per process."""

    epochs: int
    minibatch_size: int
    micro_batch_size: int
    clip_range: float
    value_clip_range: float
    vf_coef: float
    entropy_coef: float
    target_kl: float | None
    max_grad_norm: float
    temperature: float


# What is summed over the tokens of a micro batch, in the order of the vector that carries the sums.
SUMS = ("tokens", "policy_loss", "value_loss", "entropy", "clipped", "value_clipped", "approx_kl", "ratio")


def update(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    settings: UpdateSettings,
    generator: torch.Generator,
    *,
    frozen: list[nn.Parameter] | None = None,
) -> dict[str, float]:
    """Take the optimizer steps for `advantages` and `returns` (B, T) and return the metrics over all of them.

    `policy` is the module as prepared by `accelerator`, so that gradients are averaged over processes. A step whose
    gradient is not finite is skipped and counted; one whose minibatch has moved past `target_kl` ends the update. The
    parameters in `frozen` keep their values.
    """
    total = torch.zeros(len(SUMS), device=accelerator.device)
    ratio_max = torch.zeros((), device=accelerator.device)
    steps = skipped = 0
    norms, stopped = 0.0, False
    for rows in minibatches(len(rollout), settings.epochs, settings.minibatch_size, generator):
        tokens = accelerator.reduce(rollout.batch.response_mask[rows].sum(), "sum").item()
        # Gradients are averaged over processes; this makes the average the mean over all tokens.
        weight = accelerator.num_processes / max(tokens, 1)
        of_minibatch = torch.zeros_like(total)
        for micro in rows.split(settings.micro_batch_size):
            last = micro[-1] == rows[-1]
            with accelerator.no_sync(policy) if not last else nullcontext():
                loss, sums, largest = micro_loss(policy, accelerator, rollout, advantages, returns, micro, settings)
                accelerator.backward(loss * weight)
            of_minibatch += sums
            ratio_max = torch.maximum(ratio_max, largest)
        total += of_minibatch
        if settings.target_kl is not None:
            moved = accelerator.reduce(of_minibatch[SUMS.index("approx_kl")], "sum").item() / max(tokens, 1)
            if moved > settings.target_kl:
                optimizer.zero_grad()
                stopped = True
                break
        for parameter in frozen or ():
            parameter.grad = None
        norm = accelerator.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
        assert norm is not None
        steps += 1
        if torch.isfinite(norm):
            optimizer.step()
            norms += norm.item()
        else:
            skipped += 1
        optimizer.zero_grad()
    largest = accelerator.gather(ratio_max.unsqueeze(0)).max().item()
    mean = dict(zip(SUMS, accelerator.reduce(total, "sum").tolist(), strict=True))
    tokens = max(mean.pop("tokens"), 1)
    mean = {name: value / tokens for name, value in mean.items()}
    metrics = {
        "policy/loss": mean["policy_loss"],
        "policy/approx_kl": mean["approx_kl"],
        "policy/clip_fraction": mean["clipped"],
        "policy/ratio_mean": mean["ratio"],
        "policy/ratio_max": largest,
        "value/loss": mean["value_loss"],
        "value/clip_fraction": mean["value_clipped"],
        "grad_norm": norms / max(steps - skipped, 1),
        "optimizer_steps": steps,
        "skipped_steps": skipped,
        "stopped_early": float(stopped),
    }
    return metrics | ({"policy/entropy": mean["entropy"]} if settings.entropy_coef else {})


def micro_loss(
    policy: nn.Module,
    accelerator: Accelerator,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    rows: Tensor,
    settings: UpdateSettings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, as a sum over the tokens of `rows`, the SUMS that make the metrics, and the largest ratio."""
    module: Policy = accelerator.unwrap_model(policy)
    batch, bonus = module.trim(rollout.batch.rows(rows)), settings.entropy_coef != 0
    mask, length = batch.response_mask, batch.response_mask.shape[1]
    scores = policy(batch, settings.temperature, bonus)
    surrogate = algorithm.policy_loss(
        scores.logprobs, rollout.logprobs[rows, :length], advantages[rows, :length], mask, settings.clip_range
    )
    value = algorithm.value_loss(
        scores.values, rollout.values[rows, :length], returns[rows, :length], mask, settings.value_clip_range
    )
    entropy = scores.entropies.sum() if bonus else torch.zeros_like(surrogate.loss)
    loss = surrogate.loss + settings.vf_coef * value.loss - settings.entropy_coef * entropy
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
    return loss, torch.stack([part.detach().float() for part in sums]), surrogate.ratio_max


def minibatches(rows: int, epochs: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row indices of each minibatch: every epoch visits every row once, in a new order."""
    for _ in range(epochs):
        yield from torch.randperm(rows, generator=generator).split(size)


def parameter_groups(policy: Policy, rate: float, value_rate: float | None) -> list[dict[str, Any]]:
    """What is trained by the policy's loss and what for the values alone, each with its rate."""
    values = [p for p in policy.value_parameters() if p.requires_grad]
    of_values = {id(p) for p in values}
    trained = [p for p in policy.parameters() if p.requires_grad and id(p) not in of_values]
    return [
        {"params": trained, "lr": rate},
        {"params": values, "lr": rate if value_rate is None else value_rate},
    ]
