"""Clusters of prompts that are not independent, such as those of one conversation, topic or author."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from workbench.data.templates import PROMPT_MESSAGES
from workbench.errors import UserError, error_context, shorten, suggestion

# Columns that are not in the data: what a prompt becomes for a model.
ADDED_COLUMNS = ("prompt_ids", PROMPT_MESSAGES)


def load_clusters(
    rows: Sequence[Mapping[str, Any]], column: str | None, identities: Sequence[str], key: str
) -> list[str] | None:
    """Return the label of each row's cluster by a column of the set at `key`; None without a column.

    Rows that share a prompt are in one cluster: where they have different values, their clusters are joined. Raises
    UserError for a column that is missing, and for a row without a value.
    """
    if column is None:
        return None
    with error_context(f"{key}.cluster"):
        values = [_value(row, column, number) for number, row in enumerate(rows, 1)]
    return joined_clusters(values, identities)


def joined_clusters(labels: Sequence[str], *others: Sequence[Hashable]) -> list[str]:
    """Return a label for each row (N,): rows that share a label of any list are in one cluster, directly or not.

    The label is the first of `labels` in the cluster, in the order of the rows.
    """
    roots = list(range(len(labels)))

    def root(row: int) -> int:
        while roots[row] != row:
            roots[row] = roots[roots[row]]
            row = roots[row]
        return row

    for labeling in (labels, *others):
        firsts: dict[Hashable, int] = {}
        for row, label in enumerate(labeling):
            one, other = root(firsts.setdefault(label, row)), root(row)
            roots[max(one, other)] = min(one, other)
    return [labels[root(row)] for row in range(len(labels))]


def clusters_line(
    rows: Sequence[Mapping[str, Any]], column: str | None, clusters: Sequence[str] | None, key: str
) -> list[str]:
    """Return a line of a plan about the clusters of a set, none without them."""
    if column is None or clusters is None:
        return []
    values, count = len({str(row[column]).strip() for row in rows}), len(set(clusters))
    joined = f", joined from {values} since some share a prompt" if values > count else ""
    return [f"{key}.cluster: {column}: {len(rows)} rows in {count} cluster{'s' * (count != 1)}{joined}"]


def _value(row: Mapping[str, Any], column: str, number: int) -> str:
    """Return the value of a row's column; raises UserError where there is none, or a list or mapping."""
    if column not in row:
        names = [name for name in row if name not in ADDED_COLUMNS]
        hint = suggestion(column, names) or f"; the columns are {', '.join(names)}"
        raise UserError(f"no column {column!r}{hint}")
    value = row[column]
    where = f"row {number} ({shorten(row['prompt'])})"
    if value is None or not str(value).strip() or (isinstance(value, float) and math.isnan(value)):
        raise UserError(f"{where} has no {column!r}; give every row the value of its cluster, or leave cluster out")
    if not isinstance(value, str | int | float):
        raise UserError(f"{where}: {column!r} must be a string or a number, found {shorten(value)}")
    return str(value).strip()
