"""Shard a policy with its value model and its reference over GPUs, train it, and gather it to sample."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from workbench.models.policy import Policy
from workbench.models.sharding import block_names, is_sharded, shard_model


def shard_policy(policy: Policy) -> None:
    """Shard a policy with its value model and its reference, in place; see `gathered` before it samples."""
    names = block_names(policy.base)
    shard_model(policy, names)
    # `generate` runs the blocks without Policy.forward; FSDP takes what runs first for the root.
    register_fsdp_forward_method(policy, "generate")
    if policy.reference is not None:
        shard_model(policy.reference, names)


def prepare(
    policy: Policy, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return policy and optimizer as they train on several processes; a sharded policy does so by itself."""
    return (policy, optimizer) if is_sharded(policy) else accelerator.prepare(policy, optimizer)


def loss_scaler(policy: Policy) -> torch.amp.GradScaler:
    """Return the scaling of the loss that fp16 needs; it does nothing in other precisions."""
    is_enabled = policy.autocast_dtype == torch.float16
    if not is_sharded(policy):
        return torch.amp.GradScaler(policy.device.type, enabled=is_enabled)
    # The other one would judge each process's own shards of the gradients, and change each one's scale by itself.
    warnings.filterwarnings("ignore", message="Found a non-scalar tensor with numel=1")  # the scale itself
    return ShardedGradScaler(policy.device.type, enabled=is_enabled)


@contextmanager
def gathered(policy: Policy) -> Iterator[None]:
    """Hold all weights of a sharded policy and its reference on every device, so that it samples without collectives.

    Processes may then run different numbers of forward passes. A policy that is not sharded has all of its weights.
    """
    roots: list[nn.Module] = [policy] if policy.reference is None else [policy, policy.reference]
    sharded = [module for root in roots for module in root.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            # What a root holds itself is needed again right after its forward pass, for the backward pass.
            module.set_reshard_after_forward(module not in roots, recurse=False)
