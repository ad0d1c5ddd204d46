"""A sequence classifier that is checked on loading, and whose logits do not depend on the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import (
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from workbench.errors import UserError
from workbench.models.batching import DEFAULT_CONTEXT_LENGTH, padded_batches
from workbench.models.loading import from_pretrained, load_config, load_tokenizer
from workbench.models.model_checks import check_classifier_tokens
from workbench.models.positions import context_length
from workbench.models.weights import check_finite, check_report
from workbench.run.distributed import process_device


@dataclass(frozen=True)
class Network:
    """A sequence classifier in fp32 and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    max_tokens: int
    """Longer texts are truncated."""
    device: str | None = None
    """Where it computes; default: the process's own GPU, if there is one."""

    @torch.no_grad()
    def logits(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """Return the logits (N, labels), fp32 on the CPU, of rows of token ids."""
        logits = torch.zeros(len(rows), self.model.config.num_labels)
        device = process_device(self.device)
        self.model.to(device)  # a plan loads it on the CPU
        for chosen, ids, mask in padded_batches(rows, self.batch_size, self.tokenizer.pad_token_id, device):
            with torch.autocast(ids.device.type, enabled=False):  # the policy's precision does not apply to the reward
                output = self.model(input_ids=ids, attention_mask=mask)
            logits[chosen] = output.logits.float().cpu()
        return logits


def load_network(model: str, *, batch_size: int, max_tokens: int | None, device: str | None) -> Network:
    """Load the classifier at a hub id, folder or toy:NAME; raises UserError for an untrained or broken one."""
    if batch_size < 1:
        raise UserError(f"{model}: batch_size is {batch_size}; use at least 1")
    tokenizer = load_tokenizer(model)
    network, report = from_pretrained(
        AutoModelForSequenceClassification,
        model,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported with both shapes
    )
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"{model}: the checkpoint is not a trained classifier: it lacks {missing}")
    check_report(model, report)
    check_finite(model, network.named_parameters())
    check_classifier_tokens(model, tokenizer, network)
    # Decoders find the last token of a row by the padding token, which must be the tokenizer's.
    network.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    limit = context_length(network.config, tokenizer, network) or DEFAULT_CONTEXT_LENGTH
    least = tokenizer.num_special_tokens_to_add() + 1
    if max_tokens is not None and not least <= max_tokens <= limit:
        raise UserError(
            f"{model}: max_tokens is {max_tokens}, but the model accepts {least} (its special tokens and one of the "
            f"text) to {limit} tokens"
        )
    return Network(network.eval(), tokenizer, batch_size, max_tokens or limit, device)


def load_labels(model: str) -> tuple[list[str], PretrainedConfig]:
    """Return the classifier's label names, in the order of its logits, and its configuration."""
    config = load_config(model)
    return [name for _, name in sorted(dict(config.id2label or {}).items())], config
