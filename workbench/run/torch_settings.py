"""Settings of torch that hold for a whole thread or process, read before a block and set again after it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

AUTOCAST_DEVICES = ("cpu", "cuda")
# In the order in which they are set again: one that is "none" has the precision of the one before it.
PRECISIONS = (
    *("", "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn"),
    *("mkldnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"),
)


@dataclass(frozen=True)
class TorchSettings:
    """Settings of torch; the defaults are those with which it is imported."""

    gradients: bool = True
    dtype: Any = None
    """None is float32."""
    device_context: Any = None
    """The mode of torch.set_default_device, or None."""
    function_modes: tuple[Any, ...] = ()
    """What intercepts torch's functions, such as a torch.device that was entered; the last one first of all."""
    mode_device: Any = None
    threads: int | None = None
    """None is the number that torch chose."""
    deterministic: bool = False
    warn_only: bool = False
    cudnn: tuple[bool, bool, bool] | None = None
    """Enabled, benchmark and deterministic; None is whatever holds."""
    precisions: dict[str, str] = field(default_factory=dict)
    """Of float32 products, by backend."""
    matmul_precision: str | None = None
    """The same by its older name; None where torch does not tell it, because both were set."""

    def restore(self) -> None:
        """Set again what has changed; nothing where torch is not imported."""
        current = read_torch_settings()
        if current is None or current == self:
            return
        import torch
        from torch.overrides import _pop_mode, _push_mode
        from torch.utils import _device

        # Modes first: under one the calls below could mean something else.
        if current.function_modes != self.function_modes or current.device_context is not self.device_context:
            for _ in current.function_modes:
                _pop_mode()
            for mode in self.function_modes:
                _push_mode(mode)
            torch._GLOBAL_DEVICE_CONTEXT.device_context = self.device_context
            _device.CURRENT_DEVICE = self.mode_device
        torch.set_grad_enabled(self.gradients)
        torch.set_default_dtype(self.dtype or torch.float32)
        if self.threads is not None and current.threads != self.threads:
            torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        cudnn = torch.backends.cudnn
        if self.cudnn is not None:
            cudnn.enabled, cudnn.benchmark, cudnn.deterministic = self.cudnn
        if self.matmul_precision not in (None, current.matmul_precision):
            torch.set_float32_matmul_precision(self.matmul_precision)
        for name, precision in self.precisions.items():
            backend = torch_backend(name)
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision


def read_torch_settings() -> TorchSettings | None:
    """Return torch's settings, or None if nothing in this process has imported it."""
    if not is_imported():  # importing it takes seconds, which a lexicon need not wait for
        return None
    import torch
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils import _device

    cudnn = torch.backends.cudnn
    backends = {name: torch_backend(name) for name in PRECISIONS}
    return TorchSettings(
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None),
        tuple(_get_current_function_mode_stack()),
        _device.CURRENT_DEVICE,
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        {name: backend.fp32_precision for name, backend in backends.items() if hasattr(backend, "fp32_precision")},
        read_matmul_precision(),
    )


def read_matmul_precision() -> str | None:
    """Return the precision of torch.set_float32_matmul_precision, or None where torch refuses to tell it."""
    import torch

    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def is_imported() -> bool:
    """Return whether torch can be used without importing it; a module that is being imported cannot."""
    return hasattr(sys.modules.get("torch"), "_GLOBAL_DEVICE_CONTEXT")


def torch_backend(name: str) -> Any:
    """Return the part of torch.backends of a dotted name, or None where this version has none."""
    import torch

    backend: Any = torch.backends
    for part in filter(None, name.split(".")):
        backend = getattr(backend, part, None)
    return backend


@dataclass(frozen=True)
class AutocastSettings:
    """Autocast of one thread, which a context that was entered and never left changes; by default it is off."""

    enabled: dict[str, bool] = field(default_factory=dict)
    dtypes: dict[str, Any] = field(default_factory=dict)
    caches: bool = True
    nesting: int = 0

    def restore(self) -> None:
        """Set again what has changed; nothing where torch is not imported."""
        current = read_autocast_settings()
        if current == self or current is None:
            return
        import torch

        for device in AUTOCAST_DEVICES:
            torch.set_autocast_enabled(device, self.enabled.get(device, False))
            torch.set_autocast_dtype(device, self.dtypes.get(device, current.dtypes[device]))
        torch.set_autocast_cache_enabled(self.caches)
        # At a wrong level the casts of old weights would stay cached from one step to the next.
        for _ in range(current.nesting - self.nesting):
            torch.autocast_decrement_nesting()
        for _ in range(self.nesting - current.nesting):
            torch.autocast_increment_nesting()
        torch.clear_autocast_cache()


def read_autocast_settings() -> AutocastSettings | None:
    """Return the autocast of this thread, or None if nothing in this process has imported torch."""
    if not is_imported():
        return None
    import torch

    torch.autocast_increment_nesting()
    return AutocastSettings(
        {device: torch.is_autocast_enabled(device) for device in AUTOCAST_DEVICES},
        {device: torch.get_autocast_dtype(device) for device in AUTOCAST_DEVICES},
        torch.is_autocast_cache_enabled(),
        torch.autocast_decrement_nesting(),
    )
