"""How completions are generated, as the configuration says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from workbench.config.ranges import NonNegativeInt, PositiveFloat, PositiveInt, Range, Size


@dataclass
class GenerationSettings:
    """Greedy decoding, beam search, or sampling."""

    max_new_tokens: Size | None = None
    """Maximum length of a completion, in tokens; default: ppo.max_new_tokens, or 128 without PPO."""
    min_new_tokens: NonNegativeInt = 0
    """Minimum length of a completion, in tokens, that no stop token ends."""
    temperature: Annotated[float, Range(minimum=0.01, maximum=100, zero="greedy")] = 1.0
    """Sampling temperature; 0 is greedy."""
    top_k: PositiveInt | None = None
    """Sample among this many most likely tokens; default: among all."""
    top_p: Annotated[float, Range(above=0, maximum=1)] | None = None
    """Sample among the most likely tokens that together reach this probability (arXiv 1904.09751); default: all."""
    num_beams: Annotated[int, Range(minimum=1, maximum=1000)] = 1
    """Beams of a search for the most likely completion; more than one takes temperature 0."""
    repetition_penalty: PositiveFloat = 1.0
    """Above 1, tokens of the completion so far, and of a decoder's prompt, become less likely (arXiv 1909.05858)."""
    stop_strings: list[str] = field(default_factory=list)
    """Texts that end a completion, which they are no part of."""
