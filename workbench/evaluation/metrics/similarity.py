"""Semantic similarity by mean-pooled sentence embeddings (arXiv 1908.10084), as the MiniLM encoders expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from workbench.errors import UserError
from workbench.evaluation import metrics
from workbench.models.batching import DEFAULT_CONTEXT_LENGTH, encode, padded_batches
from workbench.models.loading import from_pretrained, load_config, load_tokenizer
from workbench.models.model_checks import check_classifier_tokens
from workbench.models.positions import context_length
from workbench.models.weights import check_finite, check_report


@dataclass(frozen=True)
class Encoder:
    """A transformers encoder in fp32 and its tokenizer; called with N texts, it embeds them."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    """Longer texts are truncated at the end."""
    batch_size: int

    def to(self, device: torch.device | str) -> Encoder:
        """Move the model to a device and return the encoder."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """Return embeddings (N, D) of length 1, fp32 on the CPU: the mean over each text's last hidden states."""
        rows = encode(self.tokenizer, texts, self.max_tokens)
        embeddings: dict[int, Tensor] = {}
        for chosen, ids, mask in padded_batches(rows, self.batch_size, self.tokenizer.pad_token_id, self.model.device):
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()  # (B, T, D)
            weights = mask.unsqueeze(2).float()
            pooled = normalize((states * weights).sum(dim=1) / weights.sum(dim=1), dim=1).cpu()
            embeddings |= dict(zip(chosen, pooled, strict=True))
        return torch.stack([embeddings[row] for row in range(len(rows))])


def load_encoder(model: str, *, batch_size: int = 64) -> Encoder:
    """Load the encoder at a hub id, folder or toy:NAME, without dropout; raise UserError if weights are missing."""
    tokenizer, config = load_tokenizer(model), load_config(model)
    network, report = from_pretrained(AutoModel, model, dtype=torch.float32, output_loading_info=True)
    missing = sorted(
        name for name in report["missing_keys"] if not name.startswith("pooler.")
    )  # the pooler is not used
    if missing:
        raise UserError(f"{model}: not a trained encoder: its checkpoint lacks {', '.join(missing[:3])}")
    check_report(model, report, lambda name: name.startswith("pooler."))
    check_finite(model, network.named_parameters())
    check_classifier_tokens(model, tokenizer, network)
    encoder = network.get_encoder() if config.is_encoder_decoder else network
    max_tokens = context_length(config, tokenizer, network) or DEFAULT_CONTEXT_LENGTH
    return Encoder(encoder.eval(), tokenizer, max_tokens, batch_size)


def similarity(
    predictions: list[str], references: list[str] | list[list[str]], encoder: Callable[[list[str]], Tensor]
) -> list[float]:
    """Return the cosine in [-1, 1] between each row's embeddings; `encoder` turns N texts into unit vectors (N, D).

    For a row with several references, the closest one counts. Raise ValueError if there are no rows, their numbers
    differ, or a row has no reference.
    """
    metrics.require_rows(predictions)
    module = metrics.load("embedding_similarity")
    return list(module.compute(predictions=predictions, references=references, encoder=encoder)["similarity"])
