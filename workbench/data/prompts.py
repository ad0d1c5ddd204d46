"""Prompts and responses as the policy reads them: texts, token ids, and a report of the rows that do not fit."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from workbench.config.sources import DataSource
from workbench.data.context import Context
from workbench.data.encoding import encode_after_prompts, encode_prompts
from workbench.data.formats import Row
from workbench.data.sources import stream_rows
from workbench.data.templates import (
    PROMPT_MESSAGES,
    chat_messages,
    identity,
    normalize,
    prepend_space,
    prompt_and_response,
    template_text,
)
from workbench.data.unknown import UnknownTokens, check_known, unknown_tokens
from workbench.errors import UserError, error_context, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class DataReport:
    """How many rows of one source were kept, how many were dropped and why."""

    path: str
    split: str
    rows_read: int
    rows_kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows dropped, by reason: prompt_too_long, response_too_long."""
    duplicate_prompts: int = 0
    """Kept rows that repeat the prompt of an earlier one, up to case and whitespace."""
    prompt_tokens_max: int = 0
    prompt_tokens_median: float = 0.0
    unknown: UnknownTokens | None = None
    """What the tokenizer has no token for, in the kept rows."""
    merged_responses: int = 0
    """Kept responses whose tokens are not those of the text together with the prompt."""

    def __str__(self) -> str:
        reasons = {reason.replace("_", " "): count for reason, count in self.dropped.items() if count}
        dropped = "".join(f", {count} dropped ({reason})" for reason, count in reasons.items())
        merged = ""
        if self.merged_responses:
            merged = f"; {self.merged_responses} responses tokenized apart: a token would cross the end of the prompt"
        return (
            f"{self.path} [{self.split}]: {self.rows_kept} of {self.rows_read} rows kept{dropped}, "
            f"{self.duplicate_prompts} duplicate prompts, prompt tokens median {self.prompt_tokens_median:g} "
            f"max {self.prompt_tokens_max}{merged}{self.unknown or ''}"
        )


@dataclass(frozen=True)
class TokenLimits:
    """The most tokens that a row may have; None means no limit."""

    prompt: int | None
    response: int | None
    total: int | None
    """Prompt and response together, for a decoder, which reads both."""

    def violation(self, prompt_ids: list[int], response_ids: list[int]) -> str | None:
        """Return the reason to drop a row, or None if it fits; a prompt alone has no response ids."""
        if self.prompt is not None and len(prompt_ids) > self.prompt:
            return "prompt_too_long"
        if self.response is not None and len(response_ids) > self.response:
            return "response_too_long"
        if response_ids and self.total is not None and len(prompt_ids) + len(response_ids) > self.total:
            return "response_too_long"
        return None


def load_prompts(
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    context: Context,
    with_responses: bool = False,
) -> tuple[list[dict[str, Any]], DataReport]:
    """Return the source's rows with `prompt` and `prompt_ids`, and a report of what was dropped.

    `with_responses` adds `response` and `response_ids`, which end in one EOS. A row that does not fit what the model
    reads is dropped and counted, never truncated. Raises UserError for a bad row or setting, and for texts whose tokens
    the model does not know.
    """
    rows, rows_read = stream_rows(source), 0
    limits = token_limits(source, max_new_tokens, context)
    fitting: list[dict[str, Any]] = []
    merged: list[bool] = []
    dropped = {"prompt_too_long": 0, "response_too_long": 0}
    lengths: list[tuple[int, int]] = []
    # With a limit, rows are tokenized and remembered only until it is reached; the rest is read and counted.
    while chunk := list(islice(rows, source.limit)):
        rows_read += len(chunk)
        if source.limit is not None and len(fitting) >= source.limit:
            continue
        for values, is_merged in tokenized_rows(chunk, source, tokenizer, context, with_responses):
            prompt_ids, response_ids = values["prompt_ids"], values["response_ids"] if with_responses else []
            lengths.append((len(prompt_ids), len(response_ids)))
            reason = limits.violation(prompt_ids, response_ids)
            if reason is None:
                fitting.append(values)
                merged.append(is_merged)
            else:
                dropped[reason] += 1
    if not fitting:
        raise nothing_fits(source, rows_read, lengths, limits, with_responses)
    fitting = fitting[: source.limit]
    check_vocabulary(source, fitting, context.vocabulary)
    unknown = unknown_tokens(tokenizer, fitting, with_responses=with_responses)
    check_known(source.path, unknown)
    counts = report(source, rows_read, fitting, dropped)
    return fitting, replace(counts, unknown=unknown, merged_responses=sum(merged[: source.limit]))


def load_configured_prompts(
    key: str,
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    context: Context,
    with_responses: bool = False,
) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of the source that is configured at `key`, and their report as a line of a plan."""
    with error_context(key):
        rows, rows_report = load_prompts(
            source,
            tokenizer,
            max_new_tokens=max_new_tokens,
            context=context,
            with_responses=with_responses,
        )
    return rows, f"{key}: {rows_report}"


def encode_responses(
    prompts: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    context: Context,
) -> list[list[int]]:
    """Return the token ids of a response to each of this source's prompts, each ending in exactly one EOS.

    A prompt loses the space at the end of its template; for a decoder, the response begins with it instead.
    """
    chat = is_chat(source, prompts)
    if context.is_decoder_only and not chat and template_text(source.template).endswith(" "):
        texts = [prepend_space(text) for text in texts]
    before, before_ids = [row["prompt"] for row in prompts], [row["prompt_ids"] for row in prompts]
    return encode_after_prompts(tokenizer, before, before_ids, texts, context, chat=chat)[0]


def is_chat(source: DataSource, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the tokenizer's chat template makes the prompts of these rows."""
    return source.chat or bool(rows and "messages" in rows[0])


