"""Refuse trainer_args that the trainer would take and never read, which whoever sets them could not notice."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import check_target_module_exists

from workbench.errors import UserError, one_line, shorten, suggestion
from workbench.run.rehearsal import ON_CPU
from workbench.run.trainer_plan import TrainerPlan

WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
WITHOUT_OPTIONS = ("constant", "constant_with_warmup")
LOW_RANK = ("galore", "apollo")  # they project the gradients of the modules that are named
WITHOUT_DECAY = (*LOW_RANK, "lomo", "adalomo")
# By argument: when it is read, and what to set for that.
READ_IF: dict[str, tuple[Callable[[TrainingArguments], bool], str]] = {
    **dict.fromkeys(
        ("eval_delay", "metric_for_best_model", "greater_is_better"),
        (lambda arguments: arguments.eval_strategy != "no", "with an eval_strategy; set one"),
    ),
    "eval_steps": (lambda arguments: arguments.eval_strategy == "steps", "with eval_strategy: steps; set it"),
    "save_steps": (lambda arguments: arguments.save_strategy == "steps", "with save_strategy: steps; set it"),
    "logging_steps": (lambda arguments: arguments.logging_strategy == "steps", "with logging_strategy: steps; set it"),
    "warmup_steps": (
        lambda arguments: (
            arguments.lr_scheduler_type not in WITHOUT_WARMUP or arguments.optim.startswith("schedule_free")
        ),
        "by a schedule with a warmup; set lr_scheduler_type to constant_with_warmup or another",
    ),
    "lr_scheduler_kwargs": (
        lambda arguments: arguments.lr_scheduler_type not in WITHOUT_OPTIONS,
        "by a schedule with options; set another lr_scheduler_type",
    ),
    "liger_kernel_config": (lambda arguments: arguments.use_liger_kernel, "with use_liger_kernel: true; set it"),
    "activation_checkpointing_kwargs": (
        lambda arguments: bool(arguments.activation_checkpointing),
        "with activation_checkpointing: true; set it",
    ),
    "optim_target_modules": (
        lambda arguments: arguments.optim.startswith(LOW_RANK),
        "by the galore and apollo optimizers; set optim to one",
    ),
    "weight_decay": (
        lambda arguments: not arguments.optim.startswith(WITHOUT_DECAY),
        "by an optimizer that decays weights; set another optim",
    ),
}
FOR_EVALUATIONS = ("per_device_eval_batch_size", "eval_accumulation_steps", "eval_use_gather_object")
# By argument: a value that nobody configures, to see whether the optimizer would notice.
OF_OPTIMIZERS = {"adam_beta1": 0.123, "adam_beta2": 0.456, "adam_epsilon": 0.789}


def check_read(plan: TrainerPlan) -> None:
    """Raise UserError for an argument that the trainer would not read, and for modules that the model does not have."""
    arguments = plan.arguments(plan.extra | ON_CPU)
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    configured = {name: value for name, value in plan.extra.items() if value != defaults[name]}
    for name, value in configured.items():
        key = f"{plan.key}.{name}: {shorten(value)}"
        if name in READ_IF and not READ_IF[name][0](arguments):
            raise UserError(f"{key} is read only {READ_IF[name][1]}, or leave {name} out")
        if name in FOR_EVALUATIONS and plan.rows_key is not None:
            raise UserError(f"{key}: there are no rows to evaluate on; set {plan.rows_key}, or leave it out")
        if name in OF_OPTIMIZERS and optimizer_options(arguments) == optimizer_options(
            arguments, **{name: OF_OPTIMIZERS[name]}
        ):
            raise UserError(f"{key} is not read by optim: {arguments.optim.value}; set another optim, or leave it out")
    if arguments.optim_args:
        check_optim_args(plan, arguments)
    if "optim_target_modules" in configured:
        check_target_modules(plan, plan.extra["optim_target_modules"])


def check_optim_args(plan: TrainerPlan, arguments: TrainingArguments) -> None:
    """Raise UserError for an option of the optimizer that it would not read."""
    options = [part.split("=")[0].strip() for part in str(arguments.optim_args).split(",")]
    for name in options:
        others = [f"{other}=1" for other in options if other != name]
        try:
            is_read = optimizer_options(arguments, optim_args=",".join([*others, f"{name}=7"])) != optimizer_options(
                arguments, optim_args=",".join(others)
            )
        except Exception:  # whatever reads it does not like it
            is_read = True
        if not is_read:
            raise UserError(
                f"{plan.key}.optim_args: {shorten(arguments.optim_args)}: {name} is not read by "
                f"optim: {arguments.optim.value}; leave it out"
            )


def optimizer_options(arguments: TrainingArguments, **changes: Any) -> Any:
    """Return the options with which the trainer would make its optimizer if some arguments had other values."""
    changed = copy.copy(arguments)
    for name, value in changes.items():
        setattr(changed, name, value)
    changed.optim_target_modules = ["0"]
    _, options = Trainer.get_optimizer_cls_and_kwargs(changed, nn.Sequential(nn.Linear(1, 1)))
    groups = options.get("params", [])
    plain = {name: value for name, value in options.items() if name not in ("params", "model", "optimizer_dict")}
    return plain, [{name: value for name, value in group.items() if name != "params"} for group in groups]


def check_target_modules(plan: TrainerPlan, value: Any) -> None:
    """Raise UserError unless the stage's model has a linear layer that optim_target_modules names."""
    if isinstance(value, str) and value.replace("_", "-") == "all-linear":
        return
    key = f"{plan.key}.optim_target_modules: {shorten(value)}"
    names = [name for name, module in plan.network().named_modules() if isinstance(module, nn.Linear)]
    try:
        is_present = any(check_target_module_exists(value, name) for name in names)
    except Exception as error:  # an invalid regular expression, or an entry that is not a string
        raise UserError(f"{key}: {one_line(error)}; list names of modules") from error
    if not is_present:
        endings = sorted({name.rpartition(".")[2] for name in names})
        hint = suggestion(value if isinstance(value, str) else str(value[0]), endings) if value else ""
        raise UserError(f"{key}: the model has no linear layer of such a name{hint}")
