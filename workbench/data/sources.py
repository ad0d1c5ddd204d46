"""The rows of a configured source, with columns mapped and the split selected."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from workbench.config.checks import check_source
from workbench.config.derived import stage_sources
from workbench.config.schema import Config
from workbench.config.sources import DataSource
from workbench.data.formats import Row
from workbench.data.readers import load_rows, source_files
from workbench.data.templates import file_column, identity
from workbench.errors import UserError, error_context
from workbench.run.files import content_hash


def read_rows(source: DataSource) -> list[dict[str, Any]]:
    """Return the rows of the source's split, with mapped columns under the expected names as well as their own.

    CSV cells are text. Raises UserError for anything that cannot be read.
    """
    return [row.values for row in stream_rows(source)]


def first_rows(source: DataSource) -> list[Row]:
    """Return the first `limit` rows of the source; all of them are read, so that an error in any of them is raised."""
    rows = stream_rows(source)
    first = list(islice(rows, source.limit))
    deque(rows, maxlen=0)
    return first


def stream_rows(source: DataSource) -> Iterator[Row]:
    """Return an iterator over the rows as `read_rows` returns them, each with its location for error messages.

    Few rows are in memory at a time; raises UserError as `read_rows` does, at the end if there was no row.
    """
    with error_context(source.path):
        check_source(source)  # a Python caller has not gone through the configuration's checks
    return _selected_rows(load_rows(source.path, "train" if source.fractions else source.split), source)


def _selected_rows(rows: Iterator[Row], source: DataSource) -> Iterator[Row]:
    """Yield the rows of the source's split with their mapped columns; raises UserError at the end if there is none."""
    rows_in_file, selected = 0, 0
    for row in rows:
        rows_in_file += 1
        mapped = _with_mapped_columns(row, source)
        if source.fractions is None or split_by_hash(identity(mapped, source), source.fractions) == source.split:
            selected += 1
            yield mapped
    if not rows_in_file:
        raise UserError(f"{source.path}: it has no rows")
    if not selected and source.fractions:
        fraction = source.fractions[source.split]
        raise UserError(
            f"{source.path}: none of its {rows_in_file} rows falls into split {source.split} ({fraction:g})"
        )


def source_hash(source: DataSource) -> str | None:
    """Return the sha256 of the files that the source's split is read from; None for hub ids and toy datasets.

    Raises UserError for a path that does not exist, and for a folder without the split.
    """
    files = source_files(source.path, "train" if source.fractions else source.split)
    hashes = [content_hash(file) for file in files]
    if len(files) < 2:
        return hashes[0] if hashes else None
    folder = Path(source.path).expanduser()
    lines = [f"{file.relative_to(folder).as_posix()} {digest}\n" for file, digest in zip(files, hashes, strict=True)]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def source_hashes(config: Config, stage: str) -> dict[str, dict[str, str | None]]:
    """Return the path and content hash of each data source of a stage, by key; None for data that is not here."""
    hashes: dict[str, dict[str, str | None]] = {}
    for key, source in stage_sources(config, stage):
        hashes[key] = {"path": source.path, "sha256": None}
        with suppress(UserError, OSError):  # it is gone, lacks the split or cannot be read, which its reader says
            hashes[key]["sha256"] = source_hash(source)
    return hashes


def _with_mapped_columns(row: Row, source: DataSource) -> Row:
    """Return the row with its mapped columns; they keep their own names, too, by which a template may ask for them."""
    if not source.columns:
        return row
    mapped = {name: _mapped_value(row, name, in_file) for name, in_file in source.columns.items()}
    return Row(row.location, row.values | mapped, tuple(name for name in mapped if name not in row.values))


def _mapped_value(row: Row, name: str, in_file: str | list[str]) -> Any:
    """Return the value of a column; of several columns a list of their values, without those that are empty."""
    if isinstance(in_file, str):
        return file_column(row, name, in_file)
    values = [file_column(row, name, one) for one in in_file]
    return [value for value in values if value is not None and value != ""]


def split_by_hash(text: str, fractions: dict[str, float]) -> str:
    """Return the split of a text, which depends only on the text and the fractions, not on their order."""
    position = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    names = sorted(fractions)
    for name in names:
        position -= fractions[name]
        if position < 0:
            return name
    return names[-1]
