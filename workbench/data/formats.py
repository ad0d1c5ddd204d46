"""Data files, compressed or not, read row by row: JSON, JSON Lines, CSV and Parquet."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from workbench.errors import UserError, one_line, shorten

COMPRESSIONS = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".xz": "lzma",
    ".zst": "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd",
}
"""The module that opens files with a suffix."""
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a dataset."""

    location: str
    """Where it comes from, such as `train.jsonl line 3`."""
    values: dict[str, Any]
    mapped: tuple[str, ...] = ()
    """The columns that a configured mapping added; the others are in the file."""


def file_format(path: Path) -> str | None:
    """Return the suffix that says how to read a file, such as .csv for rows.csv.gz; None for any other file."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def read_file(path: Path) -> Iterator[Row]:
    """Yield the rows of a file, with its memory in proportion to a row; raises UserError for anything unreadable.

    A JSON list is read as a whole, and so is a Parquet file's group of rows.
    """
    suffix = file_format(path)
    if suffix is None:
        compressed = f"; each may end in {', '.join(COMPRESSIONS)}"
        raise UserError(f"{path}: unknown extension {path.suffix!r}; use {', '.join(READERS)}{compressed}")
    try:
        _check_content(path)
        yield from READERS[suffix](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} line {_undecodable_line(path)}: not UTF-8 text; save the file as UTF-8") from error
    except (EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zlib.error, lzma.LZMAError and the like share no base class
        if isinstance(error, UserError) or path.suffix.lower() not in COMPRESSIONS:
            raise
        raise UserError(f"{path}: broken {path.suffix} file: {one_line(error)}") from error


def number_rows(path: str, rows: Iterable[dict[str, Any]]) -> Iterator[Row]:
    """Yield the rows with their numbers, from 1, as locations."""
    for number, values in enumerate(rows, 1):
        yield Row(f"{path} row {number}", values)


def decoded_rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `datasets` dataset, with the names of its class labels instead of their numbers."""
    from datasets import ClassLabel

    features = dataset.features or {}
    names = {name: feature for name, feature in features.items() if isinstance(feature, ClassLabel)}
    for row in dataset:
        for name, feature in names.items():
            number = row[name]
            row[name] = feature.int2str(number) if number is not None and number >= 0 else None
        yield row


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its type if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _open(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed; raises UserError where the package for its compression is missing."""
    name = COMPRESSIONS.get(path.suffix.lower())
    if name is None:
        return path.open("rb")
    try:
        opened: IO[bytes] = importlib.import_module(name).open(path, "rb")
    except ImportError as error:
        package = name.replace(".", "-", 1) if "." in name else name
        raise UserError(
            f"{path}: reading {path.suffix} needs a package that is not installed: python -m pip install {package}; "
            "or decompress the file"
        ) from error
    return opened


def _open_text(path: Path, newline: str) -> io.TextIOWrapper:
    """Open a UTF-8 file for reading, without the byte order mark that Excel and Notepad write."""
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline=newline)


def _check_content(path: Path) -> None:
    """Raise UserError for a pointer to a file that Git LFS has not fetched."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path}: a Git LFS pointer, not the file itself; fetch it with: git lfs pull")


def _undecodable_line(path: Path) -> int:
    """Return the number of the first line that is not UTF-8."""
    with _open(path) as file:
        return next((number for number, line in enumerate(file, 1) if not _is_utf8(line)), 1)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


# JSON and CSV are read here and not by `datasets`, which guesses types (a text "2020-01-01" becomes a date, and in a
# list of mixed rows "x" becomes '"x"'), fills short CSV rows silently, and gives no line number when it fails.
def _read_json(path: Path) -> Iterator[Row]:
    """Yield the objects of a list or of lines, each with the names of all of them."""
    with _open_text(path, newline="\n") as file:
        start = next((line for line in file if line.strip()), None)
    if start is None:
        raise UserError(f"{path}: the file is empty")
    read = _json_list if start.lstrip().startswith("[") else _json_lines
    names: dict[str, None] = {}
    for row in read(path):
        names |= dict.fromkeys(row.values)
    # Read twice rather than kept: the rows of a large file take several times its size.
    for row in read(path):
        yield Row(row.location, {name: row.values.get(name) for name in names})


def _json_list(path: Path) -> Iterator[Row]:
    with _open_text(path, newline="\n") as file:
        text = file.read()
    try:
        values = _parsed(text, path, None)
    except _RepeatedKeyError as error:
        raise UserError(f"{path} line {_line_of_repeated_key(text)}: {error}") from error
    for number, value in enumerate(values, 1):
        yield _object_row(f"{path} row {number}", value)


