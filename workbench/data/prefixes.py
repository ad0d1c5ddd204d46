"""Prompts with a text in front: of the whole prompt, or in a chat within the user's turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench.config.sources import DataSource
from workbench.data.context import Context
from workbench.data.encoding import encode_prompts
from workbench.data.formats import Row
from workbench.data.prompts import check_vocabulary, is_chat, token_limits
from workbench.data.templates import PROMPT_MESSAGES, apply_chat_template
from workbench.data.unknown import UnknownTokens, unknown_tokens
from workbench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prefixed_rows(
    rows: Sequence[Mapping[str, Any]],
    prefix: str,
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    context: Context,
) -> list[dict[str, Any]]:
    """Return the rows of a source with `prompt` and `prompt_ids` as they are with the prefix.

    Raises UserError for turns without the user's, and for tokens that the model has no embedding for.
    """
    chat = is_chat(source, rows)
    prompts = [f"{prefix}{row['prompt']}" for row in rows]
    if chat:
        prompts = [prefixed_chat(row[PROMPT_MESSAGES], prefix, source.path, tokenizer) for row in rows]
    ids = encode_prompts(tokenizer, prompts, context, chat=chat)
    prefixed = [
        {**row, "prompt": prompt, "prompt_ids": prompt_ids}
        for row, prompt, prompt_ids in zip(rows, prompts, ids, strict=True)
    ]
    check_vocabulary(source, prefixed, context.vocabulary)
    return prefixed


def prefixed_chat(
    messages: Sequence[dict[str, Any]], prefix: str, path: str, tokenizer: PreTrainedTokenizerBase
) -> str:
    """Return the prompt of a chat whose first turn of the user begins with the prefix."""
    first = next((number for number, turn in enumerate(messages) if turn["role"] == "user"), None)
    if first is None:
        raise UserError(f"{path}: a row of messages has no turn of the user, which the prefix could stand in")
    turns = list(messages)
    turns[first] = turns[first] | {"content": f"{prefix}{turns[first]['content']}"}
    return apply_chat_template(Row(path, {}), turns, tokenizer)


def check_prefixed_lengths(
    rows: Sequence[Mapping[str, Any]],
    prefixed: Sequence[Mapping[str, Any]],
    name: str,
    max_new_tokens: int,
    context: Context,
) -> None:
    """Raise UserError where the prefix leaves a prompt of the set `name` too long for the context of the model."""
    room = token_limits(DataSource(name), max_new_tokens, context).prompt
    lengths = [len(row["prompt_ids"]) for row in prefixed]
    too_long = sum(room is not None and length > room for length in lengths)
    if room is None or not too_long:
        return
    longest = room - max(length - len(row["prompt_ids"]) for length, row in zip(lengths, rows, strict=True))
    remedy = f", or set evaluation.data.{name}.max_prompt_tokens to {longest}" if longest > 0 else ""
    raise UserError(
        f"with it, {too_long} of {len(rows)} prompts of {name} are longer than the {room} tokens that fit (up to "
        f"{max(lengths)}); shorten it{remedy}"
    )


def prefix_warnings(prefix: str, tokenizer: PreTrainedTokenizerBase, context: Context) -> list[str]:
    """Return what of the prefix the model will not read as it is written."""
    (ids,) = encode_prompts(tokenizer, [prefix], context, chat=False)
    unknown: UnknownTokens = unknown_tokens(tokenizer, [{"prompt": prefix, "prompt_ids": ids}], with_responses=False)
    lines = []
    if not prefix[-1].isspace():
        lines.append("it runs into the prompt without a space or line break between them")
    if unknown.rows:
        lines.append(str(unknown).removeprefix("; warning: ").replace("some text of 1 rows", "some of its text"))
    return lines
