"""Texts as token ids for models that read them whole, and batches of them with little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

DEFAULT_CONTEXT_LENGTH = 512  # tokens, where neither tokenizer nor model names a limit


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int, keep: str = "start"
) -> list[list[int]]:
    """Token ids of each text, 1 to `max_tokens`; `keep` says which end of a longer text stays, start or end."""
    if not texts:
        return []
    tokenizer.truncation_side = "right" if keep == "start" else "left"
    # Split: a text that spells out an end of text must not become the token that GPT-2 takes for padding
    # or that T5 counts, so that the text next to it would change or break the batch.
    encoded = tokenizer(list(texts), split_special_tokens=True, truncation=True, max_length=max_tokens)
    return [ids or [tokenizer.pad_token_id] for ids in encoded["input_ids"]]


def padded_batches(
    rows: Sequence[list[int]], batch_size: int, pad_id: int, device: torch.device
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Which rows of token ids are in each batch, with ids and mask (B, T): rows of like length, the shortest first."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        tensors = [torch.tensor(rows[row]) for row in chosen]
        ids = pad_sequence(tensors, batch_first=True, padding_value=pad_id)
        mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
        yield chosen, ids.to(device), mask.to(device)