def _json_lines(path: Path) -> Iterator[Row]:
    with _open_text(path, newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    value = _parsed(line, path, number)
                except _RepeatedKeyError as error:
                    raise UserError(f"{path} line {number}: {error}") from error
                yield _object_row(f"{path} line {number}", value)


class _RepeatedKeyError(Exception):
    """A JSON object has a key twice."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise _RepeatedKeyError(f"the key {shorten(repeated)} appears twice in an object; keep one")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)  # made once: `json.loads` would make one for every line


def _line_of_repeated_key(text: str) -> int:
    """Return the line on which the row of a JSON list begins that has a key twice; the decoder gives no position."""
    start = text.index("[") + 1
    while True:
        while text[start] in ", \t\r\n":
            start += 1
        try:
            _, start = _DECODER.raw_decode(text, start)
        except _RepeatedKeyError:
            return text.count("\n", 0, start) + 1


def _parsed(text: str, path: Path, line: int | None) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} line {line or error.lineno}: broken JSON: {error.msg} at column {error.colno}; "
            "every line must be an object, or the whole file a list of objects"
        ) from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, brackets nested thousands deep
        raise UserError(f"{path} line {line or 1}: unreadable JSON: {first_line(error)}") from error


def _object_row(location: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(f'{location}: a row must be an object like {{"prompt": "..."}}, found {shorten(value)}')
    return Row(location, value)


@dataclass(frozen=True)
class _CsvStyle:
    """How a file separates its cells."""

    delimiter: str
    skips_blanks: bool
    """Whether blanks after a delimiter belong to no cell, as in a header `a, b`."""
    has_hint: bool
    """Whether the first line is Excel's `sep=;`."""


def _read_csv(path: Path) -> Iterator[Row]:
    """Yield the rows under the header; columns without a name are left out, and so are rows of empty cells."""
    csv.field_size_limit(2**31 - 1)  # texts that are too long are dropped and counted later
    style = _csv_style(path)
    with _open_text(path, newline="") as file:
        offset = len([next(file)]) if style.has_hint else 0
        reader = _csv_reader(file, style)
        try:
            header = [name.strip() for name in next(_filled(reader))[1]]
            names = [name for name in header if name]
            if len(set(names)) < len(names):
                raise UserError(
                    f"{path} line {reader.line_num + offset}: a column name appears twice: {', '.join(names)}"
                )
            for number, cells in _filled(reader):
                location = f"{path} line {number + offset}"
                _check_cells(location, cells, header, style)
                yield Row(location, {name: cell for name, cell in zip(header, cells, strict=False) if name})
        except csv.Error as error:
            raise UserError(f"{path} line {reader.line_num + offset}: broken CSV: {error}") from error


def _csv_reader(file: Iterable[str], style: _CsvStyle) -> Any:
    return csv.reader(file, delimiter=style.delimiter, skipinitialspace=style.skips_blanks, strict=True)


def _csv_style(path: Path) -> _CsvStyle:
    """Return the style that gives the header the most names; raises UserError for a file without one."""
    with _open_text(path, newline="") as file:
        hint = re.fullmatch(r'"?sep=(.)"?\s*', next(file, ""))
    choices = [hint[1]] if hint else ["\t"] if file_format(path) == ".tsv" else list(DELIMITERS)
    best, most = _CsvStyle(choices[0], False, hint is not None), 0
    for delimiter in choices:
        style = _CsvStyle(delimiter, False, hint is not None)
        with _open_text(path, newline="") as file:
            if hint:
                next(file)
            try:
                header = next(_filled(_csv_reader(file, style)), (0, [""]))[1]
            except csv.Error:
                continue
        if not any(cell.strip() for cell in header):
            raise UserError(f"{path}: the file is empty")
        if len(header) > most:
            spaced = any(cell != cell.lstrip() for cell in header[1:])
            best, most = _CsvStyle(delimiter, spaced, hint is not None), len(header)
    return best


def _filled(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that have a cell with text, each with its first line; a quoted cell may span lines."""
    line = reader.line_num + 1
    for cells in reader:
        if any(cells):
            yield line, cells
        line = reader.line_num + 1


def _check_cells(location: str, cells: list[str], header: list[str], style: _CsvStyle) -> None:
    """Raise UserError for a row whose cells do not match the header's columns."""
    delimiters = DELIMITERS.get(style.delimiter, f"{style.delimiter!r}")
    fix = f'put "..." around text that contains {delimiters}'
    last_name = max(index for index, name in enumerate(header) if name)
    if not last_name < len(cells) <= len(header):
        raise UserError(f"{location}: {len(cells)} cells, but the header has {len(header)}; {fix}")
    # A first column without a name is an index, as pandas writes it; text in another has lost its column.
    stray = next((cell for name, cell in zip(header[1:], cells[1:], strict=False) if not name and cell.strip()), None)
    if stray is not None:
        raise UserError(f"{location}: {shorten(stray)} is in a column without a name; name it in the header, or {fix}")


def _read_parquet(path: Path) -> Iterator[Row]:
    from datasets import IterableDataset

    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise UserError(f"{path}: not a parquet file (it does not start with PAR1)")
    # Streaming reads the file as it is now, not a cache that may be stale. The temporary folder holds the lock files.
    with tempfile.TemporaryDirectory() as cache:
        try:
            yield from number_rows(str(path), decoded_rows(IterableDataset.from_parquet(str(path), cache_dir=cache)))
        except ValueError as error:  # from pyarrow
            raise UserError(f"{path}: cannot be read: {first_line(error)}") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".ndjson": _read_json,
    ".tsv": _read_csv,
}
