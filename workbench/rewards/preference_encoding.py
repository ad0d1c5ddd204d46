"""Join prompt and completion into the text that a preference model reads, in training and in scoring."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from workbench.models.batching import encode

SEPARATOR = "\n\n"
WITH_PROMPTS_KEY = "preference_with_prompts"
"""The key of a model's config.json that says whether it was trained with prompts; absent in models from elsewhere."""


def preference_text(prompt: str, completion: str) -> str:
    """Return the text that a preference model reads; a completion without a prompt stands alone."""
    return f"{prompt}{SEPARATOR}{completion}" if prompt else completion


def encode_preferences(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str], max_tokens: int
) -> list[list[int]]:
    """Return the token ids of each prompt with its completion, 1 to `max_tokens`.

    A text that is too long loses the start of its prompt; a completion that is too long by itself is truncated at the
    end and gets no prompt.
    """
    texts = [preference_text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    with_prompts = encode(tokenizer, texts, max_tokens, keep="end")
    # This call comes second: a tokenizer is saved with the truncation side it used last.
    alone = encode(tokenizer, completions, max_tokens)
    return [
        completion_ids if len(completion_ids) == max_tokens else ids
        for completion_ids, ids in zip(alone, with_prompts, strict=True)
    ]


def trained_with_prompts(config: PretrainedConfig) -> bool | None:
    """Return whether a preference model was trained with prompts, or None if its configuration does not say."""
    value = config.to_dict().get(WITH_PROMPTS_KEY)
    return None if value is None else bool(value)
