"""Rows from files, folders, the hub or the embedded sets, and their prompts as tokens."""

from __future__ import annotations

import hashlib
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.config.schema import DataSource
from workbench.data.readers import load
from workbench.data.templates import (
    TEMPLATES,
    Row,
    column,
    identity,
    normalize,
    prompt_and_response,
    prompt_columns,
    render,
    shorten,
    text_column,
)
from workbench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TEMPLATES",
    "DataReport",
    "clean_texts",
    "identities",
    "labelled_texts",
    "preference_pairs",
    "prompts",
    "read_rows",
]


@dataclass
class DataReport:
    """What became of the rows of one source."""

    path: str
    split: str
    rows_read: int
    rows_kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason: prompt_too_long, response_too_long."""
    duplicate_prompts: int = 0
    """Kept rows whose prompt an earlier kept row has, but for case and white space."""
    prompt_tokens_max: int = 0
    prompt_tokens_median: float = 0.0

    def __str__(self) -> str:
        dropped = "".join(f", {count} {reason.replace('_', ' ')}" for reason, count in self.dropped.items() if count)
        return (
            f"{self.path} [{self.split}]: {self.rows_kept} of {self.rows_read} rows kept{dropped}, "
            f"{self.duplicate_prompts} duplicate prompts, prompt tokens median {self.prompt_tokens_median:g} "
            f"max {self.prompt_tokens_max}"
        )


def read_rows(source: DataSource) -> list[dict[str, Any]]:
    """The rows of the source's split, mapped columns under our names and all others under their own.

    Cells of a CSV file are text. Raises UserError for anything that cannot be read.
    """
    return [row.values for row in _rows(source)]


def prompts(
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    window: int | None,
    response: bool,
) -> tuple[list[dict[str, Any]], DataReport]:
    """The source's rows with `prompt` and `prompt_ids`, and what was dropped.

    With `response`, also `response` and `response_ids`, which end in one EOS. `window` counts the tokens that the model
    reads at once. A row that does not fit is dropped and counted, never cut. Raises UserError for a bad row or setting.
    """
    rows = _rows(source)
    # An encoder's tokenizer closes its input with EOS; a decoder's leaves it open, for the response in the same window.
    joined = tokenizer("a")["input_ids"][-1:] != [tokenizer.eos_token_id]
    limit = _prompt_limit(source, max_new_tokens, window, joined)
    chat = source.chat or "messages" in rows[0].values
    eos = tokenizer.eos_token_id
    kept: list[dict[str, Any]] = []
    dropped = {"prompt_too_long": 0, "response_too_long": 0}
    prompt_lengths, response_lengths = [], []
    # With a limit, rows are read only as far as it takes to reach it.
    size = source.limit or len(rows)
    for first in range(0, len(rows), size):
        if source.limit is not None and len(kept) >= source.limit:
            break
        part = rows[first : first + size]
        pairs = [
            prompt_and_response(row, source, tokenizer, chat=chat, response=response, joined=joined) for row in part
        ]
        prompt_ids = _encode(tokenizer, [prompt for prompt, _ in pairs], add_special_tokens=not chat)
        response_ids = _encode(tokenizer, [answer for _, answer in pairs], add_special_tokens=False)
        for row, (prompt, answer), ids, answer_ids in zip(part, pairs, prompt_ids, response_ids, strict=True):
            if not ids:
                raise UserError(f"{row.place}: the prompt {shorten(prompt)} has no tokens")
            values = {**row.values, "prompt": prompt, "prompt_ids": ids}
            if response:
                answer_ids = answer_ids if answer_ids[-1:] == [eos] else [*answer_ids, eos]
                values |= {"response": answer, "response_ids": answer_ids}
            prompt_lengths.append(len(ids))
            response_lengths.append(len(answer_ids))
            left = window - len(ids) if joined and window is not None else None
            if _exceeds(ids, limit):
                dropped["prompt_too_long"] += 1
            elif response and (_exceeds(answer_ids, source.max_response_tokens) or _exceeds(answer_ids, left)):
                dropped["response_too_long"] += 1
            else:
                kept.append(values)
    if not kept:
        lengths = f"prompts have {min(prompt_lengths)} to {max(prompt_lengths)} tokens (at most {limit} fit)"
        if response:
            most = source.max_response_tokens or window
            lengths += f", responses {min(response_lengths)} to {max(response_lengths)} (at most {most})"
        raise UserError(
            f"{source.path}: all {len(rows)} rows dropped: {lengths}; raise the limits or shorten the texts"
        )
    kept = kept[: source.limit]
    return kept, _report(source, len(rows), kept, dropped)


def labelled_texts(source: DataSource, labels: list[str] | None) -> tuple[list[str], list[str]]:
    """The columns `text` and `label` of the source, labels as strings; None accepts any label.

    Raises UserError for an empty text or a label outside `labels`.
    """
    _require_positive(source)
    texts, names = [], []
    for row in _rows(source)[: source.limit]:
        label = column(row, "label")
        if not isinstance(label, str | int) or not str(label).strip():
            raise UserError(f"{row.place}: label must be a name or a whole number, found {shorten(label)}")
        if labels is not None and str(label) not in labels:
            raise UserError(f"{row.place}: label {str(label)!r} is not one of {', '.join(labels)}")
        texts.append(text_column(row, "text"))
        names.append(str(label))
    return texts, names


def clean_texts(source: DataSource) -> list[str]:
    """The column `text` of the source; raises UserError for an empty text."""
    _require_positive(source)
    return [text_column(row, "text") for row in _rows(source)[: source.limit]]


def preference_pairs(source: DataSource) -> tuple[list[tuple[str, str, str]], int]:
    """Prompt, chosen and rejected answer of each row, and how many were dropped because both answers are the same.

    The prompt is empty where rows have none of the template's columns. Raises UserError when no pair is left.
    """
    _require_positive(source)
    pairs, dropped = [], 0
    for row in _rows(source)[: source.limit]:
        with_prompt = bool(set(prompt_columns(row, source.template)[1]) & set(row.values))
        chosen, rejected = text_column(row, "chosen"), text_column(row, "rejected")
        if normalize(chosen) == normalize(rejected):
            dropped += 1
        else:
            pairs.append((render(row, source.template) if with_prompt else "", chosen, rejected))
    if not pairs:
        raise UserError(f"{source.path}: all {dropped} rows have chosen == rejected; a pair needs two answers")
    return pairs, dropped


def identities(rows: list[dict[str, Any]], source: DataSource) -> list[str]:
    """What makes each of the source's rows the row it is, but for case, white space and the template's wording."""
    return [identity(Row(source.path, row), source) for row in rows]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    return ids


def _exceeds(ids: list[int], most: int | None) -> bool:
    return most is not None and len(ids) > most


def _report(source: DataSource, read: int, kept: list[dict[str, Any]], dropped: dict[str, int]) -> DataReport:
    lengths = [len(values["prompt_ids"]) for values in kept]
    distinct = {normalize(values["prompt"]) for values in kept}
    return DataReport(
        path=source.path,
        split=source.split,
        rows_read=read,
        rows_kept=len(kept),
        dropped=dropped,
        duplicate_prompts=len(kept) - len(distinct),
        prompt_tokens_max=max(lengths),
        prompt_tokens_median=statistics.median(lengths),
    )


def _require_positive(source: DataSource) -> None:
    for name in ("max_prompt_tokens", "max_response_tokens", "limit"):
        value = vars(source)[name]
        if value is not None and value < 1:
            raise UserError(f"{source.path}: {name} is {value}; use a number of at least 1, or null")


def _prompt_limit(source: DataSource, max_new_tokens: int, window: int | None, joined: bool) -> int | None:
    _require_positive(source)
    if window is None:
        return source.max_prompt_tokens
    room = window - max_new_tokens if joined else window
    if room < 1:
        raise UserError(f"max_new_tokens {max_new_tokens} leaves no room for a prompt in the window of {window} tokens")
    wanted = source.max_prompt_tokens
    if wanted is not None and wanted > room:
        raise UserError(
            f"{source.path}: max_prompt_tokens {wanted} does not fit: the model's window of {window} tokens "
            f"leaves {room}" + (f" beside max_new_tokens {max_new_tokens}" if joined else "")
        )
    return room if wanted is None else wanted


def _rows(source: DataSource) -> list[Row]:
    if source.fractions is not None:
        _check_fractions(source, source.fractions)
    rows = load(source.path, "train" if source.fractions else source.split)
    if not rows:
        raise UserError(f"{source.path}: there are no rows in it")
    # A mapped column stays under its own name too: a template or the reward may ask for it by that name.
    mapped = [
        Row(row.place, row.values | {ours: column(row, theirs) for ours, theirs in source.columns.items()})
        for row in rows
    ]
    if source.fractions is None:
        return mapped
    chosen = [row for row in mapped if _split_of(identity(row, source), source.fractions) == source.split]
    if not chosen:
        share = source.fractions[source.split]
        raise UserError(f"{source.path}: none of its {len(rows)} rows falls into split {source.split} ({share:g})")
    return chosen


def _check_fractions(source: DataSource, fractions: dict[str, float]) -> None:
    total = sum(fractions.values())
    if abs(total - 1) > 1e-6 or min(fractions.values(), default=0) <= 0:
        raise UserError(f"{source.path}: fractions must be positive and add to 1, {fractions} add to {total:g}")
    if source.split not in fractions:
        raise UserError(f"{source.path}: split {source.split!r} is not one of the fractions {', '.join(fractions)}")


def _split_of(text: str, fractions: dict[str, float]) -> str:
    """The split of a text: depends on nothing but the text and the fractions, not even on their order."""
    position = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    names = sorted(fractions)
    for name in names:
        position -= fractions[name]
        if position < 0:
            return name
    return names[-1]
