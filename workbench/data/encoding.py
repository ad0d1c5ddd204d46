"""Token ids of prompts, and of responses as they read after their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workbench.data.context import Context

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
    """Return the token ids of each text; overlong ones are dropped later, so the tokenizer should not warn."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    return ids


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: Context, *, chat: bool
) -> list[list[int]]:
    """Return the token ids of each prompt; a decoder's ends where its response begins, without what closes a text.

    A chat template adds its own special tokens.
    """
    ids = encode(tokenizer, texts, add_special_tokens=not chat)
    closing = 0 if chat or not context.is_decoder_only else closing_tokens(tokenizer)
    return [row[: len(row) - closing] for row in ids]


def closing_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens, such as EOS, the tokenizer adds at the end of a text."""
    (plain,) = encode(tokenizer, ["a"], add_special_tokens=False)
    (whole,) = encode(tokenizer, ["a"], add_special_tokens=True)
    starts = [first for first in range(len(whole)) if whole[first : first + len(plain)] == plain]
    return len(whole) - starts[0] - len(plain) if starts else 0


def encode_after_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    prompt_ids: Sequence[list[int]],
    responses: Sequence[str],
    context: Context,
    *,
    chat: bool,
) -> tuple[list[list[int]], set[int]]:
    """Return the token ids of each response, ending in one EOS, and the rows where they are not those of the text.

    For a decoder, a prompt's ids and its response's ids are the ids of the text together wherever those begin with the
    prompt's; where a token crosses the boundary, the response is tokenized without its prompt. An encoder-decoder's
    response is always a text of its own.
    """
    apart, merged = _encode_apart(tokenizer, responses, context), set()
    if context.is_decoder_only:
        texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        together = encode_prompts(tokenizer, texts, context, chat=chat)
        for index, (before, whole) in enumerate(zip(prompt_ids, together, strict=True)):
            if whole[: len(before)] == before:
                apart[index] = whole[len(before) :]
            else:
                merged.add(index)
    eos = tokenizer.eos_token_id
    return [ids if ids[-1:] == [eos] else [*ids, eos] for ids in apart], merged


def _encode_apart(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: Context) -> list[list[int]]:
    """Return the ids of each text without special tokens, for a decoder as they are within a longer text.

    Some tokenizers put a space in front of every text, which a response within a text does not have.
    """
    if context.is_decoder_only:
        (anchor,) = encode(tokenizer, ["\n"], add_special_tokens=False)
        anchored = encode(tokenizer, [f"\n{text}" for text in texts], add_special_tokens=False)
        if anchor and all(ids[: len(anchor)] == anchor for ids in anchored):
            return [ids[len(anchor) :] for ids in anchored]
    return encode(tokenizer, texts, add_special_tokens=False)
