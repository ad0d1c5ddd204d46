"""The optimizer: AdamW, or its paged form for a quantized base on a GPU."""

from __future__ import annotations

from typing import Any

import torch

from workbench.config.schema import PolicyConfig


def use_paged_optimizer(policy: PolicyConfig, device: torch.device) -> bool:
    """Return whether the optimizer's state may move to the host when a GPU is full (arXiv 2305.14314 section 3)."""
    return policy.quantization is not None and device.type == "cuda"


def make_optimizer(groups: list[dict[str, Any]], *, paged: bool) -> torch.optim.Optimizer:
    """Return AdamW without weight decay for parameter groups with learning rates; `paged` uses bitsandbytes."""
    if not paged:
        return torch.optim.AdamW(groups, eps=1e-5, weight_decay=0.0)
    from bitsandbytes.optim import PagedAdamW32bit

    return PagedAdamW32bit(groups, eps=1e-5, weight_decay=0.0)
