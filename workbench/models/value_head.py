"""The head that reads the value of a token from the state before it."""

from __future__ import annotations

import torch
from torch import nn


def zero_head(features: int, device: torch.device) -> nn.Linear:
    """Return a head that predicts 0 before it has learned anything."""
    head = nn.Linear(features, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head.to(device)
