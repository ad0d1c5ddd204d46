"""Trainers of reward models: transformers' own for classifiers, TRL's for preference pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from workbench.config.reward_training import RewardTraining
from workbench.errors import error_context
from workbench.models.adapters import add_lora
from workbench.models.batching import encode
from workbench.models.loading import attention, dropout_settings, from_pretrained, load_config
from workbench.models.precision import resolve_precision
from workbench.rewards.label_names import DATA_LABELS_KEY
from workbench.rewards.preference_encoding import WITH_PROMPTS_KEY, encode_preferences
from workbench.rewards.ranking import auroc
from workbench.rewards.training.averaging import AverageWeights
from workbench.rewards.training.datasets import ClassifierRows, LabeledTexts, Pair, PreferenceRows
from workbench.rewards.training.plan import RewardPlan, early_stopping_arguments
from workbench.run.distributed import data_parallel, per_process
from workbench.run.hf_trainer import training_arguments

BATCHES_PER_GROUP = 50


def make_reward_trainer(plan: RewardPlan, folder: Path) -> Trainer:
    """Return the trainer of the planned classifier or preference model, which keeps its checkpoints in `folder`."""
    with data_parallel():
        if isinstance(plan.rows, ClassifierRows):
            return classifier_trainer(plan, plan.rows, folder)
        return preference_trainer(plan, plan.rows, folder)


def classifier_trainer(plan: RewardPlan, rows: ClassifierRows, folder: Path) -> Trainer:
    """Return transformers' Trainer for a classifier with the label names of the rows."""
    train, tokenizer, names = plan.train, plan.tokenizer, list(rows.labels.values())
    label_ids = {name: index for index, name in enumerate(names)}
    labels = {"id2label": dict(enumerate(names)), "label2id": label_ids}
    # The checkpoint to start from may be one whose texts have several labels.
    model = load_classification_model(train, tokenizer, problem_type="single_label_classification", **labels)
    if train.label_names:
        model.config.update({DATA_LABELS_KEY: rows.labels})

    def encoded(part: LabeledTexts) -> Dataset:
        ids = encode(tokenizer, part.texts, train.max_tokens)  # as the reward will
        return Dataset.from_dict({"input_ids": ids, "labels": [label_ids[label] for label in part.labels]})

    def quality(prediction: EvalPrediction) -> dict[str, float]:
        target = label_ids[rows.target]
        logits = torch.as_tensor(np.asarray(prediction.predictions), dtype=torch.float64)
        return {"quality": auroc(logits.log_softmax(1)[:, target].numpy(), prediction.label_ids == target)}

    training = encoded(rows.training)
    lengths = [len(ids) for ids in training["input_ids"]]
    training = training.select(grouped_order(lengths, train.epochs, train.batch_size, plan.seed))
    # That order covers all epochs; the trainer's own grouping could not resume where it stopped.
    extra = {"num_train_epochs": 1, "train_sampling_strategy": "sequential"}
    weights = balanced_weights([label_ids[label] for label in rows.training.labels]) if train.class_weights else None
    arguments = TrainingArguments(**trainer_options(plan, folder, extra))
    return Trainer(
        model,
        arguments,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=training,
        eval_dataset=encoded(rows.validation) if train.early_stopping else None,
        processing_class=tokenizer,
        compute_metrics=quality,
        compute_loss_func=None if weights is None else weighted_loss(weights, arguments.label_smoothing_factor),
        callbacks=callbacks(train),
    )


def preference_trainer(plan: RewardPlan, rows: PreferenceRows, folder: Path) -> Trainer:
    """Return TRL's RewardTrainer on the token ids of chosen and rejected completions, each with its prompt."""
    from trl import RewardConfig, RewardTrainer

    train, tokenizer = plan.train, plan.tokenizer
    model = load_classification_model(train, tokenizer, num_labels=1)
    model.config.update({WITH_PROMPTS_KEY: rows.with_prompts})

    def encoded(pairs: list[Pair]) -> Dataset:
        prompts, chosen, rejected = (list(column) for column in zip(*pairs, strict=True))
        chosen_ids = encode_preferences(tokenizer, prompts, chosen, train.max_tokens)
        rejected_ids = encode_preferences(tokenizer, prompts, rejected, train.max_tokens)
        return Dataset.from_dict({"chosen_ids": chosen_ids, "rejected_ids": rejected_ids})

    return RewardTrainer(
        model,
        RewardConfig(**trainer_options(plan, folder, {"max_length": None})),
        train_dataset=encoded(rows.training),
        eval_dataset=encoded(rows.validation) if train.early_stopping else None,
        processing_class=tokenizer,
        callbacks=callbacks(train),
    )


