"""PPO: align the policy with the reward, held near its SFT self by a KL penalty."""

# Imports of torch and transformers stand inside the functions, so that --help answers at once.
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.config.schema import Config, PPOConfig
from workbench.errors import UserError, error_context
from workbench.run.cli import Stage, main
from workbench.run.folder import Run

if TYPE_CHECKING:
    from workbench.models.policy import Policy
    from workbench.rewards.contract import CheckedReward

NAME = "ppo"
MIN_HELD_OUT_PROMPTS = 10


def wanted(config: Config) -> bool:
    """Whether the configuration has a PPO stage."""
    return config.ppo is not None


def settings(config: Config) -> PPOConfig:
    """The stage's section of the configuration."""
    assert config.ppo is not None
    return config.ppo


def rows(config: Config) -> list[dict[str, Any]]:
    """The prompts to answer, with the reward's columns."""
    from workbench.data.prompt_rows import prompt_rows

    ppo = settings(config)
    return prompt_rows(config.policy.model, ppo.data, key="ppo.data", max_new_tokens=ppo.max_new_tokens)


def validation_rows(config: Config) -> list[dict[str, Any]]:
    """The prompts to watch PPO by, with the reward's columns; none unless the configuration names some."""
    from workbench.data.prompt_rows import prompt_rows

    ppo = settings(config)
    if ppo.validation is None:
        return []
    return prompt_rows(config.policy.model, ppo.validation, key="ppo.validation", max_new_tokens=ppo.max_new_tokens)


def given_reward(key: str, model: str, options: dict[str, Any]) -> CheckedReward:
    """The reward that the configuration names at `key`."""
    from workbench.rewards.registry import load_reward

    with error_context(key):
        return load_reward(model, **options)


def held_out_reward(config: Config, count: int) -> CheckedReward | None:
    """The scorer that watches PPO on `count` validation prompts; raises UserError where those are too few."""
    assert config.reward is not None
    if config.reward.watch is None:
        return None
    if count < MIN_HELD_OUT_PROMPTS:
        raise UserError(
            f"reward.watch: it scores the answers to ppo.validation, which has {count} prompts; give at least "
            f"{MIN_HELD_OUT_PROMPTS}, or its curve is noise"
        )
    return given_reward("reward.watch", config.reward.watch, config.reward.watch_options)


def reward_of(run: Run) -> CheckedReward:
    """The reward that the configuration names, or the one that the reward stage trained."""
    from workbench.rewards.registry import load_reward

    reward = run.config.reward
    assert reward is not None
    if reward.model is not None:
        return given_reward("reward.model", reward.model, reward.options)
    assert reward.train is not None
    run.record("reward")
    options: dict[str, Any] = {"max_tokens": reward.train.max_tokens}
    if reward.train.objective == "classifier":
        options = {"target_label": reward.train.target_label, "polarity_pair": tuple(reward.train.polarity_pair)}
    return load_reward(str(run.folder / "reward"), **options | reward.options)


def plan(config: Config) -> list[str]:
    """What the stage would do."""
    from workbench.models.memory import model_plan
    from workbench.ppo.sampler import check_batch_size, check_columns

    ppo, prompts = settings(config), rows(config)
    check_batch_size(ppo, len(prompts))
    validation = validation_rows(config)
    check_columns(prompts, validation)
    assert config.reward is not None
    if config.reward.model is not None:
        given_reward("reward.model", config.reward.model, config.reward.options)
    held_out_reward(config, len(validation))
    updates = ppo.epochs * ppo.batch_size // ppo.minibatch_size
    return [
        f"{ppo.steps} steps of {ppo.batch_size} from {len(prompts)} prompts, {updates} optimizer steps each, "
        f"reward {config.reward.model or 'trained'}, KL coefficient {ppo.kl_coef}",
        *model_plan(config, ppo.micro_batch_size or ppo.minibatch_size),
    ]


def run(run: Run) -> dict[str, Any]:
    """Train and save an adapter, or a model, and its value head in the run's ppo folder."""
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    from workbench.models.adapters import load_trainable
    from workbench.models.loading import autocast_dtype, load_policy_tokenizer, save_model, use_paged_optimizer
    from workbench.models.policy import Policy
    from workbench.ppo.trainer import PPOTrainer
    from workbench.run.files import folder_hash, writing

    config, ppo, folder = run.config, settings(run.config), run.stage(NAME)
    sft = run.folder / "sft" if config.sft else None
    if sft:
        run.record("sft")
    prompts, validation, reward = rows(config), validation_rows(config), reward_of(run)

    # The policy casts by itself, so that sampling and scoring run under the same precision.
    accelerator = Accelerator(mixed_precision="no", log_with=config.track, project_dir=str(folder))
    if config.track:
        accelerator.init_trackers(config.name)
    set_seed(config.seed, device_specific=True)
    tokenizer = load_policy_tokenizer(config.policy.model)
    parts = load_trainable(config.policy, sft, device=accelerator.device, value_model=ppo.value_model == "separate")
    policy = Policy(
        parts.model,
        tokenizer,
        reference=parts.reference,
        value_model=parts.value_model,
        autocast=autocast_dtype(config.policy),
    )
    assert config.reward is not None
    trainer = PPOTrainer(
        policy,
        tokenizer,
        reward,
        prompts,
        ppo,
        accelerator=accelerator,
        folder=folder,
        seed=config.seed,
        validation_rows=validation,
        watch=held_out_reward(config, len(validation)),
        sanity_pair=config.reward.sanity_pair,
        paged_optimizer=use_paged_optimizer(config.policy, accelerator.device),
    )
    metrics = trainer.train()
    for tracker in accelerator.trackers:  # end_training would also end the process group, which evaluation needs
        tracker.finish()
    if accelerator.is_main_process:
        with writing(folder):
            save_model(trainer.unwrapped.model, folder)
            tokenizer.save_pretrained(folder)
            save_values(trainer.unwrapped, folder)
            write_overoptimization_page(folder)
    accelerator.wait_for_everyone()
    inputs = {"model": config.policy.model, "sft": folder_hash(sft) if sft else None, "data": ppo.data.path}
    return {"inputs": inputs, "metrics": metrics}


def save_values(policy: Policy, folder: Path) -> None:
    """Write the value head, and the value model or adapter where there is one, beside the policy."""
    from peft import PeftModel
    from safetensors.torch import save_file

    save_file(policy.value_head.state_dict(), folder / "value_head.safetensors")
    if policy.value_model is not None:
        policy.value_model.save_pretrained(folder / "value")
    elif isinstance(policy.model, PeftModel) and "value" in policy.model.peft_config:
        policy.model.save_pretrained(folder, selected_adapters=["value"], save_embedding_layers=False)


def write_overoptimization_page(folder: Path) -> None:
    """Draw reward and watching scorer against KL in watch.html, where there was one."""
    from workbench.ppo.overoptimization import points
    from workbench.report.overoptimization_page import overoptimization_page
    from workbench.run.files import write_text

    found = points(folder / "metrics.jsonl")
    if found:
        write_text(folder / "watch.html", overoptimization_page(found))


STAGE = Stage(NAME, wanted, plan, run)

if __name__ == "__main__":
    main([STAGE], __doc__)
