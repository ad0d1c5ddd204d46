"""Check trainer_args in the plan: types, ranges, what the run sets itself, and a few steps of a scratch model."""

from __future__ import annotations

import dataclasses
import enum
import math
import os
import tempfile
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from workbench.config.annotations import alternatives
from workbench.config.checks import check_range
from workbench.config.ranges import Range
from workbench.errors import UserError, one_line, shorten, suggestion

LAUNCHER = "the launcher's configuration decides; see recipes/accelerate"
PUSH = "the workbench pushes nothing while it trains; use its export command with --push_to_hub"
RESULTS = "the stage reads the trainer's own results; leave it out"
RUN_KEYS = {
    "output_dir": "checkpoints belong in the run folder; choose it with --runs and --name",
    "report_to": "the run logs its metrics itself; choose a tracker with track",
    "resume_from_checkpoint": "the same command resumes from the last checkpoint by itself",
    "use_cpu": "the launch decides; set the environment variable ACCELERATE_USE_CPU=true",
    "gradient_checkpointing": "its name is now activation_checkpointing",
    "gradient_checkpointing_kwargs": "its name is now activation_checkpointing_kwargs",
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "parallelism_config", "ddp_backend", "local_rank"), LAUNCHER),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "hub_private_repo"), PUSH),
    **dict.fromkeys(("label_names", "prediction_loss_only", "batch_eval_metrics", "include_for_metrics"), RESULTS),
}
"""Arguments that the run sets or cannot do without, and what to do instead."""
STEPS = 10_000_000
COUNT, INTERVAL = Range(minimum=1, maximum=STEPS), Range(above=0, maximum=STEPS)
# The upper bounds are far above what trains anything, and within what the trainer's own arithmetic can hold.
RANGES = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), Range(minimum=1, maximum=2**20)),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps"), Range(minimum=1, maximum=2**20)),
    **dict.fromkeys(("save_total_limit", "torch_empty_cache_steps"), COUNT),
    **dict.fromkeys(("logging_steps", "save_steps", "eval_steps"), INTERVAL),
    **dict.fromkeys(("warmup_steps", "eval_delay"), Range(minimum=0, maximum=STEPS)),
    **dict.fromkeys(("learning_rate", "weight_decay"), Range(minimum=0, maximum=10)),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), Range(minimum=0, maximum=1)),
    **dict.fromkeys(("seed", "data_seed"), Range(minimum=0, maximum=2**32 - 1)),
    **dict.fromkeys(("ddp_timeout", "ddp_bucket_cap_mb"), Range(minimum=1, maximum=2**31 - 1)),
    "num_train_epochs": Range(minimum=1e-6, maximum=100_000),
    "max_steps": Range(minimum=-1, maximum=STEPS),
    "max_grad_norm": Range(minimum=1e-6, maximum=1e9, zero="no clipping"),
    "neftune_noise_alpha": Range(minimum=0, maximum=1000),
    "adam_epsilon": Range(minimum=1e-30, maximum=1),
    "dataloader_num_workers": Range(minimum=0, maximum=1024),
    "dataloader_prefetch_factor": Range(minimum=1, maximum=2**16),
}
# The trainer takes any other name for random.
SAMPLING_STRATEGIES = ("random", "sequential", "group_by_length", "batch_rebalance")
PRECISIONS = ("bf16", "fp16")
# Which device computes, and what would only take time in a step of the scratch model.
REHEARSED = {
    "use_cpu": True,
    "bf16": False,
    "fp16": False,
    "dataloader_num_workers": 0,
    "torch_compile": False,
    "full_determinism": False,
}
NEEDS_WORKERS = ("dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context")
LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TYPES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    dict: "a mapping",
    list: "a list",
}
MAX_REASON = 300
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
REHEARSED_STEPS = 10  # some schedules read their options only after the warmup


@dataclass(frozen=True)
class TrainerPlan:
    """What the stage's trainer will be made with, as far as its arguments have to fit it."""

    key: str
    """Of trainer_args in the configuration, such as sft.trainer_args."""
    extra: dict[str, Any]
    """The configured trainer_args."""
    arguments: Callable[[dict[str, Any]], TrainingArguments]
    """Make the stage's arguments; those given take precedence over the stage's own."""
    precision: str
    precision_key: str
    rows_key: str | None
    """The key to set for rows to evaluate on; None where the stage has some."""
    metrics: Sequence[str] = ()
    """What the trainer measures on those rows, beside the loss."""


