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
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from workbench.config.schema import RewardTraining
from workbench.models.adapters import add_lora
from workbench.models.batching import encode
from workbench.models.loading import attention, from_pretrained
from workbench.rewards.ranking import auroc
from workbench.run.distributed import per_process
from workbench.run.hf_trainer import training_arguments

AVERAGE_EVERY = 5  # steps
AVERAGE_FILE = "average.pt"
GROUPED_BATCHES = 50


class AverageWeights(TrainerCallback):
    """Ends the training with the mean of the weights after `share` of the steps (arXiv 1803.05407).

    Every AVERAGE_EVERY-th step counts, and the last; checkpoints hold the mean so far.
    """

    def __init__(self, share: float) -> None:
        self.share, self.count = share, 0
        self.mean: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on with the mean of the checkpoint that the trainer goes on from."""
        last = get_last_checkpoint(args.output_dir) if state.global_step else None
        if last is not None:
            saved = torch.load(Path(last) / AVERAGE_FILE, map_location=args.device, weights_only=True)
            self.count, self.mean = saved["count"], saved["mean"]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Take the weights of this step into the mean."""
        wanted = state.global_step >= self.share * state.max_steps and state.global_step % AVERAGE_EVERY == 0
        if not wanted and state.global_step < state.max_steps:
            return
        self.count += 1
        for name, weight in model.named_parameters():
            if weight.requires_grad and name in self.mean:
                self.mean[name].lerp_(weight.detach(), 1 / self.count)
            elif weight.requires_grad:
                self.mean[name] = weight.detach().clone()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the mean to the checkpoint."""
        if state.is_world_process_zero:
            place = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            torch.save({"count": self.count, "mean": self.mean}, place / AVERAGE_FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Put the mean in the place of the last weights, unless the training was stopped before its end."""
        if state.global_step < state.max_steps:
            return
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in self.mean:
                    weight.copy_(self.mean[name])


def classifier_trainer(
    train: RewardTraining,
    tokenizer: PreTrainedTokenizerBase,
    labels: list[str],
    rows: tuple[list[str], list[str]],
    validation: tuple[list[str], list[str]],
    *,
    folder: Path,
    seed: int,
    track: str | None,
) -> Trainer:
    """transformers' Trainer on a classifier whose label names are `labels`; `rows` are texts and their labels."""
    model = load_scorer(
        train, tokenizer, id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)}
    )

    def encoded(part: tuple[list[str], list[str]]) -> Dataset:
        texts, names = part
        ids = encode(tokenizer, texts, train.max_tokens)  # as the reward will
        return Dataset.from_dict({"input_ids": ids, "labels": [labels.index(name) for name in names]})

    def quality(predicted: EvalPrediction) -> dict[str, float]:
        wanted = labels.index(str(train.target_label))
        logits = torch.as_tensor(np.asarray(predicted.predictions), dtype=torch.float64)
        return {"quality": auroc(logits.log_softmax(1)[:, wanted].numpy(), predicted.label_ids == wanted)}

    learned = encoded(rows)
    lengths = [len(ids) for ids in learned["input_ids"]]
    learned = learned.select(grouped_order(lengths, train.epochs, train.batch_size, seed))
    return Trainer(
        model,
        # Every epoch stands in the order already; the trainer's own grouping could not go on where it was stopped.
        TrainingArguments(
            **options(train, folder, seed, track, {"num_train_epochs": 1, "train_sampling_strategy": "sequential"})
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=learned,
        eval_dataset=encoded(validation) if train.early_stopping else None,
        processing_class=tokenizer,
        compute_metrics=quality,
        compute_loss_func=weighted_loss(balanced([labels.index(name) for name in rows[1]]))
        if train.class_weights
        else None,
        callbacks=callbacks(train),
    )


def preference_trainer(
    train: RewardTraining,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[list[int], list[int]]],
    validation: Sequence[tuple[list[int], list[int]]],
    *,
    folder: Path,
    seed: int,
    track: str | None,
) -> Trainer:
    """TRL's RewardTrainer on the token ids of (chosen, rejected) texts."""
    from trl import RewardConfig, RewardTrainer

    model = load_scorer(train, tokenizer, num_labels=1)

    def dataset(part: Sequence[tuple[list[int], list[int]]]) -> Dataset:
        return Dataset.from_dict({"chosen_ids": [pair[0] for pair in part], "rejected_ids": [pair[1] for pair in part]})

    return RewardTrainer(
        model,
        RewardConfig(**options(train, folder, seed, track, {"max_length": None})),
        train_dataset=dataset(pairs),
        eval_dataset=dataset(validation) if train.early_stopping else None,
        processing_class=tokenizer,
        callbacks=callbacks(train),
    )


