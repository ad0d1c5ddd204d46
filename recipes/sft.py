"""Supervised fine-tuning: teach the policy to respond to prompts as the data does."""

# torch and transformers are imported inside the functions, so that --help is instant.
from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from workbench.config.derived import configured_stages
from workbench.config.names import SFT
from workbench.config.schema import Config
from workbench.data.sources import source_hashes
from workbench.run.cli import Stage, StageResult, main
from workbench.run.folder import Run

if TYPE_CHECKING:
    from workbench.sft.plan import SFTPlan


def plan(config: Config) -> SFTPlan:
    """Load and check what the stage needs."""
    from workbench.sft.plan import plan_sft

    return plan_sft(config)


def run(run: Run, plan: SFTPlan) -> StageResult:
    """Train, and save an adapter or a model in the run's sft folder."""
    from transformers import set_seed

    from workbench.models.loading import save_model
    from workbench.models.sharding import full_state_dict
    from workbench.models.weights import check_finite
    from workbench.report.live import live_page
    from workbench.run.files import writing
    from workbench.run.hf_trainer import run_trainer, trained_precision
    from workbench.run.tracking import tracking
    from workbench.sft.trainer import make_sft_trainer

    config, folder = run.config, run.stage(SFT)
    assert config.sft is not None
    set_seed(config.seed)
    trainer = make_sft_trainer(config, plan, folder)
    with live_page(run, SFT), tracking(run, SFT) as tracker:
        run_trainer(trainer, folder, SFT, tracker=tracker)
    metrics = {"loss": trainer.state.log_history[-1]["train_loss"], "steps": trainer.state.global_step}
    if plan.validation_rows:
        metrics["validation_loss"] = trainer.evaluate()["eval_loss"]
    model = trainer.accelerator.unwrap_model(trainer.model)
    check_finite(SFT, model.named_parameters())
    weights = full_state_dict(model)
    if trainer.is_world_process_zero():
        with writing(folder):
            save_model(model, folder, weights)
            plan.tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()
    inputs = {"model": config.policy.model, "data": config.sft.data.path, "precision": trained_precision(trainer)}
    return StageResult(inputs, metrics)


STAGE = Stage(
    SFT,
    lambda config: SFT in configured_stages(config),
    plan,
    run,
    data=partial(source_hashes, stage=SFT),
    sections=("policy", SFT, "reuse"),
)

if __name__ == "__main__":
    main([STAGE], __doc__)
