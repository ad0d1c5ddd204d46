"""A sequence classifier as reward: the log odds of the label that is rewarded, or against the one that is penalized."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig

from reward_models.network import Network, load_labels, load_network
from workbench.errors import UserError, suggestion
from workbench.models.batching import encode
from workbench.models.loading import resolve
from workbench.rewards.contract import Judge
from workbench.rewards.label_names import label_name
from workbench.rewards.polarity import check_polarity_pair
from workbench.rewards.training.calibration import read_temperature

# Lower case, letters and digits only.
CLEAN_LABELS = {"clean", "nontoxic", "nothate"}
# Clean as the opposite of one other label; among friendly, neutral and rude, neutral need not be what is wanted.
CLEAN_LABELS_OF_TWO = CLEAN_LABELS | {"neutral", "ok", "polite"}
# The labels of the Jigsaw data sets: a text can have several. Checkpoints trained on them do not always say so.
JIGSAW_LABELS = {
    *("toxic", "toxicity", "severetoxic", "severetoxicity", "obscene", "threat", "insult"),
    *("identityhate", "identityattack", "sexualexplicit"),
}
POLARITY_PAIR = ("Thank you, that was kind of you.", "You are a stupid idiot.")


@dataclass(frozen=True)
class Label:
    """The label that a classifier is read by."""

    index: int
    is_penalized: bool = False
    """Whether the label is penalized rather than rewarded."""
    is_independent: bool = False
    """Whether its probability is the sigmoid of its own logit, rather than its part of a softmax."""


@dataclass(frozen=True)
class ToxicityClassifier:
    """Scores the completion alone, never the prompt; a text that is too long for the network is truncated."""

    network: Network
    label: Label
    temperature: float
    """Divides the log odds before they become probabilities, to calibrate them (arXiv 1706.04599)."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """Return the log odds of the label, per completion; those against it if it is penalized."""
        return self.margins(completions).tolist()

    def max_completion_tokens(self) -> int:
        """Return how many tokens of a completion it reads; the special tokens that it adds count as well."""
        return self.network.max_tokens

    def judge(self) -> Judge:
        """Return the toxicity judge."""
        return self.toxicity

    def toxicity(self, texts: list[str]) -> list[float]:
        """Return the probability of the penalized label, or one minus that of the target label, per text."""
        return torch.sigmoid(-self.margins(texts) / self.temperature).tolist()

    def margins(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the log odds (N,) for what is rewarded, fp32 on the CPU.

        The log odds of a label are its logit, minus the logsumexp of the others' if the labels exclude each other.
        """
        logits = self.network.logits(encode(self.network.tokenizer, texts, self.network.max_tokens))
        log_odds = logits[:, self.label.index]
        if not self.label.is_independent:
            others = logits.clone()
            others[:, self.label.index] = -torch.inf
            log_odds = log_odds - others.logsumexp(dim=1)
        return -log_odds if self.label.is_penalized else log_odds


def load(
    model: str,
    *,
    target_label: str | None = None,
    penalized_label: str | None = None,
    multi_label: bool | None = None,
    batch_size: int = 32,
    max_tokens: int | None = None,
    device: str | None = None,
    polarity_pair: Sequence[str] | None = POLARITY_PAIR,
) -> ToxicityClassifier:
    """Load the classifier at a hub id, folder or toy:NAME; raises UserError for one that is unfit to be a reward.

    `target_label`, to be rewarded, or `penalized_label`, to be penalized, is one of the model's label names, or the
    label in its training data that it stands for.
    `multi_label` says whether a text can have several labels, where the checkpoint does not. Of `polarity_pair`, a
    polite and a rude sentence, the polite one must score higher; None skips this test.
    """
    label = _label(model, target_label, penalized_label, multi_label)
    network = load_network(model, batch_size=batch_size, max_tokens=max_tokens, device=device)
    reward = ToxicityClassifier(network, label, read_temperature(Path(resolve(model))))
    option, opposite = (
        ("penalized_label", "target_label") if label.is_penalized else ("target_label", "penalized_label")
    )
    name = load_labels(model)[0][label.index]
    advice = f"{option} is {name}; if the opposite is meant, set {opposite}: {name} in its place"
    check_polarity_pair(reward, polarity_pair, model, advice)
    return reward


def _label(model: str, target: str | None, penalized: str | None, multi_label: bool | None) -> Label:
    """Return the label to read; raises UserError if the options and the model's label names do not settle it."""
    names, config = load_labels(model)
    if multi_label is not None and not isinstance(multi_label, bool):
        raise UserError(f"{model}: multi_label is {multi_label!r}; use true or false, or leave it out")
    if target is not None and penalized is not None:
        raise UserError(f"{model}: target_label is {target!r} and penalized_label {penalized!r}; set only one of them")
    is_independent = len(names) == 1 or _has_independent_labels(names, config, multi_label)
    if target is not None:
        return Label(_index("target_label", str(target), names, config, model), is_independent=is_independent)
    if penalized is not None:
        return Label(_index("penalized_label", str(penalized), names, config, model), True, is_independent)
    known = CLEAN_LABELS if len(names) > 2 else CLEAN_LABELS_OF_TWO
    clean = [index for index, name in enumerate(names) if _normalized(name) in known]
    if len(clean) != 1:
        raise UserError(
            f"{model}: set target_label, the label to reward, to one of {', '.join(names)}; or penalized_label, the "
            "label to penalize"
        )
    return Label(clean[0], is_independent=is_independent)


def _has_independent_labels(names: Sequence[str], config: PretrainedConfig, multi_label: bool | None) -> bool:
    """Return whether a text can have several labels at once: as the option says, or the checkpoint, or its names."""
    if multi_label is not None:
        return multi_label
    if config.problem_type is not None:
        return config.problem_type == "multi_label_classification"
    normalized = {_normalized(name) for name in names}
    return len(normalized & JIGSAW_LABELS) > 1 and not normalized & CLEAN_LABELS_OF_TWO


def _index(option: str, label: str, names: Sequence[str], config: PretrainedConfig, model: str) -> int:
    """Return the index of a label by its name, or by what it is in the data; raises UserError if the model lacks it."""
    if label not in names:
        label = label_name(config, label)
    if label not in names:
        hint = suggestion(label, names)
        raise UserError(f"{model}: {option} is {label!r}, but its labels are {', '.join(names)}{hint}")
    if names.count(label) > 1:
        raise UserError(f"{model}: {option} is {label!r}, but {names.count(label)} of its labels have that name")
    return names.index(label)


def _normalized(name: str) -> str:
    """Return a label's name in lower case, letters and digits only."""
    return re.sub(r"[\W_]", "", name.lower())
