"""Train one method, save it, and measure what that took."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from transformers import set_seed

from workbench.config.names import TUNING
from workbench.config.tuning import tuning_rate
from workbench.models.loading import load_config, save_model
from workbench.models.sharding import full_state_dict
from workbench.models.tuning import saved_bytes, trainable_parameters, tuned_policy
from workbench.models.weights import check_finite
from workbench.run.distributed import print_once
from workbench.run.files import is_present, remove_folder, writing
from workbench.run.folder import Run
from workbench.run.hf_trainer import run_trainer, trained_precision
from workbench.run.peak_memory import peak_memory
from workbench.run.stage_record import BEGUN, Origin, checksum, read_record, write_record
from workbench.run.tracking import tracking
from workbench.sft.plan import SFTPlan
from workbench.sft.trainer import make_sft_trainer
from workbench.tuning.costs import CostCallback
from workbench.tuning.plan import TuningPlan
from workbench.tuning.rows import TunedRow, method_folder, method_stage

TRAINING = "training"  # in the record of a method that has begun: what its training depends on


def train_method(run: Run, plan: TuningPlan, row: TunedRow) -> None:
    """Train the method of a row and write its record, unless it is finished.

    Raises Interrupted after a signal, with a checkpoint that the next launch resumes from.
    """
    stage, folder = method_stage(row), run.stage(method_stage(row))
    if run.finished(stage):
        run.verified_record(stage)
        print_once(f"tuning {row.title}: already finished, skipping")
        return
    set_seed(plan.config.seed)
    sft = training_data(plan, row)
    with peak_memory(PartialState().device) as peak:
        costs = CostCallback(folder, peak)
        trainer = make_sft_trainer(plan.config, sft, folder, method=row.method)
        trainer.add_callback(costs)
        trained, total = trainable_parameters(trainer.model)
        with tracking(run, stage) as tracker:
            run_trainer(trainer, folder, TUNING, tracker=tracker, method=row.title)
    metrics: dict[str, Any] = {
        "loss": trainer.state.log_history[-1]["train_loss"],
        "steps": trainer.state.global_step,
        "trained_parameters": trained,
        "parameters": total,
        "peak_memory_bytes": costs.total().peak_memory_bytes,
    }
    model = trainer.accelerator.unwrap_model(trainer.model)
    check_finite(row.title, model.named_parameters())
    weights = full_state_dict(model)
    if trainer.is_world_process_zero():
        with writing(folder):
            save_model(model, folder, weights)
            plan.tokenizer.save_pretrained(folder)
        metrics["bytes_on_disk"] = saved_bytes(folder)
        inputs = {"model": plan.config.policy.model, "precision": trained_precision(trainer)}
        run.finish(stage, minutes=costs.total().minutes, inputs=inputs, metrics=metrics, origin=Origin())
    trainer.accelerator.wait_for_everyone()


def training_data(plan: TuningPlan, row: TunedRow) -> SFTPlan:
    """Return the rows that a method trains on."""
    return plan.sft_with_replay if row.method.replay and plan.sft_with_replay is not None else plan.sft


def training_hash(plan: TuningPlan, row: TunedRow, content: Callable[[str], str]) -> str:
    """Return a hash of everything that a method's training depends on; `content` is that of a model's weights."""
    config, sft = plan.config, plan.config.sft
    assert sft is not None
    policy = config.policy
    return checksum(
        {
            "method": dataclasses.asdict(row.method),
            "learning_rate": tuning_rate(row.method, load_config(policy.model).is_encoder_decoder),
            "policy": dataclasses.asdict(tuned_policy(policy, row.method)),
            "sft": [sft.max_steps, sft.batch_size, sft.micro_batch_size, sft.trainer_args],
            "seed": config.seed,
            "rows": [(each["prompt_ids"], each["response_ids"]) for each in training_data(plan, row).train_rows],
            "base": content(policy.model),
        }
    )


def is_same_training(run: Run, plan: TuningPlan, row: TunedRow, content: Callable[[str], str]) -> bool:
    """Return whether the training in a method's folder, finished or not, is the one that the plan describes."""
    folder = method_folder(run, row)
    if not is_present(folder / BEGUN):
        return False
    return bool(read_record(folder, BEGUN, TUNING)[TRAINING] == training_hash(plan, row, content))


def begin_methods(run: Run, plan: TuningPlan, content: Callable[[str], str]) -> None:
    """Remove what methods trained with other settings, data or weights, and note what those that begin depend on."""
    for row in plan.trained_rows:
        if not is_same_training(run, plan, row, content):
            remove_folder(method_folder(run, row))
            write_record(run.stage(method_stage(row)), {TRAINING: training_hash(plan, row, content)}, BEGUN)


def earlier_lines(run: Run, plan: TuningPlan, content: Callable[[str], str]) -> list[str]:
    """Return a line for a plan on the methods that an earlier launch has trained, if there are any, and the others."""
    finished = [
        row.title
        for row in plan.trained_rows
        if run.finished(method_stage(row)) and is_same_training(run, plan, row, content)
    ]
    others = [row.title for row in plan.trained_rows if row.title not in finished]
    if not finished:
        return []
    return [f"already trained: {', '.join(finished)}; to train: {', '.join(others) or 'none'}"]
