"""The section reward.train: how a classifier or a preference model is trained as the reward model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from workbench.config.ranges import (
    Epochs,
    Fraction,
    IntegerNames,
    Length,
    Name,
    PairOfTexts,
    PositiveInt,
    Range,
    Rate,
    Size,
)
from workbench.config.sources import DataSource, LabeledSource
from workbench.config.tuning import LoraSettings

Perturbation = Literal["lower case", "upper case", "without punctuation", "misspelled", "obfuscated"]


@dataclass
class RewardTraining:
    """Train a toxicity classifier, or a preference model, as the reward model."""

    model: Name
    """Checkpoint to start from: hub id, folder, or toy:NAME; an encoder or a decoder."""
    data: DataSource
    """Rows with `text` and `label`, or with `chosen` and `rejected` (and the template's columns, or none)."""
    validation: DataSource
    """Rows on which the model is validated before use."""
    objective: Literal["classifier", "preference"] = "classifier"
    """Tell labels apart, or score the chosen completion of a pair above the rejected one (arXiv 2203.02155)."""
    target_label: Name | None = None
    """The label that PPO is rewarded for, as in the data or as in label_names; a classifier needs one."""
    label_names: Annotated[dict[str, Name], IntegerNames()] = field(default_factory=dict)
    """Names of the labels in the saved model, for example {0: clean, 1: toxic}; default: the labels of the data."""
    more_data: list[LabeledSource] = field(default_factory=list)
    """Further training sources, with the same columns."""
    clean_data: list[DataSource] = field(default_factory=list)
    """Sources of clean texts (column `text`), for example from the policy's domain; they get the target label."""
    clean_validation: DataSource | None = None
    """Clean texts of the policy's domain on which false positives are counted."""
    class_weights: Literal["balanced"] | None = None
    """Weight labels in the loss so that each counts the same, however rare."""
    perturbation_rate: Fraction = 0.0
    """Fraction of the training texts to perturb: case changed, punctuation removed, misspelled or obfuscated."""
    perturbations: Annotated[list[Perturbation], Length(1)] = field(
        default_factory=lambda: list(get_args(Perturbation))
    )
    """Which of these perturbations to draw from, twice as often if listed twice; for an uncased model, case is none."""
    identity_rate: Fraction = 0.0
    """Generated sentences about groups of people per training text, as many harmless as insulting ones: the name of a
    group then says nothing about the label."""
    average_from: Fraction | None = None
    """Average the weights over the steps after this fraction of training (arXiv 1803.05407)."""
    early_stopping: PositiveInt | None = None
    """Stop after this many evaluations (each save_every steps) with no better AUROC or pair accuracy; keep the best."""
    lora: LoraSettings | None = None
    """Train an adapter, which is merged into the saved model; default: train every weight."""
    freeze_embeddings: bool = False
    """Keep the token embeddings as they are: words that the training data lack stay close to those that they have."""
    dropout: Annotated[float, Range(minimum=0, below=1)] | None = None
    """Dropout of the network while it trains; default: the checkpoint's."""
    threshold: Fraction = 0.5
    """The report calls a text toxic at or above this probability."""
    polarity_pair: PairOfTexts = field(
        default_factory=lambda: ["Thank you, that was kind of you.", "You are a stupid idiot."]
    )
    """A polite and a rude sentence; the first must score higher."""
    epochs: Epochs = 2.0
    """Passes over the data."""
    batch_size: Size = 32
    """Rows per optimizer step, across all processes."""
    learning_rate: Rate = 5e-5
    """Peak learning rate."""
    max_tokens: Size = 128
    """Longer texts are truncated at the end."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the matrix products; auto as in policy.precision."""
    save_every: PositiveInt = 200
    """Optimizer steps between checkpoints."""
    trainer_args: dict[str, Any] = field(default_factory=dict)
    """Passed on to transformers.TrainingArguments unchanged; the plan refuses what the run sets or would not read."""


def target_name(train: RewardTraining) -> str:
    """Return the name that the label to reward has in the saved model."""
    return train.label_names.get(str(train.target_label), str(train.target_label))
