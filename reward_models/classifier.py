"""A sequence classifier as reward: the margin of the wanted label, in logits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from workbench.errors import UserError
from workbench.models import from_pretrained
from workbench.rewards import check_polarity

WANTED_NAMES = {"clean", "neutral", "nontoxic", "nothate", "ok", "polite"}  # lower case, letters only
POLARITY_PAIR = ("Thank you, that was kind of you.", "You are a stupid idiot.")
UNSTATED_WINDOW = 512  # tokens, where neither tokenizer nor model names a limit


@dataclass(frozen=True)
class ToxicityClassifier:
    """Scores the completion alone, never the prompt, in fp32, whatever other texts are in the batch."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    wanted: int
    """Index of the label that is paid for."""
    batch_size: int
    max_tokens: int
    """Longer texts are cut at the end."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """The wanted label's logit minus the logsumexp of the others', per completion."""
        return self.margins(completions).tolist()

    def toxicity(self, texts: list[str]) -> list[float]:
        """One minus the softmax probability of the wanted label, per text."""
        return torch.sigmoid(-self.margins(texts)).tolist()

    def margins(self, texts: Sequence[str]) -> torch.Tensor:
        """Log odds (N,) of the wanted label, fp32 on the CPU."""
        margins = torch.zeros(len(texts))
        rows = self._encode(texts)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # little padding
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            logits = self._logits([rows[row] for row in chosen])
            others = logits.clone()
            others[:, self.wanted] = -torch.inf
            margins[chosen] = logits[:, self.wanted] - others.logsumexp(dim=1)
        return margins

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, at least one."""
        if not texts:
            return []
        # Split: a text that spells out an end of text must not become the token that GPT-2 takes for padding
        # or that T5 counts, so that the text next to it would change or break the batch.
        limits = {"truncation": True, "max_length": self.max_tokens}
        encoded = self.tokenizer(list(texts), split_special_tokens=True, **limits)
        return [ids or [self.tokenizer.pad_token_id] for ids in encoded["input_ids"]]

    @torch.no_grad()
    def _logits(self, rows: list[list[int]]) -> torch.Tensor:
        """Logits (B, labels), fp32 on the CPU, of rows of token ids."""
        device = self.model.device
        tensors = [torch.tensor(row) for row in rows]
        ids = pad_sequence(tensors, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
        with torch.autocast(device.type, enabled=False):  # the policy's precision is not ours
            return self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float().cpu()


def load(
    model: str,
    *,
    wanted_label: str | None = None,
    batch_size: int = 32,
    max_tokens: int | None = None,
    device: str | None = None,
    polarity_pair: Sequence[str] | None = POLARITY_PAIR,
) -> ToxicityClassifier:
    """The classifier at a hub id, folder or embedded:NAME; UserError unless it can be trusted as a reward.

    `wanted_label` is one of the model's label names; the first sentence of `polarity_pair`, polite and rude,
    must score higher, and None skips that test.
    """
    config = from_pretrained(AutoConfig, model)
    wanted = _wanted(config, wanted_label, model)
    tokenizer = from_pretrained(AutoTokenizer, model)
    network, report = from_pretrained(
        AutoModelForSequenceClassification, model, dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"{model}: the checkpoint is no trained classifier: it lacks {missing}")
    if not all(torch.isfinite(weight).all() for weight in network.parameters()):
        raise UserError(f"{model}: the weights contain NaN or infinity; train the classifier again")
    _share_padding(tokenizer, network, model)
    window = _window(tokenizer, network)
    if max_tokens is not None and not 0 < max_tokens <= window:
        raise UserError(f"{model}: max_tokens is {max_tokens}, but the model reads 1 to {window} tokens")
    network.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    reward = ToxicityClassifier(network, tokenizer, wanted, batch_size, max_tokens or window)
    if polarity_pair is not None:
        polite, rude = polarity_pair
        check_polarity(reward, polite, rude, model)
    return reward


def _wanted(config: PretrainedConfig, wanted_label: str | None, model: str) -> int:
    """The index of the label to pay for."""
    names = [name for _, name in sorted(dict(config.id2label or {}).items())]
    listed = ", ".join(names)
    if len(names) < 2:
        raise UserError(f"{model}: it has one label ({listed}); a margin needs at least two")
    if config.problem_type == "multi_label_classification":
        raise UserError(f"{model}: its labels ({listed}) can hold together, so none has a margin over the rest")
    if wanted_label is not None:  # YAML may make a number of a name like 0
        if str(wanted_label) not in names:
            raise UserError(f"{model}: wanted_label is {wanted_label!r}, but its labels are {listed}")
        return names.index(str(wanted_label))
    clean = [index for index, name in enumerate(names) if re.sub(r"[\W_]", "", name.lower()) in WANTED_NAMES]
    if len(clean) != 1:
        raise UserError(f"{model}: set wanted_label, the label that is paid for, to one of {listed}")
    return clean[0]


def _share_padding(tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel, model: str) -> None:
    """Give tokenizer and model one padding token: decoders find the last token of a row by it."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"{model}: the tokenizer has neither pad_token nor eos_token; set one")
        tokenizer.pad_token = tokenizer.eos_token
    network.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _window(tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel) -> int:
    """The most tokens that the model reads."""
    limits = [tokenizer.model_max_length]
    # Learned positions end; a table with a padding row (RoBERTa) is used from the row after it only.
    for name, module in network.named_modules():
        if name.endswith((".position_embeddings", ".wpe")) and isinstance(module, torch.nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - unused)
    limit = min(limits)
    return limit if limit < 1_000_000 else UNSTATED_WINDOW
