"""One training of a policy by this project's loop or by TRL's, timed, with the adapters that a judge reads afterwards.

`benchmarks/time_to_target.py` starts each training in a process of its own and says how the two differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from workbench.config.names import PPO, REWARD
from workbench.config.schema import Config, PPOConfig
from workbench.config.scorers import as_scorer
from workbench.data.prompts import load_configured_prompts
from workbench.evaluation.generation import ComparedModel, Sampling, sample_completions
from workbench.models.loading import load_config, load_policy_tokenizer, policy_precision, resolve
from workbench.models.policy import Policy
from workbench.models.positions import model_context
from workbench.ppo.policy_files import load_policy
from workbench.ppo.sampler import batch_indices
from workbench.ppo.scoring import reward_columns
from workbench.ppo.trainer import PPOTrainer
from workbench.rewards.contract import CheckedReward, Judge
from workbench.rewards.registry import judge_of, load_reward, load_scorer, load_trained_reward
from workbench.run.peak_memory import status_bytes

System = Literal["workbench", "trl"]
SYSTEMS: tuple[System, ...] = get_args(System)
ADAPTER = {"workbench": "policy", "trl": "default"}
VALIDATION_SEED = 0
DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Workload:
    """What both systems get."""

    config: Config
    ppo: PPOConfig
    tokenizer: PreTrainedTokenizerBase
    rows: list[dict[str, Any]]
    """Prompts to learn from."""
    validation_rows: list[dict[str, Any]]
    """Prompts on which the judge measures."""


@dataclass
class Reward:
    """The reward of both systems, which notes how long each call took and the mean of its scores."""

    reward: CheckedReward
    seconds: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    __name__ = "reward"  # in TRL's logs

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Return the scores of completions, without the surrounding whitespace that only TRL leaves."""
        start = time.perf_counter()
        scores = self.reward(prompts, [text.strip() for text in completions], **columns)
        self.seconds.append(time.perf_counter() - start)
        self.means.append(mean(scores))
        return scores


@dataclass
class Clock:
    """The seconds of each step, between which adapters are saved while the clock stands still."""

    folder: Path
    every: int
    model: Callable[[], PeftModel]
    adapter: str
    seconds: list[float] = field(default_factory=list)
    started: float = 0.0

    def start(self) -> None:
        """Save the untrained adapter and start."""
        self.save(0)
        self.started = time.perf_counter()

    def end_step(self) -> None:
        """Note a step, and save the adapter if one is due."""
        self.seconds.append(time.perf_counter() - self.started)
        if len(self.seconds) % self.every == 0:
            self.save(len(self.seconds))
        self.started = time.perf_counter()

    def save(self, step: int) -> None:
        """Write the adapter's weights after `step` steps."""
        weights = get_peft_model_state_dict(self.model(), adapter_name=self.adapter, save_embedding_layers=False)
        save_file({name: weight.contiguous() for name, weight in weights.items()}, snapshot(self.folder, step))


def snapshot(folder: Path, step: int) -> Path:
    """Return the file of the adapter after `step` steps."""
    return folder / f"step_{step}.safetensors"


