"""One PPO update: epochs x minibatches optimizer steps on a rollout."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from workbench.policy import Policy
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
    max_grad_norm: float
    temperature: float


def update(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    settings: UpdateSettings,
    generator: torch.Generator,
) -> dict[str, float]:
    """Take the optimizer steps for `advantages` and `returns` (B, T) and return the metrics over all of them.

    `policy` is the module as prepared by `accelerator`, so that gradients are averaged over processes.
    A step whose gradient is not finite is skipped and counted.
    """
    sums: dict[str, float] = defaultdict(float)
    for rows in minibatches(len(rollout), settings.epochs, settings.minibatch_size, generator):
        tokens = accelerator.reduce(rollout.response_mask[rows].sum(), "sum").item()
        # Gradients are averaged over processes; this makes the average the mean over all tokens.
        weight = accelerator.num_processes / max(tokens, 1)
        for micro in rows.split(settings.micro_batch_size):
            last = micro[-1] == rows[-1]
            with accelerator.no_sync(policy) if not last else nullcontext():
                loss, statistics = micro_loss(policy, accelerator, rollout, advantages, returns, micro, settings)
                accelerator.backward(loss * weight)
            for name, value in statistics.items():
                sums[name] = max(sums[name], value) if name == "ratio_max" else sums[name] + value
        norm = accelerator.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
        norm = math.nan if norm is None else float(norm)
        if math.isfinite(norm):
            optimizer.step()
            sums["grad_norm"] += norm
        else:
            sums["skipped"] += 1
        sums["steps"] += 1
        optimizer.zero_grad()
    return summarise(sums, accelerator)


def micro_loss(
    policy: nn.Module,
    accelerator: Accelerator,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    rows: Tensor,
    settings: UpdateSettings,
) -> tuple[Tensor, dict[str, float]]:
    """Loss, as a sum over the tokens of `rows`, and the sums that make the metrics."""
    module: Policy = accelerator.unwrap_model(policy)
    length = int(rollout.response_mask[rows].sum(dim=1).max())
    prompt_ids, prompt_mask = module.trim_prompts(rollout.prompt_ids[rows], rollout.prompt_mask[rows])
    response_ids, mask = rollout.response_ids[rows, :length], rollout.response_mask[rows, :length]
    scores = policy(prompt_ids, prompt_mask, response_ids, mask, settings.temperature)
    surrogate = algorithm.policy_loss(
        scores.logprobs, rollout.logprobs[rows, :length], advantages[rows, :length], mask, settings.clip_range
    )
    value = algorithm.value_loss(
        scores.values, rollout.values[rows, :length], returns[rows, :length], mask, settings.value_clip_range
    )
    statistics = {
        "tokens": mask.sum(),
        "policy_loss": surrogate.loss,
        "value_loss": value.loss,
        "clipped": surrogate.clipped,
        "value_clipped": value.clipped,
        "approx_kl": surrogate.approx_kl,
        "ratio": surrogate.ratio,
        "ratio_max": surrogate.ratio_max,
    }
    return surrogate.loss + settings.vf_coef * value.loss, {k: v.item() for k, v in statistics.items()}


def minibatches(rows: int, epochs: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row indices of each minibatch: every epoch visits every row once, in a new order."""
    for _ in range(epochs):
        yield from torch.randperm(rows, generator=generator).split(size)


def summarise(sums: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Metrics over all minibatches and processes."""
    names = sorted(set(sums) - {"ratio_max", "steps", "skipped", "grad_norm"})
    local = torch.tensor([sums[name] for name in names], dtype=torch.float64).float()
    total = dict(zip(names, accelerator.reduce(local.to(accelerator.device), "sum").tolist(), strict=True))
    largest = accelerator.gather(torch.tensor([sums["ratio_max"]], device=accelerator.device)).max().item()
    tokens = max(total["tokens"], 1)
    return {
        "policy/loss": total["policy_loss"] / tokens,
        "policy/approx_kl": total["approx_kl"] / tokens,
        "policy/clip_fraction": total["clipped"] / tokens,
        "policy/ratio_mean": total["ratio"] / tokens,
        "policy/ratio_max": largest,
        "value/loss": total["value_loss"] / tokens,
        "value/clip_fraction": total["value_clipped"] / tokens,
        "grad_norm": sums["grad_norm"] / max(sums["steps"] - sums["skipped"], 1),
        "optimizer_steps": sums["steps"],
        "skipped_steps": sums["skipped"],
    }