def row_identities(rows: list[dict[str, Any]], source: DataSource) -> list[str]:
    """Return the text that identifies each row, regardless of case, whitespace and template."""
    return [identity(Row(source.path, row), source) for row in rows]


def tokenized_rows(
    rows: list[Row],
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    context: Context,
    with_responses: bool,
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield each row's values with its prompt, and optionally with its response, as text and as ids.

    The second value is whether the response's tokens are not those of the text together with the prompt.
    """
    chat = is_chat(source, [row.values for row in rows])
    pairs = [
        prompt_and_response(
            row,
            source,
            tokenizer,
            chat=chat,
            with_response=with_responses,
            is_decoder_only=context.is_decoder_only,
        )
        for row in rows
    ]
    prompts = [prompt for prompt, _ in pairs]
    prompt_ids = encode_prompts(tokenizer, prompts, context, chat=chat)
    for row, prompt, ids in zip(rows, prompts, prompt_ids, strict=True):
        if not ids:
            raise UserError(f"{row.location}: the prompt {shorten(prompt)} has no tokens")
    responses: list[list[int]] = []
    merged: set[int] = set()
    if with_responses:
        texts = [response for _, response in pairs]
        responses, merged = encode_after_prompts(tokenizer, prompts, prompt_ids, texts, context, chat=chat)
    for index, (row, (prompt, response), ids) in enumerate(zip(rows, pairs, prompt_ids, strict=True)):
        values = {**row.values, "prompt": prompt, "prompt_ids": ids}
        if chat:
            values[PROMPT_MESSAGES] = chat_messages(row, source)
        if with_responses:
            values |= {"response": response, "response_ids": responses[index]}
        yield values, index in merged


def check_vocabulary(source: DataSource, rows: list[dict[str, Any]], vocabulary: int | None) -> None:
    """Raise UserError for rows with a token that the model has no embedding for."""
    if vocabulary is None:
        return
    highest = [max([*row["prompt_ids"], *row.get("response_ids", [])]) for row in rows]
    outside = [token for token in highest if token >= vocabulary]
    if outside:
        raise UserError(
            f"{source.path}: {len(outside)} of {len(rows)} rows contain token {max(outside)}, but the model has "
            f"embeddings for {vocabulary} tokens; the tokenizer belongs to another model, or got tokens that the model "
            "did not: resize_token_embeddings(len(tokenizer)), train, and save the model again"
        )


def token_limits(source: DataSource, max_new_tokens: int, context: Context) -> TokenLimits:
    """Return the limits of a row; raises UserError if the source's own limit leaves no room for a response."""
    limit, length = source.max_prompt_tokens, context.length
    longest_response = source.max_response_tokens
    if context.response_length is not None:
        if max_new_tokens > context.response_length:
            raise UserError(
                f"max_new_tokens: {max_new_tokens} is above {context.response_length}, the most tokens that the "
                "model's decoder reads; lower ppo.max_new_tokens, or for the evaluation evaluation.max_new_tokens"
            )
        longest_response = min(longest_response or context.response_length, context.response_length)
    if length is None:
        return TokenLimits(limit, longest_response, None)
    room = length - max_new_tokens if context.is_decoder_only else length
    if room < 1:
        raise UserError(
            f"max_new_tokens: {max_new_tokens} leaves no room for a prompt in the context length of "
            f"{length} tokens; lower ppo.max_new_tokens, or for the evaluation evaluation.max_new_tokens"
        )
    if limit is not None and limit > room:
        raise UserError(
            f"{source.path}: max_prompt_tokens: {limit} is above {room}, the most that the model's context length of "
            f"{length} tokens allows" + (f" with max_new_tokens {max_new_tokens}" if context.is_decoder_only else "")
        )
    total = length if context.is_decoder_only else None
    return TokenLimits(room if limit is None else limit, longest_response, total)


def nothing_fits(
    source: DataSource, rows: int, lengths: list[tuple[int, int]], limits: TokenLimits, with_responses: bool
) -> UserError:
    """Return the error for a source whose rows were all dropped, with their lengths and the limits."""
    prompts, responses = zip(*lengths, strict=True)
    description = f"prompts have {min(prompts)} to {max(prompts)} tokens (at most {limits.prompt} fit)"
    if with_responses:
        most = limits.response or limits.total
        description += f", responses {min(responses)} to {max(responses)}" + (f" (at most {most})" if most else "")
    return UserError(f"{source.path}: all {rows} rows dropped: {description}; raise the limits or shorten the texts")


def report(source: DataSource, rows_read: int, fitting: list[dict[str, Any]], dropped: dict[str, int]) -> DataReport:
    """Return the counts of one source."""
    lengths = [len(values["prompt_ids"]) for values in fitting]
    return DataReport(
        path=source.path,
        split=source.split,
        rows_read=rows_read,
        rows_kept=len(fitting),
        dropped=dropped,
        duplicate_prompts=len(fitting) - len({normalize(values["prompt"]) for values in fitting}),
        prompt_tokens_max=max(lengths),
        prompt_tokens_median=statistics.median(lengths),
    )
