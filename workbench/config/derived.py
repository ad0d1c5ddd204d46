"""What follows from several settings together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal

from workbench.config.names import EVALUATION, PPO, PROMPTING, REWARD, SFT, TUNING
from workbench.config.schema import Config, EvaluationConfig, PPOConfig
from workbench.config.sources import AntiExpert, BestOf, DataSource, Prompted

STRATEGIES = ("best_of", "prompted", "anti_expert")
"""Keys of evaluation with models that are decoded in another way, by title."""


def configured_stages(config: Config) -> list[str]:
    """Return the stages that the configuration has, in the order they run."""
    stages = {
        SFT: config.sft is not None,
        REWARD: config.reward is not None and config.reward.model is None,
        PPO: config.ppo is not None,
        EVALUATION: bool(config.sft or config.ppo or config.evaluation.models or strategies(config.evaluation)),
        PROMPTING: config.prompting is not None,
        TUNING: config.tuning is not None,
    }
    return [stage for stage, is_configured in stages.items() if is_configured]


def strategies(evaluation: EvaluationConfig) -> dict[str, BestOf | Prompted | AntiExpert]:
    """Return by title the ways to get other completions from a model without training, in the order of the tables."""
    return {title: entry for section in STRATEGIES for title, entry in vars(evaluation)[section].items()}


def without_strategies(evaluation: EvaluationConfig) -> EvaluationConfig:
    """Return the settings for the models alone."""
    return replace(evaluation, best_of={}, prompted={}, anti_expert={})


def stage_sources(config: Config, stage: str) -> list[tuple[str, DataSource]]:
    """Return all data sources that a stage reads, each with its key."""
    train = config.reward.train if config.reward is not None else None
    key, section = ("reward.train", train) if stage == REWARD else (stage, vars(config)[stage])
    further = {PROMPTING: (EVALUATION,), TUNING: (SFT, EVALUATION)}.get(stage, ())
    sections = [(key, section), *((name, vars(config)[name]) for name in further)]
    return [source for name, part in sections for source in data_sources(part, name)]


def data_sources(value: Any, key: str) -> Iterator[tuple[str, DataSource]]:
    """Yield every data source at or below `value` with its key."""
    if isinstance(value, DataSource):
        yield key, value
    elif is_dataclass(value):
        for field in fields(value):
            yield from data_sources(vars(value)[field.name], f"{key}.{field.name}" if key else field.name)
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from data_sources(entry, f"{key}.{name}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from data_sources(entry, f"{key}[{index}]")


def completion_limit(config: Config) -> int:
    """Return the evaluation's limit of tokens per completion: PPO's limit unless it has its own."""
    return config.evaluation.max_new_tokens or (config.ppo.max_new_tokens if config.ppo else 128)


def least_toxic(evaluation: EvaluationConfig) -> float:
    """Return the least probability at which a text counts as toxic: under a protocol, the next one above the threshold.

    The code of DExperts and Quark counts samples strictly above 0.5.
    """
    return evaluation.threshold if evaluation.protocol is None else math.nextafter(evaluation.threshold, math.inf)


def algorithm_name(ppo: PPOConfig) -> str:
    """Return what the literature calls the loss and the kind of advantage."""
    if ppo.loss != "clip":
        return ppo.loss.upper()
    return "PPO" if ppo.advantage == "gae" else ppo.advantage.upper()


def normalizing_responses(ppo: PPOConfig) -> int:
    """Return how many responses of the initial policy scores are normalized by: whole batches."""
    return -(-ppo.score_samples // sampled_responses(ppo)) * sampled_responses(ppo)


def sampled_responses(ppo: PPOConfig) -> int:
    """Return how many responses a step samples over all processes, of which it learns from batch_size."""
    return ppo.batch_size * ppo.oversampling


def learned_values(ppo: PPOConfig) -> Literal["shared", "separate"] | None:
    """Return what learns a value of every token; None where nothing does."""
    if ppo.loss != "clip" or ppo.advantage != "gae" or ppo.value_model == "reward":
        return None
    return ppo.value_model


def has_values(ppo: PPOConfig) -> bool:
    """Return whether PPO learns a value of every token."""
    return learned_values(ppo) is not None


def scores_prefixes(ppo: PPOConfig) -> bool:
    """Return whether the reward scores every prefix of a response, and these scores serve as values."""
    return ppo.loss == "clip" and ppo.advantage == "gae" and ppo.value_model == "reward"


def is_kl_in_loss(ppo: PPOConfig) -> bool:
    """Return whether the KL penalty is a term of the loss, instead of the reward."""
    return (ppo.kl_in or ("loss" if ppo.loss == "dpo" or ppo.advantage in ("grpo", "gdpo") else "reward")) == "loss"


def micro_batch_size(config: Config, stage: str, rows: int) -> int:
    """Return how many of a process's `rows` per optimizer step SFT or PPO computes at a time."""
    section = config.sft if stage == SFT else config.ppo
    assert section is not None
    largest = min(section.micro_batch_size or config.policy.micro_batch_size or rows, rows)
    if stage == PPO:
        return largest
    # The trainer of SFT would leave a remainder out of the step.
    return next(size for size in range(largest, 0, -1) if rows % size == 0)


def sampling_seeds(config: Config) -> list[int]:
    """Return the seeds of the evaluation's samples."""
    return config.evaluation.seeds or [config.seed]
