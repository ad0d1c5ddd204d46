"""Sampling whose randomness belongs to the row, so that two models can be compared on the same random numbers."""

import torch
from torch import Tensor
from transformers import LogitsProcessor


class SeededSampling(LogitsProcessor):
    """Turns greedy decoding into sampling: adds each row's own Gumbel noise to its logits.

    The largest of logits plus Gumbel noise is an exact sample of the softmax (arXiv 1611.01144), and a row's
    noise depends on its seed alone, never on the rows beside it.
    """

    def __init__(self, seeds: list[int], temperature: float) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Perturbed scores (B, V) for logits (B, V)."""
        exponential = torch.stack(
            [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        )
        return scores.float() / self.temperature - exponential.log().to(scores.device)
