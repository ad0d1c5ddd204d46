"""What a language model reads at once: how many tokens, and whether a response continues its prompt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Context:
    """How many tokens a language model reads; None means no limit."""

    is_decoder_only: bool
    """Whether a response continues the prompt's own sequence."""
    length: int | None = None
    """The most tokens of a prompt, for a decoder of prompt and response together."""
    response_length: int | None = None
    """The most tokens of an encoder-decoder's response."""
    vocabulary: int | None = None
    """The number of tokens that have an embedding."""
