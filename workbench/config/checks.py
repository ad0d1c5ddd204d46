"""Check what can be checked from the configuration alone: ranges, and settings that exclude each other."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from workbench.config.algorithm_checks import check_algorithm
from workbench.config.derived import (
    completion_limit,
    configured_stages,
    data_sources,
    sampling_seeds,
    strategies,
)
from workbench.config.generation import GenerationSettings
from workbench.config.names import PROMPTING
from workbench.config.prompting import PromptingConfig
from workbench.config.range_checks import check_ranges
from workbench.config.reward_training import RewardTraining
from workbench.config.schema import Config, EvaluationConfig, PPOConfig, SFTConfig
from workbench.config.sources import DataSource
from workbench.config.strategy_checks import RESERVED_TITLES, check_strategies
from workbench.errors import UserError, error_context, shorten

MIN_SHARE = 1e-6  # of sft.data; what is left of 1 below it is rounding


def check(config: Config) -> None:
    """Raise UserError for a value out of its range, and for settings that exclude each other."""
    check_ranges(config, Config, "")
    if not re.fullmatch(r"[\w.-]+", config.name) or config.name in (".", ".."):
        raise UserError(
            f"name: {shorten(config.name)} is used as a folder name; use only letters, digits, '.', '_' and '-'"
        )
    for key, source in data_sources(config, ""):
        with error_context(key):
            check_source(source)
    is_trained = config.sft or config.ppo or (config.reward and config.reward.train)
    if config.tuning is not None and config.sft is None:
        raise UserError("sft: missing; recipes.tuning takes data, steps and batch size from it, for every method")
    has_rows = config.evaluation.models or strategies(config.evaluation)
    if not is_trained and not has_rows and config.prompting is None:
        raise UserError(
            "sft, reward.train, ppo, evaluation.models, prompting: all missing, so there is nothing to train or to "
            "compare; set at least one"
        )
    if config.policy.quantization and config.policy.lora is None:
        raise UserError(f"policy.quantization: {config.policy.quantization} weights cannot be trained; add policy.lora")
    if config.sft:
        check_sft(config.sft)
    reward = config.reward
    scores = config.ppo is not None and not (config.ppo.offline and config.ppo.validation is None)
    needs_reward = config.sweep is None and (scores or reward is not None)
    if needs_reward and (reward is None or (reward.model is None and reward.train is None)):
        raise UserError("reward: PPO needs one; set reward.model, or reward.train to train it")
    if config.reward and config.reward.train:
        check_reward_training(config.reward.train)
    if config.ppo:
        check_ppo(config.ppo)
        if reward and reward.held_out and config.ppo.validation is None:
            raise UserError("reward.held_out: it scores the responses to ppo.validation, which is missing; add it")
        if config.ppo.validation_texts and config.ppo.validation is None:
            raise UserError("ppo.validation_texts: measured along with ppo.validation, which is missing; add it")
        if config.ppo.value_model == "separate" and config.policy.gradient_checkpointing:
            raise UserError(
                "ppo.value_model: separate does not work with policy.gradient_checkpointing, whose second forward pass "
                "would run under the wrong adapter; use shared, or turn checkpointing off"
            )
    check_evaluation(config.evaluation, sampling_seeds(config), completion_limit(config))
    check_strategies(config)
    check_samples(config)
    if config.prompting:
        check_prompting(config.prompting, completion_limit(config))


def check_source(source: DataSource) -> None:
    """Raise UserError for a limit out of range, and for fractions that do not cut one file into splits."""
    check_ranges(source, type(source), "")
    if source.fractions is None:
        return
    total = sum(source.fractions.values())
    if abs(total - 1) > 1e-6 or min(source.fractions.values(), default=0) <= 0:
        raise UserError(f"fractions: {source.fractions} must be positive and sum to 1; the sum is {total:g}")
    if source.split not in source.fractions:
        raise UserError(f"split: {source.split!r} is not one of the fractions {', '.join(source.fractions)}")


def check_sft(sft: SFTConfig) -> None:
    """Raise UserError for settings of supervised fine-tuning that exclude each other."""
    if sft.micro_batch_size:
        check_multiple("sft.batch_size", sft.batch_size, "sft.micro_batch_size", sft.micro_batch_size)
    shares = [source.share for source in sft.more_data]
    if math.fsum(shares) > 1 - MIN_SHARE:
        listed = ", ".join(f"{share:g}" for share in shares)
        raise UserError(
            f"sft.more_data: the shares {listed} sum to {math.fsum(shares):g} and leave nothing to sft.data; lower "
            "them to less than 1 together"
        )


CLASSIFIER_KEYS = (
    *("target_label", "label_names", "class_weights", "clean_data", "clean_validation", "perturbation_rate"),
    "identity_rate",
)


def check_reward_training(train: RewardTraining) -> None:
    """Raise UserError for settings of the reward's training that exclude each other."""
    if train.early_stopping is not None and train.average_from is not None:
        raise UserError(
            "reward.train: early_stopping keeps one checkpoint, average_from averages many; set only one of them"
        )
    if train.freeze_embeddings and train.lora is not None:
        raise UserError("reward.train.freeze_embeddings: with reward.train.lora they are frozen already; leave it out")
    if train.objective == "classifier":
        check_label_names(train.label_names)
        return
    for name in CLASSIFIER_KEYS:
        if getattr(train, name):
            raise UserError(f"reward.train.{name}: only for objective: classifier; objective is {train.objective}")
    for index, source in enumerate(train.more_data):
        if source.label is not None:
            raise UserError(
                f"reward.train.more_data[{index}].label: only for objective: classifier; objective is {train.objective}"
            )


