"""PPO: align the policy with the reward, regularized towards the SFT policy by a KL penalty."""

# torch and transformers are imported inside the functions, so that --help is instant.
from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from workbench.config.derived import configured_stages, learned_values, micro_batch_size
from workbench.config.names import PPO, REWARD, SFT
from workbench.config.schema import Config
from workbench.data.sources import source_hashes
from workbench.run.cli import Stage, StageResult, main
from workbench.run.folder import Run

if TYPE_CHECKING:
    from workbench.ppo.plan import PPOPlan


def plan(config: Config) -> PPOPlan:
    """Load and check what the stage needs."""
    from workbench.ppo.plan import plan_ppo

    return plan_ppo(config)


def run(run: Run, plan: PPOPlan) -> StageResult:
    """Train, and save an adapter or a model with its value head in the run's ppo folder."""
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    from workbench.models.precision import precision_name
    from workbench.ppo.overoptimization import read_points
    from workbench.ppo.policy_files import load_policy, save_policy
    from workbench.ppo.sharded_policy import shard_policy
    from workbench.ppo.trainer import PPOTrainer
    from workbench.report.live import live_page
    from workbench.report.overoptimization_page import overoptimization_page
    from workbench.rewards.registry import load_run_reward
    from workbench.run.distributed import is_sharded_launch
    from workbench.run.files import content_hash, write_text
    from workbench.run.peak_memory import peak_memory
    from workbench.run.tracking import tracking

    config, folder = run.config, run.stage(PPO)
    assert config.ppo is not None
    ppo = replace(config.ppo, micro_batch_size=micro_batch_size(config, PPO, config.ppo.minibatch_size))
    sft = run.folder / SFT if config.sft else None
    if sft:
        run.verified_record(SFT)
    reward = plan.reward or (load_run_reward(run) if config.reward else None)

    # The policy does its own casting, so that sampling and scoring run in the same precision.
    accelerator = Accelerator(mixed_precision="no")
    set_seed(config.seed, device_specific=True)
    with peak_memory(accelerator.device) as peak:
        values = learned_values(config.ppo)
        policy = load_policy(config.policy, plan.tokenizer, device=accelerator.device, sft=sft, values=values)
        if is_sharded_launch():
            shard_policy(policy)
        trainer = PPOTrainer(
            policy,
            plan.tokenizer,
            reward,
            plan.rows,
            ppo,
            accelerator=accelerator,
            folder=folder,
            seed=config.seed,
            validation_rows=plan.validation_rows,
            texts=plan.texts,
            ptx_texts=plan.ptx_texts,
            held_out=plan.held_out,
            sanity_pair=config.reward.sanity_pair if config.reward else None,
        )
        with live_page(run, PPO), tracking(run, PPO) as tracker:
            metrics = trainer.train(tracker)
        save_policy(trainer.unwrapped, plan.tokenizer, folder)
    if accelerator.is_main_process and plan.held_out is not None:
        write_text(folder / "overoptimization.html", overoptimization_page(read_points(folder / "metrics.jsonl")))
    accelerator.wait_for_everyone()
    inputs = {"model": config.policy.model, "sft": content_hash(sft) if sft else None, "data": config.ppo.data.path}
    inputs["precision"] = precision_name(trainer.unwrapped.autocast_dtype)
    return StageResult(inputs, metrics | {"peak_memory_bytes": peak.measure()})


STAGE = Stage(
    PPO,
    lambda config: PPO in configured_stages(config),
    plan,
    run,
    data=partial(source_hashes, stage=PPO),
    sections=("policy", REWARD, PPO),
)

if __name__ == "__main__":
    main([STAGE], __doc__)
