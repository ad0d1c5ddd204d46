"""A CUDA device that is simulated on a CPU build of torch: real values, device checks, and every wait for it counted.

A tensor on it holds its values on the CPU. A CPU tensor or generator that meets one raises, as on a GPU. What a GPU
does besides (streams, memory limits, other orders of summation, bitsandbytes' kernels) is not simulated.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)
# Operations that move nothing and wait for nothing.
COPIES = {"_to_copy", "copy_"}
# Operations whose result has a size, or a value, that the host must know.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
waits: Counter[str] = Counter()
"""How often the host waited for the device, by operation and place in the code."""


class OnDevice(Tensor):
    """A tensor on the simulated device."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        """Wrap values that lie on the CPU."""
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        wrapped = Tensor._make_wrapper_subclass(cls, values.size(), device=DEVICE, **layout)
        wrapped.values = values
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on the device."""
        return run(operation, args, kwargs or {})

    def tolist(self) -> Any:
        """Wait for the device and return the values."""
        count_wait("tolist")
        return self.values.tolist()

    def data_ptr(self) -> int:
        """Return the address of the values."""
        return self.values.data_ptr()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """Raise, as on a GPU."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        """Show the values."""
        return f"OnDevice({self.values})"


class Simulated(TorchDispatchMode):
    """Makes `device="cuda"` work, in a block."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Send what touches the device to `run`."""
        kwargs = kwargs or {}
        on_device = any(isinstance(value, OnDevice) for value in tree_flatten((args, kwargs))[0])
        if on_device or device_type(kwargs.get("device")) == "cuda":
            return run(operation, args, kwargs)
        return operation(*args, **kwargs)


def run(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation on the values; raise RuntimeError where it mixes devices, and count it if the host waits."""
    name = operation._schema.name.split("::")[-1]
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    target = device_type(kwargs.get("device"))
    check_devices(operation, name, args, kwargs, tensors)
    if is_waiting(name, args, tensors, target):
        count_wait(name)
    plain = dict(kwargs)
    if target is not None:
        plain["device"] = torch.device("cpu")
    if name == "_to_copy":
        plain.pop("non_blocking", None)
    output = operation(*tree_map(values_of, args), **tree_map(values_of, plain))
    stays = target == "cuda" or (target is None and any(isinstance(tensor, OnDevice) for tensor in tensors))
    if not stays:
        return output
    written = written_argument(operation, args, kwargs)
    if written is not None:
        return written
    return tree_map(lambda value: OnDevice(value) if type(value) is Tensor else value, output)


def check_devices(
    operation: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]
) -> None:
    """Raise RuntimeError for an operation that a GPU would refuse."""
    on_device = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    others = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    generator = kwargs.get("generator")
    if generator is not None and on_device and generator.device.type == "cpu":
        raise RuntimeError(f"{operation}: a CPU generator for a CUDA tensor")
    if name in COPIES or not on_device:
        return
    if name in INDEXING:
        if not isinstance(args[0], OnDevice):
            raise RuntimeError(f"{operation}: a CPU tensor indexed by a CUDA tensor")
    elif any(tensor.dim() > 0 for tensor in others):
        shapes = [tuple(tensor.shape) for tensor in others]
        raise RuntimeError(f"{operation}: expected all tensors on the same device, but {shapes} are on the CPU")


def is_waiting(name: str, args: Sequence[Any], tensors: Sequence[Tensor], target: str | None) -> bool:
    """Return whether the host waits for the device."""
    if not any(isinstance(tensor, OnDevice) for tensor in tensors):
        return False
    if name in INDEXING:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if name == "copy_":
        return not isinstance(args[0], OnDevice)
    return name in WAITING or (name == "_to_copy" and target == "cpu")


def written_argument(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the argument that an operation in place writes and returns; None for any other operation."""
    if not any(value.alias_info is not None and value.alias_info.is_write for value in operation._schema.returns):
        return None
    for index, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return args[index] if index < len(args) else kwargs.get(argument.name)
    return None


def count_wait(what: str) -> None:
    """Count a wait at the place in the code that asked for it."""
    frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
    places = [f"{frame.filename.split('site-packages/')[-1]}:{frame.lineno}" for frame in frames]
    code_line = next((line for line in reversed(places) if "simulated_cuda.py" not in line), "autograd")
    waits[f"{what} at {code_line}"] += 1


def values_of(value: Any) -> Any:
    """Return what a tensor on the device holds."""
    return value.values if isinstance(value, OnDevice) else value


def device_type(device: Any) -> str | None:
    """Return the type of a device, or None."""
    return None if device is None else torch.device(device).type


def move(module: nn.Module) -> None:
    """Move a module's parameters, of which several names may share one, and its buffers to the device."""
    moved = {id(p): nn.Parameter(OnDevice(p.data), requires_grad=p.requires_grad) for p in module.parameters()}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            part._parameters[name] = None if parameter is None else moved[id(parameter)]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else OnDevice(buffer)


def install() -> None:
    """Make torch believe in the device, for the rest of the process."""
    make_on_cpu: Callable[..., Tensor] = torch.tensor

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        """Return a tensor that is made on the CPU and moved."""
        on_cpu = make_on_cpu(data, *args, **kwargs)
        return on_cpu if device is None else on_cpu.to(device)

    properties = SimpleNamespace(total_memory=16 * 2**30, major=8, minor=0)
    replacements: dict[str, Any] = {
        "is_bf16_supported": lambda *args, **kwargs: True,
        "get_device_properties": lambda *args, **kwargs: properties,
        "get_device_capability": lambda *args, **kwargs: (8, 0),
        "_lazy_init": lambda: None,
    }
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.tensor = tensor
