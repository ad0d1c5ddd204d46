"""A sequence classifier as reward: the margin of the wanted label, in logits."""

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
from workbench.rewards.contract import check_polarity

WANTED_NAMES = {"clean", "neutral", "nontoxic", "nothate", "ok", "polite"}  # lower case, letters only
POLARITY_PAIR = ("Thank you, that was kind of you.", "You are a stupid idiot.")


@dataclass(frozen=True)
class ToxicityClassifier:
    """Scores the completion alone, never the prompt; a longer text than the network reads is cut at its end."""

    network: Network
    wanted: int
    """Index of the label that is paid for."""
    temperature: float
    """What log odds are divided by to make probabilities that can be believed (arXiv 1706.04599)."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """The wanted label's logit minus the logsumexp of the others', per completion."""
        return self.margins(completions).tolist()

    def toxicity(self, texts: list[str]) -> list[float]:
        """One minus the probability of the wanted label, per text."""
        return torch.sigmoid(-self.margins(texts) / self.temperature).tolist()

    def margins(self, texts: Sequence[str]) -> torch.Tensor:
        """Log odds (N,) of the wanted label, fp32 on the CPU."""
        logits = self.network.logits(encode(self.network.tokenizer, texts, self.network.max_tokens))
        others = logits.clone()
        others[:, self.wanted] = -torch.inf
        return logits[:, self.wanted] - others.logsumexp(dim=1)


def load(
    model: str,
    *,
    target_label: str | None = None,
    batch_size: int = 32,
    max_tokens: int | None = None,
    device: str | None = None,
    polarity_pair: Sequence[str] | None = POLARITY_PAIR,
) -> ToxicityClassifier:
    """The classifier at a hub id, folder or toy:NAME; UserError unless it can be trusted as a reward.

    `target_label` is one of the model's label names; the first sentence of `polarity_pair`, polite and rude,
    must score higher, and None skips that test.
    """
    wanted = _wanted(target_label, model)
    network = load_network(model, batch_size=batch_size, max_tokens=max_tokens, device=device)
    reward = ToxicityClassifier(network, wanted, _temperature(model))
    if polarity_pair is not None:
        polite, rude = polarity_pair
        check_polarity(reward, polite, rude, model)
    return reward


def _temperature(model: str) -> float:
    """The temperature that the stage `reward` stored beside the model; 1 where there is none."""
    file = Path(resolve(model)) / "calibration.json"
    return float(json.loads(file.read_text())["temperature"]) if file.is_file() else 1.0


def _wanted(target_label: str | None, model: str) -> int:
    """The index of the label to pay for."""
    names, config = load_labels(model)
    listed = ", ".join(names)
    if len(names) < 2:
        raise UserError(f"{model}: it has one label ({listed}), so it has no margin; load it as reward preference")
    if config.problem_type == "multi_label_classification":
        raise UserError(f"{model}: its labels ({listed}) can hold together, so none has a margin over the rest")
    if target_label is not None:  # YAML may make a number of a name like 0
        if str(target_label) not in names:
            raise UserError(f"{model}: target_label is {target_label!r}, but its labels are {listed}")
        return names.index(str(target_label))
    clean = [index for index, name in enumerate(names) if re.sub(r"[\W_]", "", name.lower()) in WANTED_NAMES]
    if len(clean) != 1:
        raise UserError(f"{model}: set target_label, the label that is paid for, to one of {listed}")
    return clean[0]
