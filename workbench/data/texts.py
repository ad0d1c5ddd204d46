"""Texts on which is measured how well a model predicts them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from workbench.config.sources import DataSource
from workbench.data.context import Context
from workbench.data.formats import Row
from workbench.data.prompts import TokenLimits, tokenized_rows
from workbench.data.sources import stream_rows
from workbench.data.templates import normalize, text_column
from workbench.errors import UserError, error_context


@dataclass(frozen=True)
class TextSet:
    """Texts as a model reads them: the first half as the prompt, the second as the response."""

    name: str
    rows: list[dict[str, Any]]
    identities: list[str]
    """What identifies each text; rows that share it are not independent."""


def load_texts(
    key: str, name: str, source: DataSource, tokenizer: PreTrainedTokenizerBase, context: Context
) -> tuple[TextSet, str]:
    """Return the texts configured at `key` under a name, and a line for the plan; raises UserError if none fits.

    A row has a `text`, or a `response` to a prompt of the template's columns.
    """
    for limit in ("max_prompt_tokens", "max_response_tokens"):
        if vars(source)[limit] is not None:
            raise UserError(
                f"{key}.{limit}: {vars(source)[limit]}: texts that do not fit into the context are left out, and no "
                f"others; remove {limit}"
            )
    with error_context(key):
        total = context.length if context.is_decoder_only else None
        limits = TokenLimits(context.length, context.response_length, total)
        remaining, too_long = stream_rows(source), 0
        rows: list[dict[str, Any]] = []
        # With a limit, texts are tokenized until so many fit; the rest is read, so that an error in it is raised.
        while part := list(islice(remaining, source.limit)):
            if source.limit is not None and len(rows) >= source.limit:
                continue
            of_text = has_text(part[0], source)
            pairs, layout = ([halved(row) for row in part], DataSource(source.path)) if of_text else (part, source)
            for row, _ in tokenized_rows(pairs, layout, tokenizer, context, with_responses=True):
                if limits.violation(row["prompt_ids"], row["response_ids"]) is None:
                    rows.append(row)
                else:
                    too_long += 1
        if not rows:
            raise UserError(f"{source.path}: none of the {too_long} texts fits into the context; use shorter texts")
    rows = rows[: source.limit]
    identities = [normalize(f"{row['prompt']} {row['response']}") for row in rows]
    repeated = len(rows) - len(set(identities))
    notes = [f", {count} {what}" for count, what in ((too_long, "are too long"), (repeated, "repeated")) if count]
    line = f"{key}: {source.path} [{source.split}]: {len(rows)} texts{''.join(notes)}"
    return TextSet(name, rows, identities), line


def has_text(row: Row, source: DataSource) -> bool:
    """Return whether a row is a text, and not a prompt with a response."""
    return "text" in source.columns or ("text" in row.values and "response" not in source.columns)


def halved(row: Row) -> Row:
    """Return a row with the first half of its text's words as `prompt` and the rest as `response`."""
    words = text_column(row, "text").split()
    if len(words) < 2:
        raise UserError(f"{row.location}: text has no space to cut it into two halves at; leave the row out")
    middle = len(words) // 2
    return Row(row.location, {"prompt": " ".join(words[:middle]), "response": " " + " ".join(words[middle:])})
