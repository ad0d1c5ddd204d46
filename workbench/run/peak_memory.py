"""Measure the most memory that a block of code holds at once."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # of the resident set, to what it is now (man 5 proc)


@dataclass
class PeakMemory:
    """The most memory that a block held; set when it ends."""

    size: int | None = None
    """Bytes: on a GPU of all tensors, on a CPU of the process beyond what it held before; None where unknown."""


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measure the peak of the block: on a GPU the allocated tensors, on a CPU under Linux the growth of the process."""
    peak = PeakMemory()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.size = torch.cuda.max_memory_allocated()
        return
    before = resident_before() if sys.platform == "linux" else None
    yield peak
    if before is not None:
        peak.size = max(0, status_bytes("VmHWM") - before)


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
