"""Run a Hugging Face trainer that shows progress, stops on request and resumes from its last checkpoint."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from workbench.config.names import REWARD, SFT, TUNING
from workbench.errors import Interrupted, UserError
from workbench.run.checksums import damage, write_checksums
from workbench.run.distributed import (
    fail_together,
    precision_warning,
    print_once,
    processes_warning,
    wait_for_everyone,
)
from workbench.run.files import is_present, read_json, remove_folder, remove_partial, write_text, writing
from workbench.run.folder import TRAINER_CHECKPOINT
from workbench.run.interrupt import stop_requests
from workbench.run.progress import Progress
from workbench.run.tracking import Tracker

# What Accelerate calls the weights of a model that FSDP divides, in full, in a checkpoint.
SHARDED_WEIGHTS = "pytorch_model_fsdp.bin"
# The number of processes and the precision that a checkpoint was saved with.
LAUNCH = "launch.json"
LAST_LOSSES = 2  # one alone may contain a skipped step

# By stage: what to change where the memory of the device does not suffice.
MEMORY_KEYS = {
    SFT: "set sft.micro_batch_size to fewer, which changes no gradient, or turn on policy.gradient_checkpointing",
    TUNING: "set sft.micro_batch_size to fewer, which changes no gradient, or turn on policy.gradient_checkpointing",
    REWARD: "lower reward.train.batch_size or reward.train.max_tokens, or set reward.train.lora",
}
METHOD = "NAME"  # stands for the title of a method
# By stage: the keys to change where its loss diverges.
LOSS_KEYS = {
    SFT: ("sft.learning_rate", "policy.precision"),
    TUNING: (f"tuning.methods.{METHOD}.learning_rate", "policy.precision"),
    REWARD: ("reward.train.learning_rate", "reward.train.precision"),
}


class AlreadyTrainedError(Exception):
    """The checkpoint from which the trainer resumes is that of its last step."""


class StepCallback(TrainerCallback):
    """Show progress, log metrics, and let the trainer save and stop after a signal."""

    def __init__(
        self,
        trainer: Trainer,
        label: str,
        folder: Path,
        tracker: Tracker,
        stop_requested: Callable[[], bool],
        best: Path | None,
    ) -> None:
        self.label, self.folder, self.tracker, self.stop_requested = label, folder, tracker, stop_requested
        self.trainer, self.best = trainer, best
        # The trainer itself would remove older checkpoints before the new one has its checksums.
        self.limit, trainer.args.save_total_limit = trainer.args.save_total_limit or 1, None
        self.progress: Progress | None = None
        self.note = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the progress at the step where training resumes; raises AlreadyTrainedError after the last one."""
        if self.best is not None:  # the trainer forgets the best checkpoint of a run that was moved
            state.best_model_checkpoint = str(self.best)
        if state.global_step >= state.max_steps or patience_exhausted(state):  # the trainer would take one more step
            raise AlreadyTrainedError
        self.progress = Progress(self.label, state.max_steps, done=state.global_step, show=state.is_world_process_zero)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Log the metrics, and show the last loss next to the progress."""
        if logs and "loss" in logs:
            self.note = f"loss {float(logs['loss']):.3f}"
            # The trainer empties its sum by subtracting it from itself, so that infinity would stay.
            self.trainer._tr_loss.nan_to_num_(0.0, 0.0, 0.0)
        if logs and state.is_world_process_zero:
            write_log(self.folder, state)
            numbers = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
            self.tracker.log(numbers, step=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the progress, and pass on a request to stop."""
        assert self.progress is not None
        self.progress.advance(note=self.note)
        if self.stop_requested():
            control.should_save = control.should_training_stop = True
        if control.should_save or state.global_step == state.max_steps:
            control.should_log = True  # a resume begins a new mean of the loss

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the new checkpoint's checksums, and then remove older ones, except the best."""
        wait_for_everyone()  # each process saves its random states
        if not state.is_world_process_zero:
            return
        newest = self.folder / f"{TRAINER_CHECKPOINT}{state.global_step}"
        write_text(newest / LAUNCH, json.dumps(launch_of(self.trainer)) + "\n")
        write_checksums(newest)
        best = None if state.best_model_checkpoint is None else Path(state.best_model_checkpoint).name
        checkpoints = existing_checkpoints(self.folder)
        removable = [checkpoint for checkpoint in checkpoints if checkpoint.name not in (newest.name, best)]
        for checkpoint in removable[: max(0, len(checkpoints) - self.limit)]:
            remove_folder(checkpoint)


