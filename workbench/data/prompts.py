"""Prompts and responses as the policy reads them: texts, token ids, and a report of the rows that do not fit."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from workbench.config.schema import DataSource
from workbench.data.formats import Row
from workbench.data.sources import stream_rows
from workbench.data.templates import (
    identity,
    normalize,
    prepend_space,
    prompt_and_response,
    template_text,
)
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

    def __str__(self) -> str:
        reasons = {reason.replace("_", " "): count for reason, count in self.dropped.items() if count}
        dropped = "".join(f", {count} dropped ({reason})" for reason, count in reasons.items())
        return (
            f"{self.path} [{self.split}]: {self.rows_kept} of {self.rows_read} rows kept{dropped}, "
            f"{self.duplicate_prompts} duplicate prompts, prompt tokens median {self.prompt_tokens_median:g} "
            f"max {self.prompt_tokens_max}"
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
    context_length: int | None,
    with_responses: bool = False,
) -> tuple[list[dict[str, Any]], DataReport]:
    """Return the source's rows with `prompt` and `prompt_ids`, and a report of what was dropped.

    `with_responses` adds `response` and `response_ids`, which end in one EOS. `context_length` is the most tokens that
    the model reads, None for no limit. A row that does not fit is dropped and counted, never truncated. Raises
    UserError for a bad row or setting.
    """
    rows, rows_read = stream_rows(source), 0
    limits = token_limits(source, max_new_tokens, context_length, is_decoder_only(tokenizer))
    fitting: list[dict[str, Any]] = []
    dropped = {"prompt_too_long": 0, "response_too_long": 0}
    lengths: list[tuple[int, int]] = []
    # With a limit, rows are tokenized and remembered only until it is reached; the rest is read and counted.
    while chunk := list(islice(rows, source.limit)):
        rows_read += len(chunk)
        if source.limit is not None and len(fitting) >= source.limit:
            continue
        for values in tokenized_rows(chunk, source, tokenizer, with_responses):
            prompt_ids, response_ids = values["prompt_ids"], values["response_ids"] if with_responses else []
            lengths.append((len(prompt_ids), len(response_ids)))
            reason = limits.violation(prompt_ids, response_ids)
            if reason is None:
                fitting.append(values)
            else:
                dropped[reason] += 1
    if not fitting:
        raise nothing_fits(source, rows_read, lengths, limits, with_responses)
    fitting = fitting[: source.limit]
    return fitting, report(source, rows_read, fitting, dropped)


def load_configured_prompts(
    key: str,
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    context_length: int | None,
    with_responses: bool = False,
) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of the source that is configured at `key`, and their report as a line of a plan."""
    with error_context(key):
        rows, rows_report = load_prompts(
            source,
            tokenizer,
            max_new_tokens=max_new_tokens,
            context_length=context_length,
            with_responses=with_responses,
        )
    return rows, f"{key}: {rows_report}"


def encode_responses(texts: Sequence[str], source: DataSource, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of responses to this source's prompts, each ending in exactly one EOS.

    A prompt loses the space at the end of its template; for a decoder, the response begins with it instead.
    """
    if is_decoder_only(tokenizer) and not source.chat and template_text(source.template).endswith(" "):
        texts = [prepend_space(text) for text in texts]
    return response_ids_with_eos(texts, tokenizer)


def row_identities(rows: list[dict[str, Any]], source: DataSource) -> list[str]:
    """Return the text that identifies each row, regardless of case, whitespace and template."""
    return [identity(Row(source.path, row), source) for row in rows]


def is_decoder_only(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a response continues the prompt's own sequence.

    An encoder's tokenizer closes its input with EOS; a decoder's leaves it open.
    """
    return tokenizer("a")["input_ids"][-1:] != [tokenizer.eos_token_id]


def tokenized_rows(
    rows: list[Row], source: DataSource, tokenizer: PreTrainedTokenizerBase, with_responses: bool
) -> Iterator[dict[str, Any]]:
    """Yield each row's values with its prompt, and optionally with its response, as text and as ids."""
    chat = source.chat or "messages" in rows[0].values
    decoder_only = is_decoder_only(tokenizer)
    pairs = [
        prompt_and_response(
            row, source, tokenizer, chat=chat, with_response=with_responses, is_decoder_only=decoder_only
        )
        for row in rows
    ]
    # A chat template adds its own special tokens.
    prompts = encode(tokenizer, [prompt for prompt, _ in pairs], add_special_tokens=not chat)
    responses = response_ids_with_eos([response for _, response in pairs], tokenizer) if with_responses else []
    for index, (row, (prompt, response), prompt_ids) in enumerate(zip(rows, pairs, prompts, strict=True)):
        if not prompt_ids:
            raise UserError(f"{row.location}: the prompt {shorten(prompt)} has no tokens")
        values = {**row.values, "prompt": prompt, "prompt_ids": prompt_ids}
        yield values | {"response": response, "response_ids": responses[index]} if with_responses else values


def response_ids_with_eos(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of each text, ending in one EOS."""
    eos = tokenizer.eos_token_id
    encoded = encode(tokenizer, texts, add_special_tokens=False)
    return [ids if ids[-1:] == [eos] else [*ids, eos] for ids in encoded]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
    """Return the token ids of each text; overlong ones are dropped later, so the tokenizer should not warn."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    return ids


def token_limits(
    source: DataSource, max_new_tokens: int, context_length: int | None, decoder_only: bool
) -> TokenLimits:
    """Return the limits of a row; raises UserError if the source's own limit leaves no room for a response."""
    limit, total = source.max_prompt_tokens, context_length if decoder_only else None
    if context_length is None:
        return TokenLimits(limit, source.max_response_tokens, None)
    room = context_length - max_new_tokens if decoder_only else context_length
    if room < 1:
        raise UserError(
            f"max_new_tokens: {max_new_tokens} leaves no room for a prompt in the context length of "
            f"{context_length} tokens; lower ppo.max_new_tokens, or for the evaluation evaluation.max_new_tokens"
        )
    if limit is not None and limit > room:
        raise UserError(
            f"{source.path}: max_prompt_tokens: {limit} is above {room}, the most that the model's context length of "
            f"{context_length} tokens allows" + (f" with max_new_tokens {max_new_tokens}" if decoder_only else "")
        )
    return TokenLimits(room if limit is None else limit, source.max_response_tokens, total)


def nothing_fits(
    source: DataSource, rows: int, lengths: list[tuple[int, int]], limits: TokenLimits, with_responses: bool
) -> UserError:
    """Return the error for a source whose rows were all dropped, with their lengths and the limits."""
    prompts, responses = zip(*lengths, strict=True)
    description = f"prompts have {min(prompts)} to {max(prompts)} tokens (at most {limits.prompt} fit)"
    if with_responses:
        description += f", responses {min(responses)} to {max(responses)} (at most {limits.response or limits.total})"
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
