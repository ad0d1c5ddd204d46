"""A sequence classifier as reward: the margin of the target label, in logits."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from reward_models.network import Network, load_labels, load_network
from workbench.errors import UserError
from workbench.models.batching import encode
from workbench.models.loading import resolve
from workbench.rewards.contract import Judge, check_polarity

# Lower case, letters and digits only.
CLEAN_LABELS = {"clean", "nontoxic", "nothate"}
# Clean as the opposite of one other label; among friendly, neutral and rude, neutral need not be what is wanted.
CLEAN_LABELS_OF_TWO = CLEAN_LABELS | {"neutral", "ok", "polite"}
POLARITY_PAIR = ("Thank you, that was kind of you.", "You are a stupid idiot.")


@dataclass(frozen=True)
class ToxicityClassifier:
    """Scores the completion alone, never the prompt; a text that is too long for the network is truncated."""

    network: Network
    target: int
    """Index of the label that is rewarded."""
    temperature: float
    """Divides the log odds before they become probabilities, to calibrate them (arXiv 1706.04599)."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """Return the target label's logit minus the logsumexp of the others', per completion."""
        return self.margins(completions).tolist()

    def judge(self) -> Judge:
        """Return the toxicity judge."""
        return self.toxicity

    def toxicity(self, texts: list[str]) -> list[float]:
        """Return one minus the probability of the target label, per text."""
        return torch.sigmoid(-self.margins(texts) / self.temperature).tolist()

    def margins(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the log odds (N,) of the target label, fp32 on the CPU."""
        logits = self.network.logits(encode(self.network.tokenizer, texts, self.network.max_tokens))
        others = logits.clone()
        others[:, self.target] = -torch.inf
        return logits[:, self.target] - others.logsumexp(dim=1)


def load(
    model: str,
    *,
    target_label: str | None = None,
    batch_size: int = 32,
    max_tokens: int | None = None,
    device: str | None = None,
    polarity_pair: Sequence[str] | None = POLARITY_PAIR,
) -> ToxicityClassifier:
    """Load the classifier at a hub id, folder or toy:NAME; raises UserError for one that is unfit to be a reward.

    `target_label` is one of the model's label names. Of `polarity_pair`, a polite and a rude sentence, the polite one
    must score higher; None skips this test.
    """
    target = _target_index(target_label, model)
    network = load_network(model, batch_size=batch_size, max_tokens=max_tokens, device=device)
    reward = ToxicityClassifier(network, target, _temperature(model))
    if polarity_pair is not None:
        polite, rude = polarity_pair
        check_polarity(reward, polite, rude, model)
    return reward


def _temperature(model: str) -> float:
    """Return the temperature that the `reward` stage stored with the model, or 1."""
    file = Path(resolve(model)) / "calibration.json"
    return float(json.loads(file.read_text(encoding="utf-8"))["temperature"]) if file.is_file() else 1.0


def _target_index(target_label: str | None, model: str) -> int:
    """Return the index of the label to reward; raises UserError if `target_label` does not settle it."""
    names, config = load_labels(model)
    listed = ", ".join(names)
    if len(names) < 2:
        raise UserError(f"{model}: it has one label ({listed}), so it has no margin; use reward.model: preference")
    if config.problem_type == "multi_label_classification":
        raise UserError(
            f"{model}: a multi-label classifier, whose labels ({listed}) have no margin; use one whose labels are "
            "mutually exclusive"
        )
    if target_label is not None:  # YAML may read a name like 0 as a number
        if str(target_label) not in names:
            raise UserError(f"{model}: target_label is {target_label!r}, but its labels are {listed}")
        return names.index(str(target_label))
    known = CLEAN_LABELS if len(names) > 2 else CLEAN_LABELS_OF_TWO
    clean = [index for index, name in enumerate(names) if re.sub(r"[\W_]", "", name.lower()) in known]
    if len(clean) != 1:
        raise UserError(f"{model}: set target_label, the label to reward, to one of {listed}")
    return clean[0]