def load_scorer(train: RewardTraining, tokenizer: PreTrainedTokenizerBase, **labels: Any) -> PreTrainedModel:
    """The model with a new classification layer, inside an adapter if there shall be one."""
    # A checkpoint that classifies already keeps its body and gets a new head where it had another number of labels.
    loading = {"dtype": torch.float32, "pad_token_id": tokenizer.pad_token_id, "ignore_mismatched_sizes": True} | labels
    loading |= attention(train.precision, PartialState().device)
    model = from_pretrained(AutoModelForSequenceClassification, train.model, **loading)
    return add_lora(model, train.lora, "default", key="reward.train", classifier=True) if train.lora else model


def options(train: RewardTraining, folder: Path, seed: int, track: str | None, extra: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the trainer's configuration."""
    state = PartialState()
    if train.early_stopping:
        name = "eval_accuracy" if train.objective == "preference" else "eval_quality"
        extra |= {
            "eval_strategy": "steps",
            "eval_steps": train.save_every,
            "load_best_model_at_end": True,
            "metric_for_best_model": name,
            "save_total_limit": 2,
            "restore_callback_states_from_checkpoint": True,  # the patience that is left
        }
    return training_arguments(
        folder,
        epochs=train.epochs,
        max_steps=None,
        batch_size=per_process("reward.train.batch_size", train.batch_size, state.num_processes),
        accumulation=1,
        learning_rate=train.learning_rate,
        precision=train.precision,
        checkpointing=False,
        save_every=train.save_every,
        seed=seed,
        on_cpu=state.device.type == "cpu",
        paged=False,
        track=track,
        extra=extra | train.trainer_args,
    )


def callbacks(train: RewardTraining) -> list[TrainerCallback]:
    """What the options ask for beside the training itself."""
    found: list[TrainerCallback] = []
    if train.early_stopping:
        found.append(EarlyStoppingCallback(train.early_stopping))
    if train.average_from is not None:
        found.append(AverageWeights(train.average_from))
    return found


def grouped_order(lengths: Sequence[int], epochs: float, batch_size: int, seed: int) -> list[int]:
    """Rows of all epochs, each in a new order, in which batches hold rows of like length: little padding."""
    generator = torch.Generator().manual_seed(seed)
    passes = [torch.randperm(len(lengths), generator=generator) for _ in range(math.ceil(epochs))]
    rows, length = torch.cat(passes)[: round(epochs * len(lengths))], torch.tensor(lengths)
    order: list[int] = []
    for part in rows.split(GROUPED_BATCHES * batch_size):
        batches = part[length[part].argsort(stable=True)].split(batch_size)
        whole = len(part) // batch_size
        for number in torch.randperm(whole, generator=generator).tolist():
            order += batches[number].tolist()
        order += [row for batch in batches[whole:] for row in batch.tolist()]
    return order


def balanced(numbers: Sequence[int]) -> torch.Tensor:
    """Weights (labels,) by which every label has the same share in the mean loss over rows of these label numbers."""
    counts = torch.bincount(torch.tensor(numbers))
    return len(numbers) / (len(counts) * counts)


def weighted_loss(weights: torch.Tensor) -> Any:
    """A loss for the Trainer: cross-entropy of each row times its label's weight, as a mean over rows."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        each = nn.functional.cross_entropy(outputs.logits.float(), labels, reduction="none")
        total = (each * weights.to(labels.device)[labels]).sum()
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss
