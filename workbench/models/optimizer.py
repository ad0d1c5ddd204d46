"""The optimizer: AdamW, or its paged form where its state would fill a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.distributed.tensor import DTensor

from workbench.models.policy import Policy

BYTES_OF_STATE = 8  # two moments in fp32
# Below, there is nothing worth moving to the host, and bitsandbytes waits for the device once per parameter.
PAGED_FRACTION = 1 / 16


def use_paged_optimizer(parameters: Iterable[nn.Parameter]) -> bool:
    """Return whether the optimizer's state may move to the host when a GPU is full (arXiv 2305.14314 section 3)."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained or trained[0].device.type != "cuda" or isinstance(trained[0], DTensor):
        return False  # bitsandbytes does not know shards
    state = BYTES_OF_STATE * sum(parameter.numel() for parameter in trained)
    return state > PAGED_FRACTION * torch.cuda.get_device_properties(trained[0].device).total_memory


def is_paged(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer, which Accelerate may have wrapped, is the paged one."""
    inner = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    return not isinstance(inner, torch.optim.AdamW)


def make_optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return AdamW without weight decay for parameter groups with learning rates."""
    if not use_paged_optimizer([parameter for group in groups for parameter in group["params"]]):
        return torch.optim.AdamW(groups, eps=1e-5, weight_decay=0.0)
    from bitsandbytes.optim import PagedAdamW32bit

    return PagedAdamW32bit(groups, eps=1e-5, weight_decay=0.0)


def parameter_groups(policy: Policy, rate: float, value_rate: float | None) -> list[dict[str, Any]]:
    """Return one parameter group for the policy and, if it has values, one for them, each with its learning rate."""
    value_parameters = [p for p in policy.value_parameters() if p.requires_grad]
    value_ids = {id(p) for p in value_parameters}
    policy_parameters = [p for p in policy.parameters() if p.requires_grad and id(p) not in value_ids]
    groups = [
        {"params": policy_parameters, "lr": rate},
        {"params": value_parameters, "lr": rate if value_rate is None else value_rate},
    ]
    return [group for group in groups if group["params"]]


def lr_multiplier(step: int, steps: int, schedule: Literal["linear", "cosine", "constant"]) -> float:
    """Return the fraction of the peak learning rate at `step`, which falls from 1 towards 0 at `steps`."""
    progress = step / steps
    return {"linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress)), "constant": 1.0}[schedule]


def set_rates(optimizer: torch.optim.Optimizer, peaks: Sequence[float], multiplier: float) -> None:
    """Set the learning rate of each parameter group to its peak times the multiplier."""
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * multiplier
