"""Reward: train a toxicity classifier or a preference model, and validate it before PPO optimizes against it."""

# torch and transformers are imported inside the functions, so that --help is instant.
from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from workbench.config.derived import configured_stages
from workbench.config.names import REWARD
from workbench.config.schema import Config
from workbench.data.sources import source_hashes
from workbench.run.cli import Stage, StageResult, main
from workbench.run.folder import Run

if TYPE_CHECKING:
    from workbench.rewards.training.plan import RewardPlan


def plan(config: Config) -> RewardPlan:
    """Load and check what the stage needs."""
    from workbench.rewards.training.plan import plan_reward

    return plan_reward(config)


def run(run: Run, plan: RewardPlan) -> StageResult:
    """Train, save an ordinary transformers folder in the run's reward folder, and validate what was saved."""
    from transformers import set_seed

    from workbench.report.live import live_page
    from workbench.report.reward_page import reward_page
    from workbench.rewards.training.datasets import training_sources
    from workbench.rewards.training.saving import save_reward_model, write_report
    from workbench.rewards.training.trainers import make_reward_trainer
    from workbench.rewards.training.validation import summary, validate
    from workbench.run.distributed import is_main_process, print_once
    from workbench.run.files import write_text
    from workbench.run.hf_trainer import run_trainer, trained_precision
    from workbench.run.tracking import tracking

    train, folder = plan.train, run.stage(REWARD)
    set_seed(run.config.seed)
    trainer = make_reward_trainer(plan, folder)
    with live_page(run, REWARD), tracking(run, REWARD) as tracker:
        run_trainer(trainer, folder, REWARD, tracker=tracker)
    save_reward_model(trainer, plan.tokenizer, folder, train.max_tokens)

    report = validate(plan, folder)
    if is_main_process():
        write_report(report, folder)
        write_text(folder / "report.html", reward_page(report))
    for line in summary(report):
        print_once(f"{REWARD}: {line}")
    return StageResult(
        inputs={
            "model": train.model,
            "data": [source.path for _, source in training_sources(train)],
            "precision": trained_precision(trainer),
        },
        metrics={name: value for name, value in report.items() if isinstance(value, int | float)},
    )


STAGE = Stage(
    REWARD,
    lambda config: REWARD in configured_stages(config),
    plan,
    run,
    data=partial(source_hashes, stage=REWARD),
    sections=(REWARD, "reuse"),
)

if __name__ == "__main__":
    main([STAGE], __doc__)
