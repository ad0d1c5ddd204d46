"""Helpers for runs on several processes: print once, wait for each other, divide batches."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING

from workbench.errors import UserError, printable_lines

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from workbench.config.schema import Config

USE_FSDP = "ACCELERATE_USE_FSDP"
IS_PLANNING = ContextVar("IS_PLANNING", default=False)

# While the main process scores the completions of an evaluation, the others wait; torch's default is to give up after
# ten minutes (GPUs) or thirty (CPUs).
PROCESS_TIMEOUT = timedelta(days=7)
TIME_TO_FAIL = timedelta(seconds=60)
"""How long a process that failed waits for the others to fail as well, before it ends and takes them along."""


def prepare_launch(config: Config) -> None:
    """Raise UserError for a launch that would train wrongly or not at all, and take over where models are sharded."""
    if is_set("ACCELERATE_USE_DEEPSPEED"):
        raise UserError(
            "launch: DeepSpeed is not supported; where a model that is fine-tuned in full does not fit one GPU, use "
            "FSDP2: accelerate launch --config_file recipes/accelerate/fsdp2.yaml"
        )
    if not is_set(USE_FSDP):
        return
    if "LOCAL_RANK" not in os.environ:
        del os.environ[USE_FSDP]  # no launcher started this process, so it has nobody to share with
        return
    if not has_gpus():
        raise UserError("launch: FSDP divides models among GPUs, and this machine has none")
    if os.environ.get("FSDP_VERSION") != "2":
        raise UserError("launch: only version 2 of FSDP is supported; set fsdp_version: 2")
    if config.policy.lora is not None:
        raise UserError(
            "launch: FSDP divides models that are fine-tuned in full, and policy.lora is set; use "
            "recipes/accelerate/multi_gpu.yaml, or set policy.lora to null"
        )
    for variable, key, instead in (
        ("FSDP_OFFLOAD_PARAMS", "fsdp_offload_params", "set it to false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "fsdp_activation_checkpointing", "use policy.gradient_checkpointing"),
    ):
        if is_set(variable):
            raise UserError(f"launch: {key} is not supported; {instead}")
    # Every process reads the weights: with this on, transformers leaves those of all but the first empty until FSDP
    # has divided them, also where nothing is divided, as in rewards and judges.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"  # so that any number of processes resumes
    # Models are divided before Accelerate sees them; it would refuse one that lacks a block its architecture names.
    os.environ["FSDP_AUTO_WRAP_POLICY"] = "NO_WRAP"


def has_gpus() -> bool:
    """Return whether the processes compute on GPUs."""
    import torch

    return torch.cuda.is_available() and not is_set("ACCELERATE_USE_CPU")


def process_device(name: str | None = None) -> torch.device:
    """Return the device on which this process scores texts: the one of that name, or by default its own GPU.

    While stages are planned, and where there is no GPU, it is the CPU.
    """
    import torch

    if name is not None and not IS_PLANNING.get():
        return torch.device(name)
    if IS_PLANNING.get() or not has_gpus():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def planned_on_cpu() -> Iterator[None]:
    """Keep rewards and judges that are loaded and tried in the block off the GPUs, where SFT needs the memory."""
    token = IS_PLANNING.set(True)
    try:
        yield
    finally:
        IS_PLANNING.reset(token)


def is_sharded_launch() -> bool:
    """Return whether models that are fine-tuned in full are divided among the processes."""
    return is_set(USE_FSDP)


def is_set(variable: str) -> bool:
    """Return whether a variable of the launcher is on."""
    return os.environ.get(variable, "false").lower() in ("true", "1")


@contextmanager
def data_parallel() -> Iterator[None]:
    """Let the Accelerator that is made in the block copy models to every process, also where FSDP was launched."""
    launched = os.environ.pop(USE_FSDP, None)
    try:
        yield
    finally:
        if launched is not None:
            os.environ[USE_FSDP] = launched


def was_launched() -> bool:
    """Return whether `accelerate launch` started this process."""
    return "ACCELERATE_DYNAMO_BACKEND" in os.environ


def report_idle_cores() -> None:
    """Print a note if `accelerate launch` limits a CPU run to one thread per process, which is its default."""
    import torch

    cores = (os.cpu_count() or 1) // int(os.environ.get("WORLD_SIZE", "1"))
    if was_launched() and os.environ.get("OMP_NUM_THREADS") == "1" and cores > 1 and not torch.cuda.is_available():
        print_once(
            f"note: using 1 thread on {cores} cores; "
            f"accelerate launch --num_cpu_threads_per_process {cores} uses them all"
        )


def wait_for_everyone() -> None:
    """Wait for the other processes, so that every file of a stage is written before the next stage reads it."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # PartialState is a singleton, and it ignores this flag; AcceleratorState, which is made later, would read it.
    cpu, started = parse_flag_from_env("ACCELERATE_USE_CPU"), os.environ.get("WORLD_SIZE", "1")
    state = PartialState(cpu=cpu, timeout=PROCESS_TIMEOUT)
    if state.num_processes != int(started):
        raise UserError(
            f"launch: {started} processes were started, but there is no GPU for them; "
            "for processes on CPUs, set ACCELERATE_USE_CPU=true"
        )
    state.wait_for_everyone()