def check_label_names(label_names: dict[str, str]) -> None:
    """Raise UserError for a name that two labels share, or that is itself a label with another name."""
    labels_by_name: dict[str, str] = {}
    for label, name in label_names.items():
        if name in labels_by_name:
            raise UserError(
                f"reward.train.label_names: {labels_by_name[name]} and {label} are both named {name}; use two names"
            )
        if name != label and name in label_names:
            raise UserError(
                f"reward.train.label_names: {label} is named {name}, which is another label of the data; use a new name"
            )
        labels_by_name[name] = label


def check_ppo(ppo: PPOConfig) -> None:
    """Raise UserError for settings of PPO that exclude each other."""
    check_algorithm(ppo)
    if ppo.kl_target is not None and ppo.kl_coef == 0:
        raise UserError("ppo.kl_target: it scales ppo.kl_coef, and 0 stays 0; start with a ppo.kl_coef above 0")
    if ppo.kl_target is not None and ppo.kl_horizon < ppo.batch_size:
        raise UserError(f"ppo.kl_horizon: {ppo.kl_horizon} is below ppo.batch_size {ppo.batch_size}; raise it")
    if ppo.min_token_limit and ppo.min_token_limit > ppo.max_new_tokens:
        raise UserError(f"ppo.min_token_limit: {ppo.min_token_limit} is above ppo.max_new_tokens {ppo.max_new_tokens}")
    if ppo.value_warmup_steps >= ppo.steps:
        raise UserError(
            f"ppo.value_warmup_steps: {ppo.value_warmup_steps} of {ppo.steps} ppo.steps train the value head alone, so "
            "the policy would never change; lower it"
        )
    check_multiple("ppo.batch_size", ppo.batch_size, "ppo.minibatch_size", ppo.minibatch_size)
    check_multiple("ppo.batch_size", ppo.batch_size, "ppo.samples_per_prompt", ppo.samples_per_prompt)
    if ppo.micro_batch_size:
        check_multiple("ppo.minibatch_size", ppo.minibatch_size, "ppo.micro_batch_size", ppo.micro_batch_size)


