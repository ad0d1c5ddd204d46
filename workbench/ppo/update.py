"""One update: epochs x minibatches optimizer steps on a rollout."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from workbench.config.schema import PPOConfig
from workbench.models.sharding import full_tensor, is_sharded
from workbench.ppo.losses import COUNTS, Objective
from workbench.ppo.micro_batches import MicroBatches, minibatches
from workbench.ppo.pretraining_texts import add_text_gradients, draw_texts

Sums = dict[str, Tensor]


def update(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    objective: Objective,
    config: PPOConfig,
    *,
    minibatch_size: int,
    micro_batches: MicroBatches,
    generator: torch.Generator,
    scaler: torch.amp.GradScaler,
    texts: Sequence[dict[str, Any]] = (),
    frozen: Sequence[nn.Parameter] = (),
) -> dict[str, float]:
    """Take the optimizer steps for the objective, `minibatch_size` of its groups each, and return their metrics.

    `policy` is the module that `accelerator` prepared, so that gradients are averaged over processes; sizes are per
    process. A step whose gradient is not finite is skipped and counted; a minibatch past `target_kl` ends the update.
    `scaler` keeps the gradients of fp16 within its range, and is disabled in other precisions. Each step also learns
    from `minibatch_size` of the `texts`, if there are any. Parameters in `frozen` keep their values.
    """
    total: Sums = {}
    ratio_max = torch.zeros((), device=accelerator.device)
    steps = skipped = 0
    text_loss, norm_sum, stopped_early = torch.zeros((), device=accelerator.device), 0.0, False
    for groups in minibatches(len(objective.rows), config.epochs, minibatch_size, generator):
        count = accelerator.reduce(objective.counts[groups].sum(), "sum").item()
        # Gradients are averaged over processes; the weight makes the average the mean over all tokens, or pairs.
        weight = accelerator.num_processes / max(count, 1)
        drawn = [] if frozen else draw_texts(texts, minibatch_size, generator)
        work = partial(accumulate_gradients, policy, accelerator, scaler, objective, groups, weight, drawn, config)
        sums, largest, on_texts = micro_batches.run(work, undo=optimizer.zero_grad)
        ratio_max = torch.maximum(ratio_max, largest)
        total = added(total, sums)
        if config.target_kl is not None:
            kl, tokens = accelerator.reduce(torch.stack((sums["policy/approx_kl"], sums["tokens"])), "sum").tolist()
            if kl / max(tokens, 1) > config.target_kl:
                optimizer.zero_grad()
                stopped_early = True
                break
        if not count:  # momentum alone would move the policy, though there is nothing to learn
            optimizer.zero_grad()
            continue
        text_loss += on_texts
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
    return update_metrics(total, ratio_max, accelerator) | {
        "grad_norm": norm_sum / max(steps - skipped, 1),
        "optimizer_steps": steps,
        "skipped_steps": skipped,
        "stopped_early": float(stopped_early),
        **({"ptx/loss": accelerator.reduce(text_loss, "mean").item() / max(steps, 1)} if texts and not frozen else {}),
        **({"loss_scale": scaler.get_scale()} if scaler.is_enabled() else {}),
    }


def accumulate_gradients(
    policy: nn.Module,
    accelerator: Accelerator,
    scaler: torch.amp.GradScaler,
    objective: Objective,
    groups: Tensor,
    weight: float,
    texts: Sequence[dict[str, Any]],
    config: PPOConfig,
    size: int,
) -> tuple[Sums, Tensor, Tensor]:
    """Add up the gradients of the weighted losses of groups and of the texts, up to `size` rows at a time.

    Return the sums for the metrics, the largest probability ratio, and the texts' loss per token.
    """
    sums: Sums = {}
    largest = torch.zeros((), device=accelerator.device)
    # A sharded policy adds up shards of gradients: whole ones, as without the collective, may not fit.
    adds_shards = is_sharded(policy)
    parts = groups.split(max(size // objective.rows.shape[1], 1))
    for number, part in enumerate(parts, start=1):
        with nullcontext() if number == len(parts) or adds_shards else accelerator.no_sync(policy):
            micro = objective.loss(objective.rows[part].flatten())
            accelerator.backward(scaler.scale(micro.loss * weight))
        sums = added(sums, {name: value.detach().float() for name, value in micro.sums.items()})
        largest = torch.maximum(largest, micro.ratio_max)
    return (
        sums,
        largest,
        add_text_gradients(policy, accelerator, scaler, texts, config.ptx_target, config.ptx_coef, size),
    )


def added(total: Sums, sums: Sums) -> Sums:
    """Return the sums with those of a further part."""
    return {name: total[name] + value for name, value in sums.items()} if total else sums


def update_metrics(total: Sums, ratio_max: Tensor, accelerator: Accelerator) -> dict[str, float]:
    """Return the metrics that are means over the tokens or pairs of all minibatches, from this process's sums."""
    largest_ratio = accelerator.gather(ratio_max.unsqueeze(0)).max().item()
    values = accelerator.reduce(torch.stack(list(total.values())), "sum").tolist()
    sums = dict(zip(total, values, strict=True))
    counts = {name: max(sums.pop(name), 1) for name in COUNTS.values() if name in sums}
    return {name: value / counts[COUNTS[name.split("/")[0]]] for name, value in sums.items()} | {
        "policy/ratio_max": largest_ratio
    }
