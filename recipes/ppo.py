"""PPO: align the policy with the reward, held near its SFT self by a KL penalty."""

# Imports of torch and transformers stand inside the functions, so that --help answers at once.
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cli import Stage, main
from workbench.config import Config, PPOConfig
from workbench.errors import UserError, named
from workbench.runs import Run

if TYPE_CHECKING:
    from workbench.policy import Policy
    from workbench.rewards import CheckedReward

NAME = "ppo"
WATCHED_PROMPTS = 10


def wanted(config: Config) -> bool:
    """Whether the configuration has a PPO stage."""
    return config.ppo is not None


def settings(config: Config) -> PPOConfig:
    """The stage's section of the configuration."""
    assert config.ppo is not None
    return config.ppo


def rows(config: Config) -> list[dict[str, Any]]:
    """The prompts to answer, with the reward's columns."""
    from workbench.prompt_rows import prompt_rows

    ppo = settings(config)
    return prompt_rows(config.policy.model, ppo.data, key="ppo.data", max_new_tokens=ppo.max_new_tokens)


def validation_rows(config: Config) -> list[dict[str, Any]]:
    """The prompts to watch PPO by, with the reward's columns; none unless the configuration names some."""
    from workbench.prompt_rows import prompt_rows

    ppo = settings(config)
    if ppo.validation is None:
        return []
    return prompt_rows(config.policy.model, ppo.validation, key="ppo.validation", max_new_tokens=ppo.max_new_tokens)


def given_reward(key: str, model: str, options: dict[str, Any]) -> CheckedReward:
    """The reward that the configuration names at `key`."""
    from reward_models import load_reward

    with named(key):
        return load_reward(model, **options)


def watch_of(config: Config, count: int) -> CheckedReward | None:
    """The scorer that watches PPO on `count` validation prompts; raises UserError where those are too few."""
    assert config.reward is not None
    if config.reward.watch is None:
        return None
    if count < WATCHED_PROMPTS:
        raise UserError(
            f"reward.watch: it scores the answers to ppo.validation, which has {count} prompts; give at least "
            f"{WATCHED_PROMPTS}, or its curve is noise"
        )
    return given_reward("reward.watch", config.reward.watch, config.reward.watch_options)


def reward_of(run: Run) -> CheckedReward:
    """The reward that the configuration names, or the one that the reward stage trained."""
    from reward_models import load_reward

    reward = run.config.reward
    assert reward is not None
    if reward.model is not None:
        return given_reward("reward.model", reward.model, reward.options)
    assert reward.train is not None
    run.record("reward")
    options: dict[str, Any] = {"max_tokens": reward.train.max_tokens}
    if reward.train.objective == "classifier":
        options = {"wanted_label": reward.train.wanted_label, "polarity_pair": tuple(reward.train.polarity_pair)}
    return load_reward(str(run.folder / "reward"), **options | reward.options)


def plan(config: Config) -> list[str]:
    """What the stage would do."""
    from workbench.planning import model_plan
    from workbench.ppo.batches import check_columns, enough_prompts

    ppo, prompts = settings(config), rows(config)
    enough_prompts(ppo, len(prompts))
    validation = validation_rows(config)
    check_columns(prompts, validation)
    assert config.reward is not None
    if config.reward.model is not None:
        given_reward("reward.model", config.reward.model, config.reward.options)
    watch_of(config, len(validation))
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

    from workbench.adapters import load_trainable
    from workbench.models import autocast_dtype, load_policy_tokenizer, pages_optimizer, save_model
    from workbench.policy import Policy
    from workbench.ppo.trainer import PPOTrainer
    from workbench.runs import folder_hash, writing

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
        watch=watch_of(config, len(validation)),
        sanity_pair=config.reward.sanity_pair,
        paged_optimizer=pages_optimizer(config.policy, accelerator.device),
    )
    metrics = trainer.train()
    for tracker in accelerator.trackers:  # end_training would also end the process group, which evaluation needs
        tracker.finish()
    if accelerator.is_main_process:
        with writing(folder):
            save_model(trainer.unwrapped.model, folder)
            tokenizer.save_pretrained(folder)
            save_values(trainer.unwrapped, folder)
            write_watch(folder)
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


def write_watch(folder: Path) -> None:
    """Draw reward and watching scorer against KL in watch.html, where there was one."""
    from workbench.ppo.watch import points
    from workbench.report.watch_page import watch_page
    from workbench.runs import write_text

    found = points(folder / "metrics.jsonl")
    if found:
        write_text(folder / "watch.html", watch_page(found))


STAGE = Stage(NAME, wanted, plan, run)

if __name__ == "__main__":
    main([STAGE], __doc__)
