"""Train one method, save it, and measure what that took."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import set_seed

from workbench.config.names import TUNING
from workbench.config.tuning import ZERO_SHOT
from workbench.models.loading import save_model
from workbench.models.sharding import full_state_dict
from workbench.models.tuning import saved_bytes, trainable_parameters
from workbench.models.weights import check_finite
from workbench.run.distributed import print_once
from workbench.run.files import writing
from workbench.run.folder import Run
from workbench.run.hf_trainer import run_trainer, trained_precision
from workbench.run.peak_memory import peak_memory
from workbench.run.stage_record import Origin
from workbench.run.tracking import NoTracker
from workbench.sft.trainer import make_sft_trainer
from workbench.tuning.plan import TuningPlan
from workbench.tuning.rows import TunedRow

METHODS = "methods"
"""The folder, below the stage's, of what the rows trained."""


def method_stage(row: TunedRow) -> str:
    """Return the name of a row's folder below the run's."""
    return f"{TUNING}/{METHODS}/{row.folder}"


def train_method(run: Run, plan: TuningPlan, row: TunedRow) -> None:
    """Train the method of a row and write its record, unless it is finished; the untouched model is not trained.

    Raises Interrupted after a signal, with a checkpoint that the next launch resumes from.
    """
    if row.method.method == ZERO_SHOT:
        return
    stage, folder = method_stage(row), run.stage(method_stage(row))
    if run.finished(stage):
        run.verified_record(stage)
        print_once(f"tuning {row.title}: already finished, skipping")
        return
    start = time.monotonic()
    set_seed(plan.config.seed)
    sft = plan.sft_with_replay if row.method.replay and plan.sft_with_replay is not None else plan.sft
    with peak_memory() as peak:
        trainer = make_sft_trainer(plan.config, sft, folder, method=row.method)
        trained, total = trainable_parameters(trainer.model)
        run_trainer(trainer, folder, TUNING, tracker=NoTracker(), method=row.title)
    metrics: dict[str, Any] = {
        "loss": trainer.state.log_history[-1]["train_loss"],
        "steps": trainer.state.global_step,
        "trained_parameters": trained,
        "parameters": total,
        "peak_memory_bytes": peak.size,
    }
    model = trainer.accelerator.unwrap_model(trainer.model)
    check_finite(row.title, model.named_parameters())
    weights = full_state_dict(model)
    if trainer.is_world_process_zero():
        with writing(folder):
            save_model(model, folder, weights)
            plan.tokenizer.save_pretrained(folder)
        metrics["bytes_on_disk"] = saved_bytes(folder)
        minutes = (time.monotonic() - start) / 60
        inputs = {"model": plan.config.policy.model, "precision": trained_precision(trainer)}
        run.finish(stage, minutes=minutes, inputs=inputs, metrics=metrics, origin=Origin())
    trainer.accelerator.wait_for_everyone()


def method_folder(run: Run, row: TunedRow) -> Path:
    """Return the folder of what a row trained."""
    return run.folder / method_stage(row)
