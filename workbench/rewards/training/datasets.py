"""What a reward model learns from and is judged by; every source's size is said."""

from __future__ import annotations

from workbench.config.schema import DataSource, RewardTraining
from workbench.data.labelled import clean_texts, labelled_texts, preference_pairs
from workbench.errors import UserError, error_context
from workbench.rewards.training.perturbations import vary
from workbench.run.distributed import print_once
from workbench.run.hf_trainer import check_trainer_args

Pair = tuple[str, str, str]
"""Prompt, chosen and rejected answer."""


def sources(train: RewardTraining) -> list[tuple[str, DataSource]]:
    """The sources to learn labelled texts or pairs from, each with its key below reward.train."""
    return [("data", train.data), *((f"more_data[{i}]", source) for i, source in enumerate(train.more_data))]


def texts(key: str, source: DataSource, labels: list[str] | None) -> tuple[list[str], list[str]]:
    """Texts and label names of the source that stands at `key` of the section, with their number said."""
    with error_context(f"reward.train.{key}"):
        found, names = labelled_texts(source, labels)
    print_once(f"reward.train.{key}: {source.path} {source.split}: {len(found)} texts, labels {sorted(set(names))}")
    return found, names


def clean(key: str, source: DataSource) -> list[str]:
    """The clean texts of the source that stands at `key` of the section, with their number said."""
    with error_context(f"reward.train.{key}"):
        found = clean_texts(source)
    print_once(f"reward.train.{key}: {source.path} {source.split}: {len(found)} clean texts")
    return found


def labelled(train: RewardTraining, seed: int) -> tuple[list[str], list[str]]:
    """Every text to learn from with its label, clean ones and variants included."""
    found, names = texts("data", train.data, None)
    labels = label_names(train, names)
    for key, source in sources(train)[1:]:
        more, more_names = texts(key, source, labels)
        found, names = found + more, names + more_names
    for index, source in enumerate(train.clean_data):
        more = clean(f"clean_data[{index}]", source)
        found, names = found + more, names + [str(train.target_label)] * len(more)
    return vary(found, train.variants, seed), names


def pairs(train: RewardTraining) -> tuple[list[Pair], list[Pair]]:
    """Pairs to learn from and to judge by."""

    def read(key: str, source: DataSource) -> list[Pair]:
        with error_context(f"reward.train.{key}"):
            found, dropped = preference_pairs(source)
        counts = f"{len(found)} pairs, {dropped} with chosen == rejected dropped"
        print_once(f"reward.train.{key}: {source.path} {source.split}: {counts}")
        return found

    learned = [pair for key, source in sources(train) for pair in read(key, source)]
    return learned, read("validation", train.validation)


def label_names(train: RewardTraining, found: list[str]) -> list[str]:
    """The label set in a fixed order; raises UserError when the wanted label is not in it or is alone."""
    labels, target_label = sorted(set(found)), train.target_label
    if target_label is None:
        raise UserError(
            f"reward.train.target_label: not set; a classifier needs the label to pay for: {', '.join(labels)}"
        )
    if target_label not in labels:
        raise UserError(f"reward.train.target_label: {target_label!r} is not a label of the data: {', '.join(labels)}")
    if len(labels) < 2:
        raise UserError(f"reward.train.data: every row is labelled {labels[0]!r}; a classifier needs two labels")
    return labels


def check_settings(train: RewardTraining) -> None:
    """Raises UserError for options that do not go together."""
    check_trainer_args("reward.train.trainer_args", train.trainer_args)
    for name, share in (("variants", train.variants), ("average_from", train.average_from or 0.0)):
        if not 0 <= share <= 1:
            raise UserError(f"reward.train.{name}: {share} is no share; use a number from 0 to 1")
    if train.early_stopping is not None and train.early_stopping < 1:
        raise UserError(f"reward.train.early_stopping: {train.early_stopping}; give at least 1 evaluation")
    if train.early_stopping is not None and train.average_from is not None:
        raise UserError(
            "reward.train: early_stopping keeps one checkpoint, average_from a mean of many; set one of them"
        )
    ours = {"target_label": train.target_label, "class_weights": train.class_weights, "clean_data": train.clean_data}
    if train.objective == "preference":
        for name, value in (ours | {"variants": train.variants, "clean_validation": train.clean_validation}).items():
            if value:
                raise UserError(
                    f"reward.train.{name}: belongs to objective classifier, and the objective is preference"
                )
