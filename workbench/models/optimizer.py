"""The optimizer: AdamW, or its paged form where its state would fill a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.distributed.tensor import DTensor

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