def launch_of(trainer: Trainer) -> dict[str, Any]:
    """Return the number of processes and the precision that a trainer computes with."""
    return {"processes": trainer.accelerator.num_processes, "precision": trained_precision(trainer)}


def write_log(folder: Path, state: TrainerState) -> None:
    """Write everything that the trainer has logged, also before a resume, to metrics.jsonl."""
    write_text(folder / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in state.log_history))


def run_trainer(
    trainer: Trainer,
    folder: Path,
    label: str,
    *,
    tracker: Tracker,
    method: str | None = None,
) -> None:
    """Train from the newest intact checkpoint in `folder`, or from the start, and write metrics.jsonl.

    `label` is the stage, and `method` the title of that one of its methods which is trained. Raises Interrupted after
    a signal, with a checkpoint saved.
    """
    title = label if method is None else f"{label} {method}"
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    # One process decides for all, and one that fails ends all.
    with fail_together(trainer.accelerator):
        newest = newest_intact(folder, label) if trainer.is_world_process_zero() else None
        for warning in [] if newest is None else launch_warnings(Path(newest), label, launch_of(trainer)):
            print_once(warning)
    (last,) = broadcast_object_list([newest])
    if last is not None and (Path(last) / SHARDED_WEIGHTS).is_file() != trainer.is_fsdp_enabled:
        raise UserError(
            f"{last}: saved {'without' if trainer.is_fsdp_enabled else 'with'} FSDP; resume with the launch that began "
            f"the stage, or start over with --force {label}"
        )
    with stop_requests() as stop_requested, writing(folder):
        best = None if last is None else best_checkpoint(Path(last))
        trainer.add_callback(StepCallback(trainer, title, folder, tracker, stop_requested, best))
        try:
            trainer.train(resume_from_checkpoint=last)
        except AlreadyTrainedError:
            end_training(trainer)
        except torch.OutOfMemoryError as error:
            rows = trainer.args.per_device_train_batch_size
            raise UserError(f"{title}: the device ran out of memory at {rows} rows; {MEMORY_KEYS[label]}") from error
        if stop_requested() and trainer.state.global_step < trainer.state.max_steps:
            raise Interrupted(
                f"{title} stopped and saved at step {trainer.state.global_step} of {trainer.state.max_steps}"
            )
    if trainer.state.global_step == 0:
        raise UserError(f"{label}: the trainer took no step; check its trainer_args")
    entries = trainer.state.log_history
    check_not_diverged(trainer, label, method)
    entries[-1]["train_loss"] = mean_loss(entries)  # the trainer's counts from the last resume
    if trainer.is_world_process_zero():
        write_log(folder, trainer.state)