def check_trainer_args(plan: TrainerPlan) -> None:
    """Raise UserError, with the key, for trainer_args that the trainer would refuse or fail with."""
    hints = typing.get_type_hints(TrainingArguments)
    fields = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    for name, value in plan.extra.items():
        key = f"{plan.key}.{name}"
        if name not in fields:
            raise UserError(f"{key}: TrainingArguments has no such field{suggestion(name, fields)}")
        if name in RUN_KEYS and not (name == "report_to" and value == "none"):
            raise UserError(f"{key}: {RUN_KEYS[name]}")
        if not (value is None and fields[name].default is None):
            check_type(value, hints[name], key)
        if name in RANGES and value is not None:
            check_range(value, RANGES[name], key)
    strategy = plan.extra.get("train_sampling_strategy", SAMPLING_STRATEGIES[0])
    if strategy not in SAMPLING_STRATEGIES:
        key = f"{plan.key}.train_sampling_strategy"
        raise UserError(f"{key}: {shorten(strategy)} is unknown; use one of {', '.join(SAMPLING_STRATEGIES)}")
    check_precision(plan)
    check_evaluation(plan)
    if not plan.extra:
        return
    failure = rehearse(plan, plan.extra)
    if failure is not None:
        workers = {name: plan.extra[name] for name in ("dataloader_num_workers",) if name in plan.extra}
        culprits = [name for name in plan.extra if rehearse(plan, {**workers, name: plan.extra[name]}) is not None]
        key = f"{plan.key}.{culprits[0]}: {shorten(plan.extra[culprits[0]])}" if culprits else plan.key
        raise UserError(f"{key}: the trainer refuses it: {one_line(failure)[:MAX_REASON]}") from failure


def check_type(value: Any, annotation: Any, key: str) -> None:
    """Raise UserError unless the value is of one of the plain types that an annotation allows."""
    kinds = [typing.get_origin(kind) or kind for kind in alternatives(annotation) if kind is not NoneType]
    kinds = [str if isinstance(kind, type) and issubclass(kind, enum.Enum) else kind for kind in kinds]
    if not all(kind in TYPES for kind in kinds):
        return  # for the trainer to judge
    if type(value) in kinds or (type(value) is int and float in kinds):
        if type(value) is float and not math.isfinite(value):
            raise UserError(f"{key}: {value} must be a finite number")
        return
    words = " or ".join(dict.fromkeys(TYPES[kind] for kind in kinds))
    quotes = "; write it in quotes" if isinstance(value, bool) and str in kinds else ""  # YAML reads no as false
    raise UserError(f"{key}: must be {words}, not {'null' if value is None else shorten(value)}{quotes}")


def check_precision(plan: TrainerPlan) -> None:
    """Raise UserError for a precision other than the stage's."""
    for name in PRECISIONS:
        if f"{name}_full_eval" in plan.extra:
            raise UserError(f"{plan.key}.{name}_full_eval: it converts the trained weights; set {plan.precision_key}")
        if plan.extra.get(name) is not None and plan.extra[name] != (plan.precision == name):
            raise UserError(
                f"{plan.key}.{name}: {plan.extra[name]} contradicts {plan.precision_key}, which is {plan.precision} "
                f"here; leave it out and set {plan.precision_key}"
            )


def check_evaluation(plan: TrainerPlan) -> None:
    """Raise UserError for an evaluation without rows, and for the best model by a metric that is not measured."""
    strategy = str(plan.extra.get("eval_strategy", "no"))
    evaluates = strategy != "no" or plan.extra.get("eval_on_start") is True
    if plan.rows_key is not None and evaluates:
        name = "eval_strategy" if strategy != "no" else "eval_on_start"
        raise UserError(f"{plan.key}.{name}: there are no rows to evaluate on; set {plan.rows_key}, or leave it out")
    metric = plan.extra.get("metric_for_best_model")
    measured = ["loss", *plan.metrics]
    if metric is not None and str(metric).removeprefix("eval_") not in measured:
        raise UserError(f"{plan.key}.metric_for_best_model: {metric} is not measured; use one of {', '.join(measured)}")


def rehearse(plan: TrainerPlan, extra: dict[str, Any]) -> Exception | None:
    """Return what the trainer raises with these arguments within a few steps, on two rows and a scratch model, or None.

    The scratch model stays on the CPU, in this process alone, and no file or state of Accelerate is left behind.
    """
    with isolated(), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dropped = (*REHEARSED, *(NEEDS_WORKERS if extra.get("dataloader_num_workers") else ()))
            check_loader(extra)
            values = {name: value for name, value in extra.items() if name not in dropped}
            arguments = plan.arguments(values | REHEARSED | {"output_dir": folder})
            if torch.cuda.is_available() and is_for_gpus(str(arguments.optim)):
                return None
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
        except Exception as error:  # every library that reads an argument raises its own exceptions
            return error
    return None


def check_loader(extra: dict[str, Any]) -> None:
    """Raise what a data loader raises that is made with these arguments, whose workers are not started."""
    if extra.get("dataloader_num_workers"):
        names = ("dataloader_num_workers", *NEEDS_WORKERS)
        rows: Any = [0]
        DataLoader(rows, **{name.removeprefix("dataloader_"): extra[name] for name in names if name in extra})


def is_for_gpus(optimizer: str) -> bool:
    """Return whether an optimizer is one of bitsandbytes, which needs a GPU."""
    return any(part in optimizer.lower() for part in ("paged", "bnb", "bit"))


@contextmanager
def isolated() -> Iterator[None]:
    """Restore Accelerate's state, the environment and torch's random numbers; the block is in no launch."""
    states = (PartialState, AcceleratorState, GradientState)
    before = [dict(state._shared_state) for state in states]
    environment = dict(os.environ)
    for state in states:
        state._shared_state.clear()
    for name in (*LAUNCH_VARIABLES, *(name for name in environment if name.startswith(("ACCELERATE_", "FSDP_")))):
        os.environ.pop(name, None)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for state, shared in zip(states, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(shared)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
