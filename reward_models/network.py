"""A sequence classifier that can be trusted: loaded with checks, and right whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from workbench.errors import UserError
from workbench.models.batching import DEFAULT_CONTEXT_LENGTH, padded_batches
from workbench.models.loading import from_pretrained


@dataclass(frozen=True)
class Network:
    """A sequence classifier in fp32 and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    max_tokens: int
    """Longer texts are cut."""

    @torch.no_grad()
    def logits(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """Logits (N, labels), fp32 on the CPU, of rows of token ids."""
        logits = torch.zeros(len(rows), self.model.config.num_labels)
        for chosen, ids, mask in padded_batches(rows, self.batch_size, self.tokenizer.pad_token_id, self.model.device):
            with torch.autocast(ids.device.type, enabled=False):  # the policy's precision is not ours
                output = self.model(input_ids=ids, attention_mask=mask)
            logits[chosen] = output.logits.float().cpu()
        return logits


def load_network(model: str, *, batch_size: int, max_tokens: int | None, device: str | None) -> Network:
    """The classifier at a hub id, folder or toy:NAME; UserError if it is untrained, broken or cannot pad."""
    if batch_size < 1:
        raise UserError(f"{model}: batch_size is {batch_size}; use at least 1")
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
    return Network(network, tokenizer, batch_size, max_tokens or window)


def load_labels(model: str) -> tuple[list[str], PretrainedConfig]:
    """The classifier's label names, in the order of its logits, and its configuration."""
    config = from_pretrained(AutoConfig, model)
    return [name for _, name in sorted(dict(config.id2label or {}).items())], config


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
    return limit if limit < 1_000_000 else DEFAULT_CONTEXT_LENGTH
