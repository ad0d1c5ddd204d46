"""The rows of a configured source, with columns mapped and the split selected."""

from __future__ import annotations

import hashlib
from typing import Any

from workbench.config.checks import check_source
from workbench.config.schema import DataSource
from workbench.data.readers import Row, load_rows
from workbench.data.templates import file_column, identity
from workbench.errors import UserError, error_context


def read_rows(source: DataSource) -> list[dict[str, Any]]:
    """Return the rows of the source's split, with mapped columns under the expected names as well as their own.

    CSV cells are text. Raises UserError for anything that cannot be read.
    """
    return [row.values for row in source_rows(source)]


def source_rows(source: DataSource) -> list[Row]:
    """Return the rows as `read_rows` does, each with its location for error messages."""
    with error_context(source.path):
        check_source(source)  # a Python caller has not gone through the configuration's checks
    rows = load_rows(source.path, "train" if source.fractions else source.split)
    if not rows:
        raise UserError(f"{source.path}: it has no rows")
    # A mapped column also keeps its own name, because a template or the reward may ask for it by that name.
    mapped = [
        Row(
            row.location,
            row.values | {name: file_column(row, name, in_file) for name, in_file in source.columns.items()},
            tuple(name for name in source.columns if name not in row.values),
        )
        for row in rows
    ]
    if source.fractions is None:
        return mapped
    selected = [row for row in mapped if split_by_hash(identity(row, source), source.fractions) == source.split]
    if not selected:
        fraction = source.fractions[source.split]
        raise UserError(f"{source.path}: none of its {len(rows)} rows falls into split {source.split} ({fraction:g})")
    return selected


def split_by_hash(text: str, fractions: dict[str, float]) -> str:
    """Return the split of a text, which depends only on the text and the fractions, not on their order."""
    position = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    names = sorted(fractions)
    for name in names:
        position -= fractions[name]
        if position < 0:
            return name
    return names[-1]
