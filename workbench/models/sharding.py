"""Shard a model that is fine-tuned in full over GPUs with FSDP2, and put its tensors together again."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel


def shard_model(model: nn.Module, block_names: set[str]) -> None:
    """Divide each parameter, its gradient and its optimizer state among the processes, in place.

    Modules of the classes in `block_names` are gathered one after the other in forward and backward; everything else,
    tied embeddings included, is gathered once. Make the optimizer afterwards.
    """
    # T5's blocks return the relative positions, a view that nothing changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for module in reversed(list(model.modules())):  # a block inside another one first
        if type(module).__name__ in block_names:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def block_names(model: PreTrainedModel) -> set[str]:
    """Return the class names of the blocks that a model consists of, which transformers keeps on one device."""
    return set(model._no_split_modules or ())


def is_sharded(module: nn.Module) -> bool:
    """Return whether the parameters of a module, or of a part of it, are divided among the processes."""
    # Either may be missing: a gathered model has no divided parameters, and part of a model need not have blocks.
    has_blocks = any(isinstance(part, FSDPModule) for part in module.modules())
    return has_blocks or any(isinstance(parameter, DTensor) for parameter in module.parameters())


def full_tensor(tensor: Any) -> Any:
    """Return a tensor, put together from the shards of all processes if it has any; anything else as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a full tensor as `parameter` stores its values: on its device, and divided as it is."""
    moved = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return moved
    # Every process has the whole tensor, so there is nothing to send.
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)


def full_state_dict(model: nn.Module) -> dict[str, Any] | None:
    """Return the state dictionary of a sharded model in full on the main process; None for one that has it itself.

    Every process must call it.
    """
    if not is_sharded(model):
        return None
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    # Gathering makes one tensor for each name of a tied weight, and they would be saved side by side.
    first_names = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - first_names
    return {name: value for name, value in weights.items() if name not in tied}
