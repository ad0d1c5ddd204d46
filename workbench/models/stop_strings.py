"""End responses at texts instead of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from workbench.models.policy import Batch


class StopStrings(StoppingCriteria):
    """Ends a row once its response holds one of the texts.

    Unlike the criterion of transformers it never finds a text that begins in the prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], first: int) -> None:
        """Take the position `first` of the first response token among the ids of `generate`."""
        self.tokenizer, self.texts, self.first = tokenizer, texts, first

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Return which of the rows (B,) have ended."""
        responses = self.tokenizer.batch_decode(input_ids[:, self.first :], skip_special_tokens=True)
        ended = [any(text in response for text in self.texts) for response in responses]
        return torch.tensor(ended, device=input_ids.device)


def end_at_texts(batch: Batch, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[Batch, list[bool]]:
    """Return the batch whose responses end with the token that completes the first of the texts, and which rows did."""
    mask, ended = batch.response_mask.clone(), []
    for row, row_mask in enumerate(batch.response_mask):
        length = tokens_to_text(tokenizer, batch.response_ids[row][row_mask].tolist(), texts)
        ended.append(length is not None)
        if length is not None:
            mask[row, length:] = False
    return batch._replace(response_mask=mask), ended


def tokens_to_text(tokenizer: PreTrainedTokenizerBase, ids: list[int], texts: Sequence[str]) -> int | None:
    """Return how many of the ids it takes until they hold one of the texts; None if they hold none."""

    def holds_one(length: int) -> bool:
        decoded = tokenizer.decode(ids[:length], skip_special_tokens=True)
        return any(text in decoded for text in texts)

    if not holds_one(len(ids)):
        return None
    return next(length for length in range(len(ids) + 1) if holds_one(length))


def before_texts(response: str, texts: Sequence[str]) -> str:
    """Return what stands before the first of the texts."""
    return min((response.split(text, 1)[0] for text in texts), key=len, default=response)