def check_not_diverged(trainer: Trainer, label: str, method: str | None = None) -> None:
    """Raise UserError if the trained weights are not finite, or a loss was not.

    The loss scaling of fp16 skips a step whose loss is not finite; there, the training diverged if none of the last
    losses is finite.
    """
    are_finite = [math.isfinite(float(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry]
    is_scaled = trained_precision(trainer) == "fp16"
    has_diverged = not any(are_finite[-LAST_LOSSES:]) if is_scaled else not all(are_finite)
    # Of divided weights each process has its own part, and one that stopped alone would leave the others waiting.
    whole = [] if trainer.is_fsdp_enabled else [p for p in trainer.model.parameters() if p.requires_grad]
    if has_diverged or not all(bool(parameter.isfinite().all()) for parameter in whole):
        rate, precision = LOSS_KEYS[label]
        rate = rate.replace(METHOD, method or METHOD)
        raise UserError(
            f"{label}: the loss or the trained weights are not finite; lower {rate} or set {precision} to fp32"
        )


def launch_warnings(checkpoint: Path, label: str, now: dict[str, Any]) -> list[str]:
    """Return what makes the training that goes on from a checkpoint another one than an uninterrupted one."""
    if not is_present(checkpoint / LAUNCH):
        return []  # saved by an earlier version
    before = read_json(checkpoint / LAUNCH, remedy=f"start over with --force {label}")
    _, key = LOSS_KEYS[label]
    warnings = [
        processes_warning(label, before["processes"], now["processes"], "random numbers"),
        precision_warning(label, before["precision"], now["precision"], key),
    ]
    return [warning for warning in warnings if warning is not None]


def end_training(trainer: Trainer) -> None:
    """Do what the trainer does after its last step, with the weights and the state that it has just loaded."""
    trainer.is_in_train = False
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
        trainer._load_best_model()
    trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)


def newest_intact(folder: Path, label: str) -> str | None:
    """Return the newest checkpoint whose files are what was saved; newer ones are reported and removed."""
    remove_partial(folder, TRAINER_CHECKPOINT)
    for checkpoint in reversed(existing_checkpoints(folder)):
        reason = damage(checkpoint) or best_damage(checkpoint)
        if reason is None:
            return str(checkpoint)
        print_once(f"{label}: {checkpoint} is not used ({reason}); trying one before it")
        remove_folder(checkpoint)
    return None


def best_damage(checkpoint: Path) -> str | None:
    """Return what is wrong with the checkpoint whose weights an early stopping would take, or None."""
    best = best_checkpoint(checkpoint)
    if best is None or best == checkpoint or (reason := damage(best)) is None:
        return None
    return f"{best.name}, the best so far, {reason}"


def best_checkpoint(checkpoint: Path) -> Path | None:
    """Return the checkpoint with the best evaluation when another one was saved, or None where nothing is evaluated."""
    best = read_json(checkpoint / "trainer_state.json", remedy="")["best_model_checkpoint"]
    return None if best is None else checkpoint.with_name(Path(best).name)


def patience_exhausted(state: TrainerState) -> bool:
    """Return whether an early stopping ended the training whose state this is."""
    match state.stateful_callbacks.get(EarlyStoppingCallback.__name__):
        case {
            "args": {"early_stopping_patience": patience},
            "attributes": {"early_stopping_patience_counter": evaluations},
        }:
            return bool(evaluations >= patience)
    return False


def existing_checkpoints(folder: Path) -> list[Path]:
    """Return a trainer's checkpoints, oldest first."""
    steps = {path: path.name.removeprefix(TRAINER_CHECKPOINT) for path in folder.glob(f"{TRAINER_CHECKPOINT}*")}
    return sorted((path for path in steps if steps[path].isdecimal()), key=lambda path: int(steps[path]))


def mean_loss(entries: Sequence[dict[str, Any]]) -> float:
    """Return the mean loss of all steps from a trainer's log, whose entries are means since the one before.

    Those that are not finite, of steps that the loss scaling skipped, are left out.
    """
    losses = [(entry["step"], float(entry["loss"])) for entry in entries if "loss" in entry]
    total, steps, last = 0.0, 0, 0
    for step, loss in losses:
        if math.isfinite(loss):
            total, steps = total + loss * (step - last), steps + step - last
        last = step
    return total / steps


def trained_precision(trainer: Trainer) -> str:
    """Return the precision that a trainer computed in."""
    return trainer.accelerator.mixed_precision.replace("no", "fp32")


def training_arguments(
    folder: Path,
    *,
    epochs: float,
    max_steps: int | None,
    batch_size: int,
    accumulation: int,
    learning_rate: float,
    precision: str,
    checkpointing: bool,
    save_every: int,
    seed: int,
    on_cpu: bool,
    paged: bool,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Return keyword arguments for TrainingArguments; those in `extra` take precedence."""
    logging.getLogger("transformers.trainer").setLevel(logging.WARNING)
    # transformers and Accelerate read the launcher's choice, or that of the user's accelerate file, from this variable
    # and prefer it to fp32.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no" if precision == "fp32" else precision
    return {
        "output_dir": str(folder),
        "num_train_epochs": epochs,
        "max_steps": max_steps or -1,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.03,
        "weight_decay": 0.0,
        "optim": "paged_adamw_32bit" if paged else "adamw_torch_fused",
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        # Always set, because TRL's default is True.
        "activation_checkpointing": checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False} if checkpointing else None,
        "logging_steps": 10,
        "logging_nan_inf_filter": False,  # it would log a loss that is not finite as the mean of the others
        "save_strategy": "steps",
        "save_steps": save_every,
        "report_to": "none",  # StepCallback logs to the run's tracker
        "disable_tqdm": True,
        "seed": seed,
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
    } | copy.deepcopy(extra)  # Accelerate's settings among them, which the trainer changes in place
