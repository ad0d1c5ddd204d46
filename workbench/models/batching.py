"""Tokenize texts for models that score whole texts, and batch them with little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

DEFAULT_CONTEXT_LENGTH = 512  # tokens, if neither the tokenizer nor the model has a limit


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int, keep: str = "start"
) -> list[list[int]]:
    """Return 1 to `max_tokens` token ids of each text; `keep` says which end of a longer text stays: start or end."""
    if not texts:
        return []
    tokenizer.truncation_side = "right" if keep == "start" else "left"
    # A text that spells out "</s>" must not become the special token: GPT-2 would take it for padding and T5 counts
    # such tokens, so one text could change the score of the others or break the batch.
    encoded = tokenizer(list(texts), split_special_tokens=True, truncation=True, max_length=max_tokens)
    return [ids or [tokenizer.pad_token_id] for ids in encoded["input_ids"]]


def padded_batches(
    rows: Sequence[list[int]], batch_size: int, pad_id: int, device: torch.device
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield row numbers, ids and mask (B, T) of each batch; rows of similar length together, shortest first."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        tensors = [torch.tensor(rows[row]) for row in indices]
        ids = pad_sequence(tensors, batch_first=True, padding_value=pad_id)
        mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
        yield indices, ids.to(device), mask.to(device)