def load_classification_model(
    train: RewardTraining, tokenizer: PreTrainedTokenizerBase, **labels: Any
) -> PreTrainedModel:
    """Load the model with a new classification layer, wrapped in an adapter if one is configured."""
    # A checkpoint that already classifies keeps its body and gets a new head if its number of labels differs.
    loading = {"dtype": torch.float32, "pad_token_id": tokenizer.pad_token_id, "ignore_mismatched_sizes": True} | labels
    loading |= attention(training_precision(train), PartialState().device)
    if train.dropout is not None:
        loading |= dict.fromkeys(dropout_settings(load_config(train.model)), train.dropout)
    model = from_pretrained(AutoModelForSequenceClassification, train.model, **loading)
    if train.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    return add_lora(model, train.lora, "default", key="reward.train.lora", classifier=True) if train.lora else model


def training_precision(train: RewardTraining) -> str:
    """Return fp32, bf16 or fp16: the precision of the training on this machine."""
    with error_context("reward.train.precision"):
        return resolve_precision(train.precision, PartialState().device, load_config(train.model))


def trainer_options(plan: RewardPlan, folder: Path, extra: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of TrainingArguments; the configuration's trainer_args come last."""
    train, state = plan.train, PartialState()
    return training_arguments(
        folder,
        epochs=train.epochs,
        max_steps=None,
        batch_size=per_process("reward.train.batch_size", train.batch_size, state.num_processes),
        accumulation=1,
        learning_rate=train.learning_rate,
        precision=training_precision(train),
        checkpointing=False,
        save_every=train.save_every,
        seed=plan.seed,
        on_cpu=state.device.type == "cpu",
        paged=False,
        extra=extra | early_stopping_arguments(train) | train.trainer_args,
    )


def callbacks(train: RewardTraining) -> list[TrainerCallback]:
    """Return the callbacks for early stopping and weight averaging, if configured."""
    configured: list[TrainerCallback] = []
    if train.early_stopping:
        configured.append(EarlyStoppingCallback(train.early_stopping))
    if train.average_from is not None:
        configured.append(AverageWeights(train.average_from))
    return configured


def grouped_order(lengths: Sequence[int], epochs: float, batch_size: int, seed: int) -> list[int]:
    """Return the rows of all epochs, each epoch reshuffled, batching rows of similar length to reduce padding."""
    generator = torch.Generator().manual_seed(seed)
    passes = [torch.randperm(len(lengths), generator=generator) for _ in range(math.ceil(epochs))]
    rows, length = torch.cat(passes)[: round(epochs * len(lengths))], torch.tensor(lengths)
    order: list[int] = []
    for group in rows.split(BATCHES_PER_GROUP * batch_size):
        batches = group[length[group].argsort(stable=True)].split(batch_size)
        full = len(group) // batch_size
        for index in torch.randperm(full, generator=generator).tolist():
            order += batches[index].tolist()
        order += [row for batch in batches[full:] for row in batch.tolist()]
    return order


def balanced_weights(label_ids: Sequence[int]) -> torch.Tensor:
    """Return weights (labels,) that give every label of these rows the same share of the mean loss."""
    counts = torch.bincount(torch.tensor(label_ids))
    return len(label_ids) / (len(counts) * counts)


def weighted_loss(weights: torch.Tensor, label_smoothing: float = 0.0) -> Any:
    """Return a loss for the Trainer: the mean over rows of cross-entropy times the weight of the row's label."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        per_row = nn.functional.cross_entropy(
            outputs.logits.float(), labels, reduction="none", label_smoothing=label_smoothing
        )
        total = (per_row * weights.to(labels.device)[labels]).sum()
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss
