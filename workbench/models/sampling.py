"""Sampling from the softmax with a seed per row, and finding where a sampled response ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from workbench.models.noise import Streams, make_streams, sample_softmax


class LogitsObserver(LogitsProcessor):
    """Shows the logits of each step to a function, and leaves them as they are."""

    def __init__(self, observe: Callable[[Tensor], None]) -> None:
        self.observe = observe

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits (B, V)."""
        self.observe(scores)
        return scores


class SeededSampling(LogitsProcessor):
    """Makes greedy decoding sample, with a seed per row.

    A row's sample depends on its logits and its seed alone, never on the other rows of the batch, and two models that
    share the seed mostly agree where their distributions do.
    """

    def __init__(self, seeds: list[int], temperature: float, filters: Sequence[LogitsProcessor] = ()) -> None:
        self.seeds, self.temperature, self.filters = seeds, temperature, filters
        self.streams: Streams | None = None
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) whose argmax is the token sampled from logits (B, V)."""
        self.streams = self.streams or make_streams(self.seeds, scores.device)
        logits = scores.float() / self.temperature
        for filter_ in self.filters:
            logits = filter_(input_ids, logits)
        # On a GPU, waiting for the device takes longer than noise that nobody needs.
        token = sample_softmax(logits, self.streams.at(self.step), prune=scores.device.type == "cpu")
        self.step += 1
        return only(token, logits)


class InverseCDFSampling(LogitsProcessor):
    """Makes greedy decoding sample, by inverting the cumulative softmax at one uniform number per row.

    `generate` itself draws one exponential number per row and vocabulary entry, which on a CPU takes longer than the
    forward pass of a small model.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) whose argmax is the token sampled from logits (B, V)."""
        probabilities = torch.softmax(scores / self.temperature, dim=-1, dtype=torch.float32)
        cumulated = probabilities.cumsum(dim=-1, dtype=torch.float64)
        drawn = torch.rand(len(scores), 1, dtype=torch.float64, device=scores.device) * cumulated[:, -1:]
        token = torch.searchsorted(cumulated, drawn, right=True).clamp(max=scores.shape[1] - 1)
        return only(token.squeeze(1), probabilities)


class RepetitionPenalty(LogitsProcessor):
    """Makes tokens that occurred less likely (arXiv 1909.05858).

    Unlike the processor of transformers it does not count padding, so that a row does not depend on its batch.
    """

    def __init__(self, penalty: float, occurred: Tensor) -> None:
        """Take the mask (B, P) of the first tokens that count; all later ones do."""
        self.penalty, self.occurred = penalty, occurred

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (B, V) after the ids (B, P + T); with beams, there are several rows for each prompt."""
        occurred = self.occurred.repeat_interleave(len(input_ids) // len(self.occurred), dim=0)
        later = torch.ones_like(input_ids[:, occurred.shape[1] :], dtype=torch.bool)
        row, column = torch.cat((occurred, later), dim=1).nonzero(as_tuple=True)
        is_repeated = torch.zeros_like(scores, dtype=torch.bool)
        is_repeated[row, input_ids[row, column]] = True
        penalized = torch.where(scores > 0, scores / self.penalty, scores * self.penalty)
        return torch.where(is_repeated, penalized, scores)


def only(token: Tensor, scores: Tensor) -> Tensor:
    """Return scores (B, V) of 0 for a token (B,) and minus infinity for every other."""
    return torch.full_like(scores, -torch.inf).scatter_(1, token.unsqueeze(1), 0.0)


def mask_after_stop(response_ids: Tensor, stop_ids: Tensor) -> Tensor:
    """Return the mask (B, T) of the tokens of `response_ids` (B, T) up to and including the first of `stop_ids` (S,).

    The mask comes from the position of the stop token and never from the pad id, because GPT-2 pads with its
    stop token (https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo).
    """
    is_stop = torch.isin(response_ids, stop_ids)
    stops_before = is_stop.cumsum(dim=1) - is_stop.long()
    return stops_before == 0


def is_truncated(response_ids: Tensor, response_mask: Tensor, stop_ids: Tensor) -> Tensor:
    """Return which responses (B, T) were truncated at the token limit: (B,), True where no stop token was sampled."""
    return ~(torch.isin(response_ids, stop_ids) & response_mask).any(dim=1)