def print_once(line: str) -> None:
    """Print a line once, whatever the number of processes, without what a terminal would obey."""
    if is_main_process():
        print(printable_lines(line), flush=True)


def is_main_process() -> bool:
    """Return whether this is the main process, from the launcher's environment, so that nothing has to be imported."""
    return os.environ.get("RANK", "0") == "0"


def reset_accelerate() -> None:
    """Reset Accelerate's global state, so that the next stage sets its own precision and plugins."""
    from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState

    AcceleratorState._reset_state()
    # Resetting this one too would forget that a run is on CPUs.
    state = PartialState()
    if state.distributed_type == DistributedType.FSDP:
        state.distributed_type = DistributedType.MULTI_GPU
    GradientState._reset_state()
    gc.collect()


def processes_warning(stage: str, before: int, now: int, drawn: str) -> str | None:
    """Return a warning where another number of processes saved what is resumed, or None; `drawn` will be others."""
    if before == now:
        return None
    return (
        f"{stage}: warning: saved by {before} process{'es' * (before > 1)}, resumed by {now}: the steps from here on "
        f"draw other {drawn} than they would have"
    )


def precision_warning(stage: str, before: str, now: str, key: str) -> str | None:
    """Return a warning where what is resumed was saved in another precision, or None."""
    if before == now:
        return None
    return f"{stage}: warning: this machine goes on in {now} what was begun in {before}; see {key}"


def per_process(key: str, value: int, processes: int) -> int:
    """Return the value per process; raises UserError unless the number of processes divides it."""
    if value % processes:
        raise UserError(f"{key}: {value} is not a multiple of the {processes} processes")
    return value // processes


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Return whether the flag is set on any process."""
    import torch

    local = torch.tensor([float(flag)], device=accelerator.device)
    return bool(accelerator.reduce(local, "sum").item())


@contextmanager
def fail_with_main() -> Iterator[None]:
    """Make every process fail if the block fails on the main one, which alone does something in it."""
    from accelerate.utils import broadcast_object_list

    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    (has_failed,) = broadcast_object_list([failure is not None])
    if has_failed:
        raise failure or UserError("stopped because the main process failed; see its error")


@contextmanager
def fail_together(accelerator: Accelerator) -> Iterator[None]:
    """Make every process fail if the block fails on any of them, so that none waits for one that has exited.

    The block must not contain a collective operation.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if any_process(accelerator, failure is not None):
        raise failure or UserError("stopped because another process failed; see its error")


def fail_alike(name: str, failure: str | None) -> str | None:
    """Return why a piece of work failed, on all processes or on none; `failure` is this process's own reason, if any.

    Raises UserError where others are still in the work, waiting for this process: they end with it. Every piece of work
    needs a name of its own.
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return failure
    store, rank = dist.distributed_c10d._get_default_store(), dist.get_rank()
    store.set(f"failure/{name}/{rank}", failure or "")
    keys = [f"failure/{name}/{process}" for process in range(dist.get_world_size())]
    try:
        store.wait(keys, PROCESS_TIMEOUT if failure is None else TIME_TO_FAIL)
    except RuntimeError as error:  # of every kind of store its own
        raise UserError(f"{name}: {failure}") from error
    failures = [text for key in keys if (text := store.get(key).decode())]
    # The others only say that one of them has failed.
    return min(failures, key=lambda text: text.endswith("see its error"), default=None)
