"""The precision of matrix products: chosen by what the hardware computes fast, unless the configuration names one."""

from __future__ import annotations

import functools
import time

import torch
from accelerate.utils import parse_flag_from_env
from transformers import PretrainedConfig

from workbench.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Their activations exceed 65504, the largest number in fp16.
OVERFLOWS_IN_FP16 = ("t5", "mt5", "umt5", "longt5", "switch_transformers", "gemma", "gemma2", "gemma3_text", "gemma3")
BF16_CAPABILITY = (8, 0)
# Features of a CPU that multiply bf16 numbers: two of x86, then two of ARM.
BF16_FEATURES = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
PROBE_SIZE = 512


def machine_device() -> torch.device:
    """Return the device that Accelerate will choose on this machine, without starting it."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None or parse_flag_from_env("ACCELERATE_USE_CPU") else accelerator


def resolve_precision(precision: str, device: torch.device, config: PretrainedConfig) -> str:
    """Return fp32, bf16 or fp16; `auto` is what the device computes fast and the architecture stands.

    Raises UserError for a precision that is known to fail with the architecture.
    """
    if precision == "auto":
        return fast_precision(device, config)[0]
    if precision == "fp16" and config.model_type in OVERFLOWS_IN_FP16:
        raise UserError(f"fp16 overflows in {config.model_type} (loss 0.0 or NaN); use auto, bf16 or fp32")
    return precision


def fast_precision(device: torch.device, config: PretrainedConfig) -> tuple[str, str]:
    """Return the precision for a device and an architecture, and the reason."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"compute capability {major}.{minor}"
        # Not torch.cuda.is_bf16_supported, which is also true where bf16 is emulated.
        if (major, minor) >= BF16_CAPABILITY:
            return "bf16", name
        if config.model_type in OVERFLOWS_IN_FP16:
            return "fp32", f"{name} has no bf16, and fp16 overflows in {config.model_type}"
        return "fp16", f"{name} has no bf16"
    if device.type == "cpu":
        return ("bf16", "the CPU multiplies bf16") if cpu_has_bf16() else ("fp32", "the CPU has no bf16 units")
    return "fp32", f"bf16 was not tried on {device.type}"


@functools.cache
def cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bf16 numbers in hardware."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(feature, False) for feature in BF16_FEATURES)


def precision_lines(key: str, precision: str, device: torch.device, config: PretrainedConfig) -> list[str]:
    """Return a line for a plan: why `auto` chose the precision at `key`, or that the one it names is emulated."""
    if precision == "auto":
        chosen, reason = fast_precision(device, config)
        return [f"{key}: auto is {chosen} ({reason})"]
    emulated = precision == "bf16" and fast_precision(device, config)[0] != "bf16"
    if not emulated and not (precision == "fp16" and device.type == "cpu"):
        return []
    ratio = slowdown(precision, device)
    if ratio < 1:
        return []
    return [
        f"{key}: warning: this {device.type} has no {precision} units: a product takes {ratio:.0f} times as long as in "
        "fp32; use auto"
    ]


@functools.cache
def slowdown(precision: str, device: torch.device) -> float:
    """Return how many times as long as in fp32 a matrix product takes, measured."""
    return _product_seconds(DTYPES[precision], device) / _product_seconds(torch.float32, device)


def _product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Return the seconds of the faster of two matrix products."""
    matrix = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype, device=device)
    seconds = []
    for _ in range(3):  # the first one starts threads and kernels
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Return the dtype of matrix products under autocast, or None for plain fp32."""
    return None if precision == "fp32" else DTYPES[precision]


def precision_name(autocast: torch.dtype | None) -> str:
    """Return the name of the precision that computes under this autocast dtype."""
    return next(name for name, dtype in DTYPES.items() if dtype == (autocast or torch.float32))
