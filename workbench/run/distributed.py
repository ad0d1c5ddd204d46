"""What depends on how many processes were launched: printing once, meeting, sharing out."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from workbench.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

# The other processes wait while the main one judges an evaluation's completions, where torch would give up after ten
# minutes (GPUs) or thirty.
PROCESS_TIMEOUT = timedelta(days=7)


def report_idle_cores() -> None:
    """Say so when `accelerate launch`, as it does unless told otherwise, left a CPU run one thread of several cores."""
    import torch

    cores = (os.cpu_count() or 1) // int(os.environ.get("WORLD_SIZE", "1"))
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1" and cores > 1 and not torch.cuda.is_available():
        print_once(
            f"note: one thread of {cores} cores in use; "
            f"accelerate launch --num_cpu_threads_per_process {cores} uses all"
        )


def wait_for_everyone() -> None:
    """Meet the other processes; a stage must find what the one before it wrote."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # The first state decides for all that come after it, and only later ones would look for this flag by themselves.
    cpu, started = parse_flag_from_env("ACCELERATE_USE_CPU"), os.environ.get("WORLD_SIZE", "1")
    state = PartialState(cpu=cpu, timeout=PROCESS_TIMEOUT)
    if state.num_processes != int(started):
        raise UserError(
            f"launch: {started} processes were started, but there is no GPU for them to meet on; "
            "for processes on CPUs put ACCELERATE_USE_CPU=true before the command"
        )
    state.wait_for_everyone()


def print_once(line: str) -> None:
    """Print a line once, whatever the number of processes."""
    if is_main_process():
        print(line, flush=True)


def is_main_process() -> bool:
    """Known from the launcher's environment, so that it can be asked before anything is loaded."""
    return os.environ.get("RANK", "0") == "0"


def reset_accelerate() -> None:
    """Forget the trainer's global state, so that the next stage sets its own precision and plugins."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()
    gc.collect()


def per_process(key: str, value: int, processes: int) -> int:
    """The share of each process; raises UserError unless the processes divide the value."""
    if value % processes:
        raise UserError(f"{key}: {value} is not a multiple of the {processes} processes")
    return value // processes


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Return whether the flag is set on any process."""
    import torch

    local = torch.tensor([float(flag)], device=accelerator.device)
    return bool(accelerator.reduce(local, "sum").item())


@contextmanager
def fail_together(accelerator: Accelerator) -> Iterator[None]:
    """Let every process fail where the block fails on any of them, so that none waits for one that is gone.

    The block must not hold a collective.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if any_process(accelerator, failure is not None):
        raise failure or UserError("stopped, because another process failed; its error says why")
