"""Semantic similarity by mean-pooled sentence embeddings (arXiv 1908.10084), as the MiniLM encoders are used."""

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
from workbench.models.loading import from_pretrained, load_config, load_tokenizer, window


@dataclass(frozen=True)
class Encoder:
    """A transformers encoder in fp32 and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    """Longer texts are cut at their end."""
    batch_size: int

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """Embeddings (N, D) of length 1, fp32 on the CPU: the mean of the last hidden states of each text's tokens."""
        rows = encode(self.tokenizer, texts, self.max_tokens)
        found: dict[int, Tensor] = {}
        for chosen, ids, mask in padded_batches(rows, self.batch_size, self.tokenizer.pad_token_id, self.model.device):
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()  # (B, T, D)
            weights = mask.unsqueeze(2).float()
            pooled = normalize((states * weights).sum(dim=1) / weights.sum(dim=1), dim=1).cpu()
            found |= dict(zip(chosen, pooled, strict=True))
        return torch.stack([found[row] for row in range(len(rows))])


def load_encoder(model: str, *, device: torch.device | str = "cpu", batch_size: int = 64) -> Encoder:
    """The encoder at a hub id, folder or toy:NAME, without dropout; UserError for one with weights missing."""
    tokenizer, config = load_tokenizer(model), load_config(model)
    network, report = from_pretrained(AutoModel, model, dtype=torch.float32, output_loading_info=True)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))  # which is not used
    if missing:
        raise UserError(f"{model}: the checkpoint is no trained encoder: it lacks {', '.join(missing[:3])}")
    encoder = network.get_encoder() if config.is_encoder_decoder else network
    return Encoder(
        encoder.to(device).eval(), tokenizer, window(config, tokenizer) or DEFAULT_CONTEXT_LENGTH, batch_size
    )


def similarity(
    predictions: list[str], references: list[str] | list[list[str]], encoder: Callable[[list[str]], Tensor]
) -> list[float]:
    """Cosine in [-1, 1] per row of sentence embeddings, which `encoder` makes of N texts as unit vectors (N, D).

    A row with several references counts its closest one. Raises ValueError without rows, with unequal numbers of them,
    or for a row without a reference.
    """
    metrics.require_rows(predictions)
    module = metrics.load("embedding_similarity")
    return list(module.compute(predictions=predictions, references=references, encoder=encoder)["similarity"])