def check_evaluation(evaluation: EvaluationConfig, seeds: list[int], limit: int) -> None:
    """Raise UserError for settings of the evaluation that exclude each other."""
    check_generation("evaluation", evaluation, limit)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"evaluation.seeds: {seeds} lists a seed twice")
    shared = evaluation.data.keys() & evaluation.texts.keys()
    if shared:
        raise UserError(f"evaluation.texts.{min(shared)}: evaluation.data has a set of this name; choose another one")
    reserved = RESERVED_TITLES & evaluation.models.keys()
    if reserved:
        raise UserError(f"evaluation.models.{min(reserved)}: this title is reserved; choose another one")


def check_samples(config: Config) -> None:
    """Raise UserError where a stage would sample the same completion several times of every prompt."""
    ways = config.prompting.generation if config.prompting else {}
    if config.evaluation.samples * len(sampling_seeds(config)) == 1:
        return
    uses_evaluation = not ways or set(configured_stages(config)) - {PROMPTING}
    if uses_evaluation and config.evaluation.temperature == 0:
        raise UserError(
            "evaluation.temperature: 0 samples the same completion every time; set samples to 1 and use one seed"
        )
    if ways and all(settings.temperature == 0 for settings in ways.values()):
        raise UserError(
            "prompting.generation: every way has temperature 0, which samples the same completion every time; set "
            "evaluation.samples to 1 and use one seed, or add a way with a temperature above 0"
        )


def check_generation(key: str, settings: GenerationSettings, limit: int) -> None:
    """Raise UserError for settings of one way to generate, up to `limit` tokens, that exclude each other."""
    if settings.num_beams > 1 and settings.temperature > 0:
        raise UserError(
            f"{key}.num_beams: {settings.num_beams} beams search for the most likely completion and cannot sample at "
            f"temperature {settings.temperature:g}; set {key}.temperature to 0, or num_beams to 1"
        )
    for name, value in {"top_k": settings.top_k, "top_p": settings.top_p}.items():
        if settings.temperature == 0 and value is not None:
            raise UserError(
                f"{key}.{name}: {value:g} says among which tokens to sample, but temperature 0 does not sample; remove "
                f"{name}, or raise {key}.temperature"
            )
    if settings.min_new_tokens > limit:
        raise UserError(
            f"{key}.min_new_tokens: {settings.min_new_tokens} is more than the limit of {limit} tokens; lower it, or "
            f"raise {key}.max_new_tokens"
        )


def check_prompting(prompting: PromptingConfig, limit: int) -> None:
    """Raise UserError for a grid of prompts that repeats itself, or lacks what it needs."""
    if len(set(prompting.shots)) < len(prompting.shots):
        raise UserError(f"prompting.shots: {prompting.shots} lists a number twice")
    if max(prompting.shots) > 0 and prompting.examples is None:
        raise UserError(f"prompting.shots: {max(prompting.shots)} needs prompting.examples, which is missing")
    check_distinct("prompting.templates", prompting.templates)
    check_distinct("prompting.generation", prompting.generation)
    for name, settings in prompting.generation.items():
        check_generation(f"prompting.generation.{name}", settings, settings.max_new_tokens or limit)


def check_distinct(key: str, entries: Mapping[str, Any]) -> None:
    """Raise UserError for two entries of one mapping that would make the same rows."""
    for title, entry in entries.items():
        same = next((other for other, value in entries.items() if other != title and value == entry), None)
        if same is not None:
            raise UserError(f"{key}.{title}: the same as {same}; remove one: every row widens the intervals of all")


def check_multiple(key: str, value: int, divisor_key: str, divisor: int) -> None:
    """Raise UserError unless `divisor` divides `value`."""
    if value % divisor:
        raise UserError(
            f"{key}: {value} is not a multiple of {divisor_key} {divisor}; "
            f"the nearest is {max(round(value / divisor), 1) * divisor}"
        )
