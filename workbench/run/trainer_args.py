"""Check trainer_args in the plan: types, ranges, what the run sets itself or does not read, and a rehearsal."""

from __future__ import annotations

import dataclasses
import enum
import math
import typing
from types import NoneType
from typing import Any

from transformers import TrainingArguments
from transformers.debug_utils import DebugOption

from workbench.config.annotations import alternatives
from workbench.config.range_checks import check_range
from workbench.config.ranges import Range
from workbench.errors import UserError, one_line, shorten, suggestion
from workbench.run.distributed import has_gpus
from workbench.run.rehearsal import ON_CPU, isolated, rehearse
from workbench.run.trainer_plan import SAMPLING_STRATEGIES, TrainerPlan
from workbench.run.unread_args import check_read

LAUNCHER = "the launcher's configuration decides; see recipes/accelerate"
PUSH = "the workbench pushes nothing while it trains; use its export command with --push_to_hub"
RESULTS = "the stage reads the trainer's own results; leave it out"
TRACKER = "the run logs its metrics itself; choose a tracker with track"
RUN_KEYS = {
    "output_dir": "checkpoints belong in the run folder; choose it with --runs and --name",
    "report_to": TRACKER,
    "resume_from_checkpoint": "the same command resumes from the last checkpoint by itself",
    "use_cpu": "the launch decides; set the environment variable ACCELERATE_USE_CPU=true",
    "gradient_checkpointing": "its name is now activation_checkpointing",
    "gradient_checkpointing_kwargs": "its name is now activation_checkpointing_kwargs",
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "parallelism_config", "ddp_backend", "local_rank"), LAUNCHER),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "hub_private_repo"), PUSH),
    **dict.fromkeys(("hub_always_push", "hub_revision"), PUSH),
    **dict.fromkeys(("run_name", "project", "trackio_space_id", "trackio_bucket_id"), TRACKER),
    "trackio_static_space_id": TRACKER,
    **dict.fromkeys(("label_names", "prediction_loss_only", "batch_eval_metrics", "include_for_metrics"), RESULTS),
}
"""Arguments that the run sets or cannot do without, and what to do instead."""
NEVER_DEFAULT = ("output_dir", "use_cpu", "gradient_checkpointing", "gradient_checkpointing_kwargs")
"""Of these, where the trainer's default is not what the run has."""
NO_TRACKER: tuple[Any, ...] = ("none", [], ["none"])
UNREAD = "is not read by the trainer; leave it out"
SETTLED: dict[str, tuple[Any, str]] = {
    "save_only_model": (False, "would let a resume start with a new optimizer; leave it out"),
    "ignore_data_skip": (False, "would let a resume train on the same rows again; leave it out"),
    "dataloader_in_order": (True, "would bring the batches in an order that no resume can repeat; leave it out"),
    "enable_jit_checkpoint": (False, "would swallow SIGTERM, on which the run saves and stops itself; leave it out"),
    "eval_do_concat_batches": (True, "would leave the results in pieces that the stage cannot read; leave it out"),
    "disable_tqdm": (True, "shows nothing: the run has a progress of its own; leave it out"),
    "length_column_name": ("length", "is no column of the rows, whose tokens the trainer counts; leave it out"),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), (False, UNREAD)),
}
"""By argument: the only value that the run can take, and what is wrong with any other."""
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
PRECISIONS = ("bf16", "fp16")
TYPES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    dict: "a mapping",
    list: "a list",
}
MAX_REASON = 300


def check_trainer_args(plan: TrainerPlan) -> None:
    """Raise UserError, with the key, for trainer_args that the trainer would refuse, fail with or not read."""
    check_values(plan)
    check_precision(plan)
    check_strategies(plan)
    check_evaluation(plan)
    if not plan.extra:
        return
    with isolated():
        try:
            arguments: TrainingArguments | None = plan.arguments(plan.extra | ON_CPU)
        except Exception:  # the rehearsal names the argument
            arguments = None
        if arguments is not None:
            check_accelerator(plan, arguments)
            check_debug(plan, arguments)
            check_rows(plan, arguments)
    check_rehearsal(plan)
    with isolated():
        check_read(plan)


def check_values(plan: TrainerPlan) -> None:
    """Raise UserError for an argument that does not exist, that the run sets, or whose value is out of its range."""
    hints = typing.get_type_hints(TrainingArguments)
    fields = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    for name, value in plan.extra.items():
        key = f"{plan.key}.{name}"
        if name not in fields:
            raise UserError(f"{key}: TrainingArguments has no such field{suggestion(name, fields)}")
        if name in RUN_KEYS and not is_what_the_run_has(fields[name], value):
            raise UserError(f"{key}: {RUN_KEYS[name]}")
        if not (value is None and fields[name].default is None):
            check_type(value, hints[name], key)
        if name in RANGES and value is not None:
            check_range(value, RANGES[name], key)
        for only, reason in (table[name] for table in (SETTLED, plan.settled) if name in table):
            if value is not None and value != only:
                raise UserError(f"{key}: {shorten(value)} {reason}")
    if plan.extra.get("max_steps") == 0:
        raise UserError(f"{plan.key}.max_steps: 0 would train nothing; set it to -1 for no limit, or leave it out")