class ClockTracker:
    """Tells a clock where this project's steps end, and how long they sampled."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.generate: list[float] = []

    def log(self, values: Mapping[str, float | str], step: int) -> None:
        """End a step."""
        self.generate.append(float(values["seconds/generate"]))
        self.clock.end_step()

    def log_samples(self, samples: Sequence[Mapping[str, Any]], step: int) -> None:
        """Do nothing."""


class ClockCallback(TrainerCallback):
    """Tells a clock where TRL's steps end: one has several optimizer steps."""

    def __init__(self, clock: Clock, optimizer_steps: int) -> None:
        self.clock, self.optimizer_steps = clock, optimizer_steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self.clock.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End a step after its last optimizer step."""
        if state.global_step % self.optimizer_steps == 0:
            self.clock.end_step()


def load_workload(config: Config, validation: int) -> Workload:
    """Load the tokenizer, the prompts and `validation` prompts for the judge.

    Raises SystemExit where TRL would read a prompt as other tokens.
    """
    assert config.ppo is not None
    tokenizer = load_policy_tokenizer(config.policy.model)
    context = model_context(load_config(config.policy.model), tokenizer)
    sources = {"ppo.data": config.ppo.data, "evaluation.data": next(iter(config.evaluation.data.values()))}
    rows, validation_rows = (
        load_configured_prompts(key, source, tokenizer, max_new_tokens=config.ppo.max_new_tokens, context=context)[0]
        for key, source in sources.items()
    )
    for row in rows:
        if tokenizer(row["prompt"]).input_ids != row["prompt_ids"]:
            raise SystemExit(f"error: {row['prompt']!r} has other tokens in TRL; use data that both read alike")
    return Workload(config, config.ppo, tokenizer, rows, validation_rows[:validation])


def load_rewards(config: Config, run: Path) -> tuple[CheckedReward, Judge]:
    """Return the reward, trained in the folder `run` unless the configuration names one, and the first judge."""
    assert config.reward is not None
    if config.reward.model is None:
        reward = load_trained_reward(config.reward, run / REWARD)
    else:
        reward = load_reward(config.reward.model, **config.reward.options)
    scorer = as_scorer(config.evaluation.judges[0], "evaluation.judges[0]")
    return reward, judge_of(load_scorer(scorer), scorer)


def train(workload: Workload, checked: CheckedReward, system: System, seed: int, every: int, to: Path) -> dict:
    """Train from the start, save adapters in the folder `to`, and return seconds, mean rewards and memory."""
    reward = Reward(checked)
    loaded = status_bytes("VmRSS")
    run = {"workbench": train_with_workbench, "trl": train_with_trl}[system]
    seconds, generate = run(workload, reward, seed, every, to)
    return {
        "system": system,
        "algorithm": workload.ppo.advantage,
        "seed": seed,
        "settings": {
            "precision": policy_precision(workload.config.policy, DEVICE),
            "threads": torch.get_num_threads(),
            **{name: version(name) for name in ("torch", "transformers", "peft", "trl")},
        },
        "steps": [
            {"total": total, "generate": sampled, "score": scored, "update": total - sampled - scored}
            for total, sampled, scored in zip(seconds, generate, reward.seconds, strict=True)
        ],
        "rewards": reward.means,
        "loaded_bytes": loaded,
        "peak_bytes": status_bytes("VmHWM"),
    }


def train_with_workbench(
    workload: Workload, reward: Reward, seed: int, every: int, to: Path
) -> tuple[list[float], list[float]]:
    """Train with PPOTrainer; return the seconds of each step, and those of them spent on sampling."""
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    set_seed(seed)
    trainer = PPOTrainer(
        load_untrained(workload),
        workload.tokenizer,
        reward,
        workload.rows,
        # A checkpoint follows the last step, when the clock has stopped.
        replace(workload.ppo, checkpoint_every=workload.ppo.steps),
        accelerator=accelerator,
        folder=to,
        seed=seed,
    )
    clock = Clock(to, every, lambda: trainer.unwrapped.model, ADAPTER["workbench"])
    tracker = ClockTracker(clock)
    clock.start()
    trainer.train(tracker)
    return clock.seconds, tracker.generate


def train_with_trl(
    workload: Workload, reward: Reward, seed: int, every: int, to: Path
) -> tuple[list[float], list[float]]:
    """Train with GRPOTrainer or RLOOTrainer; return the seconds of each step, and those of them spent on sampling."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    trainer_class, config_class = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[
        workload.ppo.advantage
    ]
    trainer = trainer_class(
        model=resolve(workload.config.policy.model),
        reward_funcs=reward,
        args=config_class(**trl_arguments(workload, seed, to)),
        train_dataset=Dataset.from_list(ordered_rows(workload, seed)),
        processing_class=workload.tokenizer,
        peft_config=lora_config(workload.config),
    )
    clock = Clock(to, every, lambda: trainer.model, ADAPTER["trl"])
    trainer.add_callback(ClockCallback(clock, optimizer_steps(workload.ppo)))
    generate, seconds = trainer._generate, []

    def timed(prompts: list[str]) -> Any:
        start = time.perf_counter()
        generated = generate(prompts)
        seconds.append(time.perf_counter() - start)
        return generated

    trainer._generate = timed
    trainer.train()
    return clock.seconds, seconds


