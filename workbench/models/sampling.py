"""Sampling from the softmax with a seed per row, and finding where a sampled response ends."""

import torch
from torch import Tensor
from transformers import LogitsProcessor


class GumbelSampling(LogitsProcessor):
    """Makes greedy decoding sample, by adding Gumbel noise to the logits, with a seed per row.

    The argmax of logits plus Gumbel noise is an exact sample of the softmax (arXiv 1611.01144), and a row's noise
    depends only on its seed, never on the other rows of the batch.
    """

    def __init__(self, seeds: list[int], temperature: float) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return perturbed scores (B, V) for logits (B, V)."""
        exponential = torch.stack(
            [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        )
        return scores.float() / self.temperature - exponential.log().to(scores.device)


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
        return torch.full_like(probabilities, -torch.inf).scatter_(1, token, 0.0)


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