def is_what_the_run_has(field: dataclasses.Field[Any], value: Any) -> bool:
    """Return whether the value of an argument that the run sets changes nothing."""
    if field.name == "report_to":
        return value in NO_TRACKER
    is_list = isinstance(field.default_factory, type)
    default = field.default_factory() if is_list else field.default  # type: ignore[operator]
    return field.name not in NEVER_DEFAULT and type(value) is type(default) and bool(value == default)


def check_rehearsal(plan: TrainerPlan) -> None:
    """Raise UserError, with the argument to blame, for what the trainer raises in a rehearsal."""
    failure = rehearse(plan, plan.extra)
    if failure is None:
        return

    def fails_so(extra: dict[str, Any]) -> bool:
        other = rehearse(plan, extra)
        return other is not None and one_line(other) == one_line(failure)

    workers = {name: plan.extra[name] for name in ("dataloader_num_workers",) if name in plan.extra}
    culprits = [name for name in plan.extra if fails_so({**workers, name: plan.extra[name]})][:1]
    if not culprits:  # each alone is taken, or refused for another reason
        extras = {name: {other: plan.extra[other] for other in plan.extra if other != name} for name in plan.extra}
        culprits = [name for name, others in extras.items() if not fails_so(others)]
    blamed = [f"{name}: {shorten(plan.extra[name])}" for name in culprits]
    key = f"{plan.key}.{blamed.pop()}" if blamed else plan.key
    together = f" with {', '.join(blamed)}" if blamed else ""
    raise UserError(f"{key}: the trainer refuses it{together}: {one_line(failure)[:MAX_REASON]}") from failure


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
        if plan.extra.get(f"{name}_full_eval"):
            raise UserError(f"{plan.key}.{name}_full_eval: it converts the trained weights; set {plan.precision_key}")
        if plan.extra.get(name) is not None and plan.extra[name] != (plan.precision == name):
            raise UserError(
                f"{plan.key}.{name}: {plan.extra[name]} contradicts {plan.precision_key}, which is {plan.precision} "
                f"here; leave it out and set {plan.precision_key}"
            )


def check_strategies(plan: TrainerPlan) -> None:
    """Raise UserError for a way to sample or to save that the trainer, or the stage, cannot take."""
    strategy = plan.extra.get("train_sampling_strategy", plan.sampling_strategies[0])
    if strategy not in plan.sampling_strategies:
        problem = "is unknown" if strategy not in SAMPLING_STRATEGIES else "needs rows of one text each, not of pairs"
        raise UserError(
            f"{plan.key}.train_sampling_strategy: {shorten(strategy)} {problem}; "
            f"use one of {', '.join(plan.sampling_strategies)}"
        )
    if plan.extra.get("save_strategy") == "best":
        raise UserError(
            f"{plan.key}.save_strategy: best would save nothing when the run is stopped; use steps or epoch, with "
            "load_best_model_at_end"
        )
    optimizer = str(plan.extra.get("optim", ""))
    if optimizer.endswith("_layerwise"):
        raise UserError(
            f"{plan.key}.optim: {optimizer} keeps its state out of the checkpoints, so a resume would start with a new "
            f"one; use {optimizer.removesuffix('_layerwise')}"
        )


def check_accelerator(plan: TrainerPlan, arguments: TrainingArguments) -> None:
    """Raise UserError for settings of Accelerate that would change the configured batch."""
    settings: Any = arguments.accelerator_config
    if settings.split_batches:
        raise UserError(
            f"{plan.key}.accelerator_config.split_batches: True would divide the configured batch among the processes; "
            "leave it out"
        )
    accumulation = settings.gradient_accumulation_kwargs or {}
    if "num_steps" in accumulation:
        raise UserError(
            f"{plan.key}.accelerator_config.gradient_accumulation_kwargs.num_steps: "
            f"{shorten(accumulation['num_steps'])} would multiply the configured batch; leave it out, and set "
            f"{plan.key}.gradient_accumulation_steps"
        )


def check_debug(plan: TrainerPlan, arguments: TrainingArguments) -> None:
    """Raise UserError for a way to debug that this machine does not have."""
    if DebugOption.TPU_METRICS_DEBUG in arguments.debug:
        raise UserError(f"{plan.key}.debug: tpu_metrics_debug is read only on a TPU; leave it out")
    if DebugOption.UNDERFLOW_OVERFLOW in arguments.debug and not has_gpus():
        raise UserError(
            f"{plan.key}.debug: underflow_overflow fails on the CPU, where torch has no absolute value of a mask; "
            "leave it out, or train on a GPU"
        )


def check_rows(plan: TrainerPlan, arguments: TrainingArguments) -> None:
    """Raise UserError where dropping the last batch would leave no batch."""
    if not arguments.dataloader_drop_last:
        return
    for rows, batch, which in (
        (plan.training_rows, plan.training_batch(arguments), "trained on"),
        (plan.evaluation_rows, plan.evaluation_batch(arguments), "evaluated"),
    ):
        if 0 < rows < batch:
            raise UserError(
                f"{plan.key}.dataloader_drop_last: True would leave out all {rows} rows to be {which}, which are fewer "
                f"than a batch of {batch}; leave it out, or lower the batch"
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
