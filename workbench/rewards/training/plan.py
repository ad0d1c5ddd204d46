"""What training a reward model needs, loaded and checked before anything trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainingArguments

from workbench.config.names import REWARD
from workbench.config.reward_training import RewardTraining
from workbench.config.schema import Config, RewardConfig
from workbench.errors import UserError, error_context
from workbench.models.batching import encode
from workbench.models.loading import load_config, load_tokenizer
from workbench.models.memory_plan import (
    meta_classifier,
    number_of_processes,
    planned_classifier,
    reward_memory_lines,
)
from workbench.models.model_checks import check_reward_base
from workbench.models.positions import context_length
from workbench.models.precision import machine_device, precision_lines, resolve_precision
from workbench.rewards.preference_encoding import encode_preferences
from workbench.rewards.registry import check_options
from workbench.rewards.training.datasets import (
    ClassifierRows,
    PreferenceRows,
    load_classifier_rows,
    load_preference_rows,
    require_both_classes,
)
from workbench.run.hf_trainer import training_arguments
from workbench.run.trainer_args import check_trainer_args
from workbench.run.trainer_plan import SAMPLING_STRATEGIES, TrainerPlan, planned_steps

LONGEST_TEXTS = 32


@dataclass(frozen=True)
class RewardPlan:
    """What the stage works with; `run` reuses these objects."""

    lines: list[str]
    reward: RewardConfig
    train: RewardTraining
    seed: int
    tokenizer: PreTrainedTokenizerBase
    rows: ClassifierRows | PreferenceRows


def plan_reward(config: Config) -> RewardPlan:
    """Load the tokenizer and the rows of the stage; raises UserError for settings or rows that do not fit."""
    reward = config.reward
    assert reward is not None
    train = reward.train
    assert train is not None
    is_preference = train.objective == "preference"
    check_options("preference" if is_preference else "toxicity", reward.options, "reward.options")
    check_not_trained(reward.options)
    with error_context("reward.train.model"):
        tokenizer = load_tokenizer(train.model)
    model_config, device = load_config(train.model), machine_device()
    with error_context("reward.train.precision"):
        precision = resolve_precision(train.precision, device, model_config)
    with error_context("reward.train.model"):
        network = meta_classifier(train.model)
        check_reward_base(train.model, tokenizer, network)
    limit = context_length(model_config, tokenizer, network)
    least = tokenizer.num_special_tokens_to_add() + 1
    if train.max_tokens < least:
        raise UserError(
            f"reward.train.max_tokens: {train.max_tokens}, but {train.model} takes at least {least} tokens (its "
            "special tokens and one of the text); raise it"
        )
    if limit is not None and train.max_tokens > limit:
        raise UserError(
            f"reward.train.max_tokens: {train.max_tokens}, but {train.model} reads at most {limit} tokens; lower it"
        )
    rows: ClassifierRows | PreferenceRows
    if is_preference:
        rows, aim = load_preference_rows(train, tokenizer), "rewards preferred completions"
        count, validation_rows = len(rows.training), len(rows.validation)
    else:
        rows = load_classifier_rows(train, config.seed)
        aim = f"rewards {rows.target}"
        require_both_classes([label == rows.target for label in rows.validation.labels])
        count, validation_rows = len(rows.training.texts), len(rows.validation.texts)
    check_trainer_args(trainer_plan(train, config.seed, precision, count, validation_rows))
    extra = train.trainer_args
    steps = planned_steps(extra, None, -(-count // train.batch_size), train.epochs)
    evaluates_at_own_steps = "eval_steps" in extra or "eval_strategy" in extra
    if train.early_stopping is not None and train.save_every > steps and not evaluates_at_own_steps:
        raise UserError(
            f"reward.train.early_stopping: it evaluates each reward.train.save_every {train.save_every} steps, but "
            f"training has only {steps:g}; lower reward.train.save_every"
        )
    summary = f"{steps:g} steps of {train.batch_size} from {count} rows, {train.model}, {aim}"
    precisions = precision_lines("reward.train.precision", train.precision, device, model_config)
    tokens = longest_row(tokenizer, rows, train.max_tokens)
    memory = reward_memory_lines(config, train, tokens)
    return RewardPlan([*rows.sizes, summary, *memory, *precisions], reward, train, config.seed, tokenizer, rows)


def check_not_trained(options: dict[str, Any]) -> None:
    """Raise UserError for an option of the reward that the training decides."""
    decided = {
        "model": "the `reward` stage's own folder",
        "target_label": "reward.train.target_label",
        "penalized_label": "reward.train.target_label",
        "multi_label": "false: the classifier is trained on one label per text",
        "prompt": "what reward.train.data has",
    }
    for option in options:
        if option in decided:
            raise UserError(f"reward.options.{option}: remove it; for a trained model it is {decided[option]}")


def longest_row(tokenizer: PreTrainedTokenizerBase, rows: ClassifierRows | PreferenceRows, max_tokens: int) -> int:
    """Return the number of tokens of the longest training text, among those with the most characters."""
    if isinstance(rows, ClassifierRows):
        texts = sorted(rows.training.texts, key=len)[-LONGEST_TEXTS:]
        return max(map(len, encode(tokenizer, texts, max_tokens)))
    pairs = sorted(rows.training, key=lambda pair: sum(map(len, pair)))
    prompts, chosen, rejected = (list(column) for column in zip(*pairs[-LONGEST_TEXTS:], strict=True))
    encoded = encode_preferences(tokenizer, prompts * 2, [*chosen, *rejected], max_tokens)
    return max(map(len, encoded))


def early_stopping_arguments(train: RewardTraining) -> dict[str, Any]:
    """Return the arguments of a trainer that evaluates while it trains, if the configuration says so."""
    if not train.early_stopping:
        return {}
    return {
        "eval_strategy": "steps",
        "eval_steps": train.save_every,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{quality_metric(train)}",
        "restore_callback_states_from_checkpoint": True,  # the remaining patience
    }


def quality_metric(train: RewardTraining) -> str:
    """Return the name under which the trainer measures how good the reward model is."""
    return "accuracy" if train.objective == "preference" else "quality"


def settled_arguments(train: RewardTraining) -> dict[str, tuple[Any, str]]:
    """Return the arguments of which the trainer can take one value only, with that value and why."""
    settled: dict[str, tuple[Any, str]] = {}
    if train.objective == "preference":
        settled["label_smoothing_factor"] = (0, "is not read by TRL's loss of pairs; leave it out")
    else:
        settled["num_train_epochs"] = (None, "would multiply reward.train.epochs; set that, and leave it out")
    if train.early_stopping:
        settled["load_best_model_at_end"] = (True, "contradicts reward.train.early_stopping; leave it out")
        settled["restore_callback_states_from_checkpoint"] = (True, "would let a resume forget its patience; remove it")
    return settled


def trainer_plan(
    train: RewardTraining, seed: int, precision: str, training_rows: int, evaluation_rows: int
) -> TrainerPlan:
    """Return what the trainer will be made with, as far as trainer_args have to fit it."""
    processes = number_of_processes()
    is_preference = train.objective == "preference"

    def arguments(extra: dict[str, Any]) -> TrainingArguments:
        values = training_arguments(
            Path(REWARD),
            epochs=train.epochs if is_preference else 1,
            max_steps=None,
            batch_size=1,
            accumulation=1,
            learning_rate=train.learning_rate,
            precision="fp32",
            checkpointing=False,
            save_every=train.save_every,
            seed=seed,
            on_cpu=True,
            paged=False,
            extra=early_stopping_arguments(train) | extra,
        )
        return TrainingArguments(**values)

    return TrainerPlan(
        key="reward.train.trainer_args",
        extra=train.trainer_args,
        arguments=arguments,
        precision=precision,
        precision_key="reward.train.precision",
        rows_key=None if train.early_stopping else "reward.train.early_stopping",
        network=lambda: planned_classifier(train),
        # A classifier's trainer has the rows of all epochs as one.
        training_rows=training_rows if is_preference else round(training_rows * train.epochs),
        evaluation_rows=evaluation_rows if train.early_stopping else 0,
        rows_at_a_time=-(-train.batch_size // processes),
        processes=processes,
        metrics=(quality_metric(train),),
        settled=settled_arguments(train),
        sampling_strategies=("random", "sequential") if is_preference else SAMPLING_STRATEGIES,
    )
