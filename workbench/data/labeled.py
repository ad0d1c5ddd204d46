"""Training data for reward models: labeled texts, clean texts and preference pairs."""

from __future__ import annotations

from collections.abc import Collection

from workbench.config.sources import DataSource
from workbench.data.sources import first_rows
from workbench.data.templates import column, normalize, prompt_template, render, text_column
from workbench.errors import UserError, shorten


def labeled_texts(source: DataSource, labels: Collection[str] | None) -> tuple[list[str], list[str]]:
    """Return the columns `text` and `label` of the source, labels as strings; `labels` None allows any.

    Raises UserError for an empty text or a label outside `labels`.
    """
    texts, names = [], []
    for row in first_rows(source):
        label = column(row, "label")
        if not isinstance(label, str | int) or not str(label).strip():
            raise UserError(f"{row.location}: label must be a name or an integer, found {shorten(label)}")
        if labels is not None and str(label) not in labels:
            raise UserError(f"{row.location}: label {str(label)!r} is not one of {', '.join(labels)}")
        texts.append(text_column(row, "text"))
        names.append(str(label))
    return texts, names


def clean_texts(source: DataSource) -> list[str]:
    """Return the column `text` of the source; raises UserError for an empty text."""
    return [text_column(row, "text") for row in first_rows(source)]


def preference_pairs(source: DataSource) -> tuple[list[tuple[str, str, str]], int]:
    """Return (prompt, chosen, rejected) of each row, and how many rows were dropped because both completions match.

    The prompt is empty if a row has none of the template's columns. Raises UserError if no pair is left.
    """
    pairs, dropped = [], 0
    for row in first_rows(source):
        has_prompt = bool(set(prompt_template(row, source.template)[1]) & set(row.values))
        chosen, rejected = text_column(row, "chosen"), text_column(row, "rejected")
        if normalize(chosen) == normalize(rejected):
            dropped += 1
        else:
            pairs.append((render(row, source.template) if has_prompt else "", chosen, rejected))
    if not pairs:
        raise UserError(f"{source.path}: all {dropped} rows have chosen == rejected; a pair needs two that differ")
    return pairs, dropped
