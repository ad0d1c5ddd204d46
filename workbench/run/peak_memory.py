"""Measure the most memory that a block of code holds at once."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # of the resident set, to what it is now (man 5 proc)


@dataclass
class PeakMemory:
    """The most memory that a block holds."""

    measure: Callable[[], int | None]
    """Return the bytes up to here, or of the whole block once it has ended: on a GPU of all tensors, on a CPU of the
    process beyond what it held before; None where unknown."""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak of the block: on a GPU the allocated tensors, on a CPU under Linux the growth of the process."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        peak = PeakMemory(partial(torch.cuda.max_memory_allocated, device))
    else:
        before = resident_before() if sys.platform == "linux" else None
        peak = PeakMemory(lambda: None if before is None else max(0, status_bytes("VmHWM") - before))
    yield peak
    size = peak.measure()
    peak.measure = lambda: size


def resident_before() -> int | None:
    """Return the bytes that the process holds, and count its peak from here; None where the kernel does not let it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # else the block would first use up what was freed before it
    try:
        CLEAR.write_text(RESET_PEAK, encoding="ascii")
        return status_bytes("VmRSS")
    except OSError:
        return None


def status_bytes(name: str) -> int:
    """Return a number of bytes from the process's status, in which it stands in kibibytes."""
    line = next(
        line
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        if line.startswith(f"{name}:")
    )
    return 1024 * int(line.split()[1])
