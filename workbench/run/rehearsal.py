"""Rehearse trainer_args: a few steps of a scratch model, and every phase of the schedule of the learning rate."""

from __future__ import annotations

import io
import math
import os
import random
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import TorchDynamoPlugin
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, get_scheduler
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from workbench.run.library_settings import library_settings_restored
from workbench.run.trainer_plan import TrainerPlan

# For arguments that are made on a machine that need not have the device of the run.
ON_CPU: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "fp16": False,
    "torch_compile": False,
    "torch_compile_backend": None,
    "torch_compile_mode": None,
}
# Without what would only take time in a step of the scratch model.
REHEARSED = ON_CPU | {
    "dataloader_num_workers": 0,
    "full_determinism": False,
    "debug": "",
    "skip_memory_metrics": True,
}
NEEDS_WORKERS = ("dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context")
LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SCRATCH_MODEL = {
    "n_embd": 8,
    "n_layer": 1,
    "n_head": 1,
    "n_positions": 8,
    "vocab_size": 8,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "loss_type": "ForCausalLM",
}
REHEARSED_STEPS = 3
ALL_STEPS = 20_000
"""Of a longer training as many steps of the schedule are computed, spread evenly and around its phases."""
EVALUATIONS = 1000


def rehearse(plan: TrainerPlan, extra: dict[str, Any]) -> Exception | None:
    """Return what the trainer raises with these arguments within a few steps, on two rows and a scratch model, or None.

    The scratch model stays on the CPU, in this process alone, and no file or state of a library is left behind.
    """
    with isolated(), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            take_steps(plan, extra, folder)
        except Exception as error:  # every library that reads an argument raises its own exceptions
            return error
    return None


def take_steps(plan: TrainerPlan, extra: dict[str, Any], folder: str) -> None:
    """Train and evaluate the scratch model, and compute the schedule of the stage's own length."""
    dropped = (*REHEARSED, *(NEEDS_WORKERS if extra.get("dataloader_num_workers") else ()))
    check_loader(extra)
    TorchDynamoPlugin(backend=extra.get("torch_compile_backend"), mode=extra.get("torch_compile_mode"))
    values = {name: value for name, value in extra.items() if name not in dropped}
    if "optim_target_modules" in values:
        values["optim_target_modules"] = "all-linear"  # those that are named are the stage's model's
    arguments = plan.arguments(values | REHEARSED | {"output_dir": folder})
    check_schedule(arguments, plan.steps(arguments))
    if torch.cuda.is_available() and is_for_gpus(str(arguments.optim)):
        return
    arguments.max_steps = arguments.save_steps = REHEARSED_STEPS
    if arguments.eval_strategy != "no":
        arguments.eval_steps = REHEARSED_STEPS
    model = GPT2LMHeadModel(GPT2Config(**SCRATCH_MODEL))
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 2
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows if plan.rows_key is None else None,
        compute_metrics=lambda _: dict.fromkeys(plan.metrics, 0.5),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if plan.rows_key is None:
        trainer.evaluate()


def check_loader(extra: dict[str, Any]) -> None:
    """Raise what a data loader raises that is made with these arguments, whose workers are not started."""
    if extra.get("dataloader_num_workers"):
        names = ("dataloader_num_workers", *NEEDS_WORKERS)
        rows: Any = [0]
        DataLoader(rows, **{name.removeprefix("dataloader_"): extra[name] for name in names if name in extra})


def check_schedule(arguments: TrainingArguments, steps: int) -> None:
    """Raise what the schedule of a training of so many steps raises in any of its phases, or ValueError for a bad rate.

    Its options are read late: those of the decay after the warmup, those of a plateau after evaluations without a
    better result.
    """
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]  # with and without weight decay
    scheduler = get_scheduler(
        arguments.lr_scheduler_type,
        torch.optim.SGD(groups, lr=arguments.learning_rate),
        num_warmup_steps=arguments.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
    if isinstance(scheduler, LambdaLR):
        (factor, *_) = scheduler.lr_lambdas
        for step in schedule_steps(arguments, steps):
            check_rate(factor(step) * arguments.learning_rate, step)
        return
    stepped: Any = scheduler
    for metrics in (*[1.0] * EVALUATIONS, *range(EVALUATIONS, 0, -1)):
        stepped.step(metrics)
        check_rate(max(stepped.get_last_lr()), None)


def schedule_steps(arguments: TrainingArguments, steps: int) -> Iterable[int]:
    """Return the steps whose learning rates are computed: all of them, or many and those around each phase."""
    if steps <= ALL_STEPS:
        return range(steps + 1)
    lengths = [value for value in (arguments.lr_scheduler_kwargs or {}).values() if type(value) is int]
    edges = [arguments.get_warmup_steps(steps), *lengths, *(steps - length for length in lengths)]
    near = {edge + offset for edge in edges for offset in (-1, 0, 1)}
    spread = range(0, steps, steps // ALL_STEPS)
    return sorted(step for step in {*spread, *near, steps} if 0 <= step <= steps)


def check_rate(rate: Any, step: int | None) -> None:
    """Raise ValueError unless a learning rate is one that an optimizer can take a step with."""
    if not isinstance(rate, int | float) or not math.isfinite(rate) or rate < 0:
        when = "" if step is None else f" at step {step}"
        raise ValueError(f"it gives a learning rate of {rate}{when}; it must be 0 or above")


def is_for_gpus(optimizer: str) -> bool:
    """Return whether an optimizer is one of bitsandbytes, which needs a GPU."""
    return any(part in optimizer.lower() for part in ("paged", "bnb", "bit"))


@contextmanager
def isolated() -> Iterator[None]:
    """Restore the libraries' state, the environment and random numbers after the block, which is in no launch."""
    states = (PartialState, AcceleratorState, GradientState)
    before = [dict(state._shared_state) for state in states]
    environment = dict(os.environ)
    numbers, arrays = random.getstate(), np.random.get_state()
    for state in states:
        state._shared_state.clear()
    for name in (*LAUNCH_VARIABLES, *(name for name in environment if name.startswith(("ACCELERATE_", "FSDP_")))):
        os.environ.pop(name, None)
    try:
        with library_settings_restored(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(numbers)
        np.random.set_state(arrays)
        for state, shared in zip(states, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(shared)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
