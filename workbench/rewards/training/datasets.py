"""The rows that a reward model learns from and is validated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from workbench.config.schema import RewardTraining
from workbench.config.sources import DataSource
from workbench.data.labeled import clean_texts, labeled_texts, preference_pairs
from workbench.errors import UserError, error_context
from workbench.rewards.preference_encoding import encode_preferences
from workbench.rewards.training.perturbations import perturb

Pair = tuple[str, str, str]
"""Prompt, chosen and rejected completion."""


@dataclass(frozen=True)
class LabeledTexts:
    """Texts and the label of each."""

    texts: list[str]
    labels: list[str]


@dataclass(frozen=True)
class ClassifierRows:
    """What a classifier learns from and is validated on."""

    label_names: list[str]
    """Every label once, in the order of the logits."""
    training: LabeledTexts
    validation: LabeledTexts
    clean: list[str]
    """Clean texts of the policy's domain, on which false positives are counted; may be empty."""
    sizes: list[str]
    """One line per source."""


@dataclass(frozen=True)
class PreferenceRows:
    """What a preference model learns from and is validated on."""

    training: list[Pair]
    validation: list[Pair]
    sizes: list[str]
    """One line per source."""

    @property
    def with_prompts(self) -> bool:
        """Whether the model learns to read a prompt before the completion."""
        return any(prompt for prompt, _, _ in self.training)


def training_sources(train: RewardTraining) -> list[tuple[str, DataSource]]:
    """Return the sources of labeled texts or pairs to learn from, each with its key below reward.train."""
    return [("data", train.data), *((f"more_data[{i}]", source) for i, source in enumerate(train.more_data))]


def load_classifier_rows(train: RewardTraining, seed: int) -> ClassifierRows:
    """Load all texts of a classifier; clean training texts get the target label, and some texts are perturbed.

    Raises UserError for a label that cannot be learned.
    """
    sizes: list[str] = []
    training = _load_labeled("data", train.data, None, sizes)
    label_names = check_labels(train, training.labels)
    texts, labels = list(training.texts), list(training.labels)
    for key, source in training_sources(train)[1:]:
        more = _load_labeled(key, source, label_names, sizes)
        texts, labels = texts + more.texts, labels + more.labels
    for index, source in enumerate(train.clean_data):
        clean = _load_clean(f"clean_data[{index}]", source, sizes)
        texts, labels = texts + clean, labels + [str(train.target_label)] * len(clean)
    return ClassifierRows(
        label_names,
        LabeledTexts(perturb(texts, train.perturbation_rate, seed), labels),
        _load_labeled("validation", train.validation, label_names, sizes),
        _load_clean("clean_validation", train.clean_validation, sizes) if train.clean_validation else [],
        sizes,
    )


def load_preference_rows(train: RewardTraining, tokenizer: PreTrainedTokenizerBase) -> PreferenceRows:
    """Load all pairs of a preference model whose completions differ for it.

    Raises UserError if no pair of a source does, or if only one of training and validation has prompts.
    """
    sizes: list[str] = []

    def load(key: str, source: DataSource) -> list[Pair]:
        return _load_pairs(key, source, tokenizer, train.max_tokens, sizes)

    training = [pair for key, source in training_sources(train) for pair in load(key, source)]
    rows = PreferenceRows(training, load("validation", train.validation), sizes)
    if any(prompt for prompt, _, _ in rows.validation) != rows.with_prompts:
        which = ("data", "validation") if rows.with_prompts else ("validation", "data")
        raise UserError(
            f"reward.train.validation: reward.train.{which[0]} has prompts and reward.train.{which[1]} has none; a "
            "preference model scores as it was trained, so give both the template's columns, or neither"
        )
    return rows


def distinct_pairs(pairs: list[Pair], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[Pair]:
    """Return the pairs whose completions still differ once prompt and completion are truncated to `max_tokens`."""
    if not pairs:
        return []
    prompts, chosen, rejected = (list(column) for column in zip(*pairs, strict=True))
    chosen_ids = encode_preferences(tokenizer, prompts, chosen, max_tokens)
    rejected_ids = encode_preferences(tokenizer, prompts, rejected, max_tokens)
    return [pair for pair, first, second in zip(pairs, chosen_ids, rejected_ids, strict=True) if first != second]


def check_labels(train: RewardTraining, labels: list[str]) -> list[str]:
    """Return the label names in a fixed order; raises UserError if the target label is missing or the only one."""
    names, target = sorted(set(labels)), train.target_label
    if target is None:
        raise UserError(
            f"reward.train.target_label: missing; a classifier needs the label to reward, one of {', '.join(names)}"
        )
    if target not in names:
        raise UserError(f"reward.train.target_label: {target!r} is not a label of the data: {', '.join(names)}")
    if len(names) < 2:
        raise UserError(f"reward.train.data: every row is labeled {names[0]!r}; a classifier needs two labels")
    return names


def require_both_classes(has_target: Sequence[bool]) -> None:
    """Raise UserError if all or none of the validation texts have the target label."""
    count = sum(has_target)
    if not 0 < count < len(has_target):
        raise UserError(
            f"reward.train.validation: {count} of its {len(has_target)} texts have the target label; the report needs "
            "texts both with and without it; add the missing kind"
        )


def _load_labeled(key: str, source: DataSource, label_names: list[str] | None, sizes: list[str]) -> LabeledTexts:
    """Load labeled texts of the source at `key`, and add its size to `sizes`."""
    with error_context(f"reward.train.{key}"):
        texts, labels = labeled_texts(source, label_names)
    sizes.append(f"{_place(key, source)}: {len(texts)} texts, labels {', '.join(sorted(set(labels)))}")
    return LabeledTexts(texts, labels)


def _load_clean(key: str, source: DataSource, sizes: list[str]) -> list[str]:
    """Load clean texts of the source at `key`, and add its size to `sizes`."""
    with error_context(f"reward.train.{key}"):
        texts = clean_texts(source)
    sizes.append(f"{_place(key, source)}: {len(texts)} clean texts")
    return texts


def _load_pairs(
    key: str, source: DataSource, tokenizer: PreTrainedTokenizerBase, max_tokens: int, sizes: list[str]
) -> list[Pair]:
    """Load pairs of the source at `key` that differ for the model, and add its size to `sizes`."""
    with error_context(f"reward.train.{key}"):
        pairs, dropped = preference_pairs(source)
        distinct = distinct_pairs(pairs, tokenizer, max_tokens)
        if not distinct:
            raise UserError(
                f"{source.path}: all {len(pairs)} pairs are equal in their first {max_tokens} tokens; raise "
                "reward.train.max_tokens, or move what chosen and rejected share into the prompt"
            )
    size = f"{_place(key, source)}: {len(distinct)} pairs, {dropped} dropped with chosen == rejected"
    if len(distinct) < len(pairs):
        size += f", {len(pairs) - len(distinct)} dropped as equal within reward.train.max_tokens {max_tokens}"
    sizes.append(size)
    return distinct


def _place(key: str, source: DataSource) -> str:
    return f"reward.train.{key}: {source.path} [{source.split}]"
