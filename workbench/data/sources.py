"""The rows of a configured source: mapped columns, and the split that its fractions cut."""

from __future__ import annotations

import hashlib
from typing import Any

from workbench.config.schema import DataSource
from workbench.data.readers import Row, load_rows
from workbench.data.templates import column, identity
from workbench.errors import UserError


def read_rows(source: DataSource) -> list[dict[str, Any]]:
    """Return the rows of the source's split, mapped columns under our names and all columns under their own.

    Cells of a CSV file are text. Raises UserError for anything that cannot be read.
    """
    return [row.values for row in source_rows(source)]


def source_rows(source: DataSource) -> list[Row]:
    """Return the rows as `read_rows` does, each with the place it came from for error messages."""
    check_limits(source)
    if source.fractions is not None:
        check_fractions(source, source.fractions)
    rows = load_rows(source.path, "train" if source.fractions else source.split)
    if not rows:
        raise UserError(f"{source.path}: there are no rows in it")
    # A mapped column stays under its own name too: a template or the reward may ask for it by that name.
    mapped = [
        Row(row.place, row.values | {ours: column(row, theirs) for ours, theirs in source.columns.items()})
        for row in rows
    ]
    if source.fractions is None:
        return mapped
    selected = [row for row in mapped if split_by_hash(identity(row, source), source.fractions) == source.split]
    if not selected:
        fraction = source.fractions[source.split]
        raise UserError(f"{source.path}: none of its {len(rows)} rows falls into split {source.split} ({fraction:g})")
    return selected


def check_limits(source: DataSource) -> None:
    """Raise UserError for a limit below 1; the command line has checked it, a caller in Python has not."""
    for name in ("max_prompt_tokens", "max_response_tokens", "limit"):
        value = vars(source)[name]
        if value is not None and value < 1:
            raise UserError(f"{source.path}: {name}: {value} must be at least 1, or null")


def check_fractions(source: DataSource, fractions: dict[str, float]) -> None:
    """Raise UserError unless the fractions are positive, add to 1 and name the source's split."""
    total = sum(fractions.values())
    if abs(total - 1) > 1e-6 or min(fractions.values(), default=0) <= 0:
        raise UserError(f"{source.path}: fractions: {fractions} must be positive and add to 1; they add to {total:g}")
    if source.split not in fractions:
        raise UserError(f"{source.path}: split {source.split!r} is not one of the fractions {', '.join(fractions)}")


def split_by_hash(text: str, fractions: dict[str, float]) -> str:
    """Return the split of a text, which depends only on the text and the fractions, not on their order."""
    position = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    names = sorted(fractions)
    for name in names:
        position -= fractions[name]
        if position < 0:
            return name
    return names[-1]
