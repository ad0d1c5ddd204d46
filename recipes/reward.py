"""Reward: train a toxicity classifier whose logit margin PPO will be paid by."""

# Imports of torch and transformers stand inside the functions, so that --help answers at once.
from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cli import Stage, main, say
from workbench.config import Config, DataSource, RewardTraining
from workbench.config_file import per_process
from workbench.errors import UserError, named
from workbench.runs import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

NAME = "reward"


def wanted(config: Config) -> bool:
    """Whether a reward model is to be trained; one that is given wins."""
    return config.reward is not None and config.reward.model is None


def settings(config: Config) -> RewardTraining:
    """The stage's section of the configuration."""
    assert config.reward is not None
    assert config.reward.train is not None
    return config.reward.train


def texts(key: str, source: DataSource, labels: list[str] | None) -> tuple[list[str], list[str]]:
    """Texts and label names of the source that stands at `key` of the section, with their number said."""
    from workbench.data import labelled_texts

    with named(f"reward.train.{key}"):
        found, names = labelled_texts(source, labels)
    say(f"reward.train.{key}: {source.path} {source.split}: {len(found)} texts, labels {sorted(set(names))}")
    return found, names


def label_names(config: Config, found: list[str]) -> list[str]:
    """The label set in a fixed order; raises UserError when the wanted label is not in it or is alone."""
    labels, wanted_label = sorted(set(found)), settings(config).wanted_label
    if wanted_label not in labels:
        raise UserError(f"reward.train.wanted_label: {wanted_label!r} is not a label of the data: {', '.join(labels)}")
    if len(labels) < 2:
        raise UserError(f"reward.train.data: every row is labelled {labels[0]!r}; a classifier needs two labels")
    return labels


def plan(config: Config) -> list[str]:
    """What the stage would do."""
    from reward_models.classifier import load
    from workbench.models import load_config
    from workbench.training import check_arguments

    train = settings(config)
    check_arguments("reward.train.trainer_args", train.trainer_args)
    assert config.reward is not None
    options = set(inspect.signature(load).parameters) - {"model"}
    for name in config.reward.options:
        if name not in options:
            raise UserError(
                f"reward.options.{name}: no such option of a classifier; valid: {', '.join(sorted(options))}"
            )
    found, names = texts("data", train.data, None)
    labels = label_names(config, names)
    texts("validation", train.validation, labels)
    load_config(train.model)
    steps = -(-len(found) // train.batch_size) * train.epochs
    return [
        f"{steps:g} steps of {train.batch_size} texts from {len(found)}, {train.model}, pays for {train.wanted_label}"
    ]


def run(run: Run) -> dict[str, Any]:
    """Train, judge on the validation rows, and save a transformers classifier in the run's reward folder."""
    from transformers import set_seed

    from workbench.models import load_tokenizer
    from workbench.runs import writing
    from workbench.training import forget_checkpoints, run_trainer

    config, train, folder = run.config, settings(run.config), run.stage(NAME)
    train_texts, train_labels = texts("data", train.data, None)
    labels = label_names(config, train_labels)
    validation = texts("validation", train.validation, labels)
    set_seed(config.seed)
    tokenizer = load_tokenizer(train.model)
    trainer = make_trainer(
        config, tokenizer, folder, train_texts, [labels.index(name) for name in train_labels], labels
    )
    run_trainer(trainer, folder, NAME)
    if trainer.is_world_process_zero():
        with writing(folder):
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            forget_checkpoints(folder)
    trainer.accelerator.wait_for_everyone()
    return {"inputs": {"model": train.model, "data": train.data.path}, "metrics": judge(config, folder, *validation)}


def make_trainer(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    train_texts: list[str],
    train_labels: list[int],
    labels: list[str],
) -> Trainer:
    """transformers' Trainer on a classifier whose label names are `labels`."""
    import torch
    from accelerate import PartialState
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

    from workbench.models import from_pretrained
    from workbench.training import arguments

    train, state = settings(config), PartialState()
    model = from_pretrained(
        AutoModelForSequenceClassification,
        train.model,
        dtype=torch.float32,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        pad_token_id=tokenizer.pad_token_id,
    )
    encoded = tokenizer(train_texts, truncation=True, max_length=train.max_tokens)
    columns = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": train_labels}
    options = arguments(
        folder,
        epochs=train.epochs,
        max_steps=None,
        batch_size=per_process("reward.train.batch_size", train.batch_size, state.num_processes),
        accumulation=1,
        learning_rate=train.learning_rate,
        precision=train.precision,
        checkpointing=False,
        save_every=train.save_every,
        seed=config.seed,
        on_cpu=state.device.type == "cpu",
        paged=False,
        track=config.track,
        extra={"train_sampling_strategy": "group_by_length"} | train.trainer_args,
    )
    return Trainer(
        model,
        TrainingArguments(**options),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
    )


def judge(config: Config, folder: Path, validation_texts: list[str], validation_labels: list[str]) -> dict[str, float]:
    """How well the saved classifier ranks and labels the validation texts."""
    from reward_models.classifier import load
    from workbench.statistics import auroc

    train = settings(config)
    # Loading it as PPO will do runs the polarity test.
    reward = load(str(folder), wanted_label=train.wanted_label, polarity_pair=tuple(train.polarity_pair))
    scores = reward([""] * len(validation_texts), validation_texts)
    is_wanted = [label == train.wanted_label for label in validation_labels]
    right = sum((score > 0) == truth for score, truth in zip(scores, is_wanted, strict=True))
    metrics = {
        "auroc": auroc(scores, is_wanted),
        "accuracy": right / len(scores),
        "validation_texts": len(scores),
    }
    say(f"reward: AUROC {metrics['auroc']:.4f}, accuracy {metrics['accuracy']:.4f} on {len(scores)} validation texts")
    return metrics


STAGE = Stage(NAME, wanted, plan, run)

if __name__ == "__main__":
    main([STAGE], __doc__)
