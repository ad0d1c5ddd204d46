"""How many tokens a model reads at once, from its positions and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from workbench.data.context import Context

# Tokenizers without a limit report 1e30.
MAX_CONTEXT_LENGTH = 10_000_000
# What configurations call the number of positions: of an encoder or a decoder, and of a decoder behind an encoder.
ENCODER_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_encoder_position_embeddings")
DECODER_POSITIONS = ("max_position_embeddings", "max_decoder_position_embeddings")


def context_length(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, model: nn.Module | None = None
) -> int | None:
    """Return the maximum number of tokens that the model reads at once, or None for no limit.

    For a decoder that is prompt and response together. T5 has relative positions and no limit of its own; its
    tokenizer gives the length that it was trained on. With a `model`, its learned position tables count too: one
    with a padding row (RoBERTa) has fewer positions than its configuration says.
    """
    limits = [tokenizer.model_max_length, position_limit(config, ENCODER_POSITIONS)]
    if config.is_encoder_decoder:  # a classifier reads the text with its decoder as well
        limits.append(position_limit(config, DECODER_POSITIONS))
    for name, module in model.named_modules() if model is not None else ():
        if name.endswith((".position_embeddings", ".wpe")) and isinstance(module, nn.Embedding):
            first_position = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - first_position)
    limit = min(limits)
    return None if limit > MAX_CONTEXT_LENGTH else limit


def position_limit(config: PretrainedConfig, names: Sequence[str]) -> int:
    """Return the number of positions that the configuration gives the model, or one above every limit."""
    text_config = config.get_text_config(decoder=not config.is_encoder_decoder)
    known = text_config.to_dict()
    # T5's n_positions is the length of its training, not a limit.
    numbers = [known.get(name) for name in names if not (config.is_encoder_decoder and name == "n_positions")]
    return min((number for number in numbers if isinstance(number, int)), default=MAX_CONTEXT_LENGTH + 1)


def model_context(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Context:
    """Return how many tokens a language model reads, and whether it is a decoder."""
    encoder = min(tokenizer.model_max_length, position_limit(config, ENCODER_POSITIONS))
    decoder = position_limit(config, DECODER_POSITIONS)
    return Context(
        is_decoder_only=not config.is_encoder_decoder,
        length=None if encoder > MAX_CONTEXT_LENGTH else encoder,
        response_length=decoder if config.is_encoder_decoder and decoder <= MAX_CONTEXT_LENGTH else None,
        vocabulary=config.get_text_config(decoder=True).to_dict().get("vocab_size"),
    )
