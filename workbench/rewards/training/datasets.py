"""The rows that a reward model learns from and is validated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from workbench.config.reward_training import RewardTraining, target_name
from workbench.config.sources import DataSource
from workbench.data.labeled import clean_texts, labeled_texts, preference_pairs
from workbench.errors import UserError, error_context
from workbench.rewards.preference_encoding import encode_preferences
from workbench.rewards.training.identities import identity_texts
from workbench.rewards.training.perturbations import perturb

Pair = tuple[str, str, str]
"""Prompt, chosen and rejected completion."""


@dataclass(frozen=True)
class LabeledTexts:
    """Texts and the name of the label of each."""

    texts: list[str]
    labels: list[str]


@dataclass(frozen=True)
class ClassifierRows:
    """What a classifier learns from and is validated on."""

    labels: dict[str, str]
    """Every label of the data and its name in the model, in the order of the logits."""
    target: str
    """The name of the label to reward."""
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
    with error_context("reward.train.data"):
        texts, in_data = labeled_texts(train.data, None)
    sizes.append(_labeled_size("data", train.data, in_data))
    names = check_labels(train, in_data)
    target, labels = target_name(train), [names[label] for label in in_data]
    for index, labeled in enumerate(train.more_data):
        more = _load_labeled(f"more_data[{index}]", labeled, names, sizes, labeled.label)
        texts, labels = texts + more.texts, labels + more.labels
    for index, source in enumerate(train.clean_data):
        clean = _load_clean(f"clean_data[{index}]", source, sizes)
        texts, labels = texts + clean, labels + [target] * len(clean)
    about_groups = identity_rows(train, names, len(texts), seed)
    if about_groups.texts:
        sizes.append(f"reward.train.identity_rate: {len(about_groups.texts)} generated texts about groups of people")
    texts, labels = texts + about_groups.texts, labels + about_groups.labels
    return ClassifierRows(
        names,
        target,
        LabeledTexts(perturb(texts, train.perturbation_rate, seed, train.perturbations), labels),
        _load_labeled("validation", train.validation, names, sizes),
        _load_clean("clean_validation", train.clean_validation, sizes) if train.clean_validation else [],
        sizes,
    )


def identity_rows(train: RewardTraining, names: dict[str, str], texts: int, seed: int) -> LabeledTexts:
    """Return sentences about groups of people for so many training texts, harmless ones with the target label.

    Raises UserError if more than one label is left for the insulting ones.
    """
    if not train.identity_rate:
        return LabeledTexts([], [])
    target = target_name(train)
    insulting = [name for name in names.values() if name != target]
    if len(insulting) > 1:
        raise UserError(
            f"reward.train.identity_rate: it needs two labels, and the data have {len(names)}: {', '.join(names)}; "
            "leave it out"
        )
    rows = identity_texts(round(train.identity_rate * texts), seed)
    return LabeledTexts(
        [text for text, _ in rows], [target if is_harmless else insulting[0] for _, is_harmless in rows]
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


def check_labels(train: RewardTraining, in_data: list[str]) -> dict[str, str]:
    """Return every label of the data and its name in the model, in a fixed order.

    Raises UserError if the target label is missing or the only one, or if `label_names` does not fit the data.
    """
    labels, target, names = sorted(set(in_data)), train.target_label, train.label_names
    listed = ", ".join(labels)
    if names:
        for label in [*names, *labels]:
            if label not in labels:
                raise UserError(f"reward.train.label_names: {label!r} is not a label of the data: {listed}; remove it")
            if label not in names:
                raise UserError(f"reward.train.label_names: no name for {label!r}, a label of the data; give it one")
    if target is None:
        raise UserError(f"reward.train.target_label: missing; a classifier needs the label to reward, one of {listed}")
    if target not in [*labels, *names.values()]:
        named = f", or by name: {', '.join(names[label] for label in labels)}" if names else ""
        raise UserError(f"reward.train.target_label: {target!r} is not a label of the data: {listed}{named}")
    if len(labels) < 2:
        raise UserError(f"reward.train.data: every row is labeled {labels[0]!r}; a classifier needs two labels")
    return {label: names.get(label, label) for label in labels}


def require_both_classes(has_target: Sequence[bool]) -> None:
    """Raise UserError if all or none of the validation texts have the target label."""
    count = sum(has_target)
    if not 0 < count < len(has_target):
        raise UserError(
            f"reward.train.validation: {count} of its {len(has_target)} texts have the target label; the report needs "
            "texts both with and without it; add the missing kind"
        )


def _load_labeled(
    key: str, source: DataSource, names: dict[str, str], sizes: list[str], label: str | None = None
) -> LabeledTexts:
    """Load texts of the source at `key` with their labels, or all with `label`, and add its size to `sizes`.

    A label is one of the data or its name. Raises UserError for any other.
    """
    known = names | {name: name for name in names.values()}
    if label is not None and label not in known:
        raise UserError(f"reward.train.{key}.label: {label!r} is not one of {', '.join(known)}")
    with error_context(f"reward.train.{key}"):
        texts, labels = (clean_texts(source), None) if label is not None else labeled_texts(source, known)
    labels = [str(label)] * len(texts) if labels is None else labels
    sizes.append(_labeled_size(key, source, labels))
    return LabeledTexts(texts, [known[label] for label in labels])


def _labeled_size(key: str, source: DataSource, labels: list[str]) -> str:
    return f"{_place(key, source)}: {len(labels)} texts, labels {', '.join(sorted(set(labels)))}"


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