def optimizer_steps(ppo: PPOConfig) -> int:
    """Return the optimizer steps of one step."""
    return ppo.epochs * ppo.batch_size // ppo.minibatch_size


def trl_arguments(workload: Workload, seed: int, to: Path) -> dict[str, Any]:
    """Return the settings with which TRL does the same, as far as it can."""
    ppo, dtype = workload.ppo, policy_precision(workload.config.policy, DEVICE)
    arguments = {
        "output_dir": str(to / "trl"),
        "seed": seed,
        "use_cpu": True,
        "bf16": dtype == "bf16",
        "model_init_kwargs": {"dtype": {"bf16": "bfloat16", "fp32": "float32"}[dtype]},
        "disable_dropout": True,
        "activation_checkpointing": False,
        "max_steps": ppo.steps * optimizer_steps(ppo),
        "per_device_train_batch_size": ppo.minibatch_size,
        "steps_per_generation": ppo.batch_size // ppo.minibatch_size,
        "num_iterations": ppo.epochs,
        "num_generations": ppo.samples_per_prompt,
        "max_completion_length": ppo.max_new_tokens,
        "temperature": ppo.temperature,
        "beta": ppo.kl_coef,
        "epsilon": ppo.clip_range,
        "learning_rate": ppo.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": ppo.max_grad_norm,
        "adam_epsilon": 1e-5,
        "shuffle_dataset": False,
        "save_strategy": "no",
        "logging_steps": workload.ppo.steps * optimizer_steps(ppo),
        "report_to": "none",
        "disable_tqdm": True,
    }
    if ppo.advantage == "grpo":
        arguments |= {"loss_type": "dapo", "scale_rewards": "group" if ppo.norm_by_std else "none"}
    return arguments


def ordered_rows(workload: Workload, seed: int) -> list[dict[str, Any]]:
    """Return prompts and the reward's columns in the order in which PPOTrainer takes them."""
    ppo = workload.ppo
    prompts = ppo.batch_size // ppo.samples_per_prompt
    columns = reward_columns(workload.rows)
    return [
        {"prompt": workload.rows[index]["prompt"]} | {name: values[index] for name, values in columns.items()}
        for step in range(ppo.steps)
        for index in batch_indices(step, prompts, len(workload.rows), seed)
    ]


def lora_config(config: Config) -> LoraConfig:
    """Return the adapter that this project makes."""
    lora, model_type = config.policy.lora, load_config(config.policy.model).model_type
    assert lora is not None
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=lora.target_modules or "all-linear",
        fan_in_fan_out=model_type == "gpt2",
        task_type="CAUSAL_LM",
    )


def load_untrained(workload: Workload) -> Policy:
    """Load the policy into which adapters are read."""
    return load_policy(workload.config.policy, workload.tokenizer, device=DEVICE, values=None)


def toxicity(workload: Workload, judge: Judge, policy: Policy, file: Path) -> float:
    """Return the judge's mean toxicity of the completions of the validation prompts under an adapter."""
    ppo = workload.ppo
    set_peft_model_state_dict(policy.model, load_file(file), adapter_name=ADAPTER["workbench"])
    sampled = sample_completions(
        ComparedModel(PPO, policy, ADAPTER["workbench"], workload.tokenizer, None, False),
        workload.validation_rows,
        Sampling(workload.config.evaluation.batch_size, ppo.max_new_tokens, ppo.temperature, (VALIDATION_SEED,)),
        accelerator=Accelerator(cpu=True),
        label=file.stem,
    )
    return mean(judge([completion.text for completions in sampled for completion in completions]))
