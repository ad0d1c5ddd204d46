"""Read rows from files, folders, the hub or the toy datasets, each with its location."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import toy
from workbench.errors import UserError, shorten
from workbench.run.files import missing_path
from workbench.run.hub import hub_is_reachable, is_hub_id, unreachable

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a dataset."""

    location: str
    """Where it comes from, such as `train.jsonl line 3`."""
    values: dict[str, Any]
    mapped: tuple[str, ...] = ()
    """The columns that a configured mapping added; the others are in the file."""


def load_rows(path: str, split: str) -> list[Row]:
    """Return the rows of one split of a file, a folder, a hub dataset or toy:NAME."""
    name = toy.toy_name(path)
    if name is not None:
        return _number(path, toy.rows(name, split))
    if not path.strip():
        raise UserError("path: empty; use a file, a folder, a hub dataset id, or toy:NAME")
    local = Path(path).expanduser()
    if local.is_dir():
        return _load_folder(local, split)
    if local.exists():
        if split != "train" and SPLIT_WORDS.get(split, split) != _split_in_name(local):
            raise UserError(
                f"{path}: a single file has no split {split!r}; split it with fractions: {{train: 0.9, {split}: 0.1}}, "
                "or set path to a file for that split"
            )
        return _load_file(local)
    looks_local = path.startswith((".", "/", "~")) or local.suffix.lower() in READERS
    # A bare "json" would make `datasets` load whatever is in the working directory.
    if looks_local or f".{path}" in READERS or not is_hub_id(path):
        raise UserError(f"{missing_path(path)}; use a file or folder that exists, or a hub dataset id")
    return _load_hub(path, split)


def _split_in_name(path: Path) -> str | None:
    words = re.split("[^a-z]+", path.stem.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def _load_folder(folder: Path, split: str) -> list[Row]:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _load_saved(folder, split)
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in READERS)
    if not files:
        raise UserError(f"{folder}: the folder contains no {', '.join(READERS)} file")
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_in_name(file) or "", []).append(file)
    if list(splits) == [""]:  # no file is named after a split, so all of them belong to one
        splits = {"train": files}
    chosen = splits.get(SPLIT_WORDS.get(split, split))
    if chosen is None:
        raise UserError(f"{folder}: no split {split!r}; its files define the splits {', '.join(filter(None, splits))}")
    if len({file.suffix for file in chosen}) > 1:
        names = ", ".join(file.name for file in chosen)
        raise UserError(f"{folder}: split {split} has several formats: {names}; keep one format, or use a single file")
    return [row for file in chosen for row in _load_file(file)]


def _load_file(path: Path) -> list[Row]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown extension {path.suffix!r}; use {', '.join(READERS)}")
    try:
        return reader(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


# JSON and CSV are read here and not by `datasets`, which guesses types (a text "2020-01-01" becomes a date, and in a
# list of mixed rows "x" becomes '"x"'), fills short CSV rows silently, and gives no line number when it fails.
def _read_json(path: Path) -> list[Row]:
    text = _text(path)
    line = 0
    rows = []
    try:
        if text.lstrip().startswith("["):
            rows = [Row(f"{path} row {number}", values) for number, values in enumerate(json.loads(text), 1)]
        else:
            for line, content in enumerate(text.split("\n"), 1):
                if content.strip():
                    rows.append(Row(f"{path} line {line}", json.loads(content)))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} line {line or error.lineno}: broken JSON: {error.msg} at column {error.colno}; "
            "every line must be an object, or the whole file a list of objects"
        ) from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, brackets nested thousands deep
        raise UserError(f"{path} line {line or 1}: unreadable JSON: {_first_line(error)}") from error
    for row in rows:
        if not isinstance(row.values, dict):
            raise UserError(
                f'{row.location}: a row must be an object like {{"prompt": "..."}}, found {shorten(row.values)}'
            )
    names = dict.fromkeys(name for row in rows for name in row.values)
    return [Row(row.location, {name: row.values.get(name) for name in names}) for row in rows]


def _read_csv(path: Path) -> list[Row]:
    csv.field_size_limit(2**31 - 1)  # texts that are too long are dropped and counted later
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows = []
    try:
        header = next(reader)
        if len(set(header)) < len(header):
            raise UserError(f"{path} line 1: a column name appears twice: {', '.join(header)}")
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{path} line {line}: {len(cells)} cells, but the header has {len(header)}; "
                    'put "..." around text that contains commas'
                )
            if cells:
                rows.append(Row(f"{path} line {line}", dict(zip(header, cells, strict=True))))
            line = reader.line_num + 1  # a quoted cell may span lines; report the first
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: broken CSV: {error}") from error
    return rows


def _read_parquet(path: Path) -> list[Row]:
    from datasets import IterableDataset

    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise UserError(f"{path}: not a parquet file (it does not start with PAR1)")
    # Streaming reads the file as it is now, not a cache that may be stale. The temporary folder holds the lock files.
    with tempfile.TemporaryDirectory() as cache:
        try:
            return _number(str(path), _decoded(IterableDataset.from_parquet(str(path), cache_dir=cache)))
        except ValueError as error:  # from pyarrow
            raise UserError(f"{path}: cannot be read: {_first_line(error)}") from error


READERS = {".jsonl": _read_json, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}


def _number(path: str, rows: Iterable[dict[str, Any]]) -> list[Row]:
    return [Row(f"{path} row {number}", values) for number, values in enumerate(rows, 1)]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line}: not UTF-8 text; save the file as UTF-8") from error
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    return text


def _decoded(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset, with the names of its class labels instead of their numbers."""
    from datasets import ClassLabel

    features = dataset.features or {}
    names = {name: feature for name, feature in features.items() if isinstance(feature, ClassLabel)}
    for row in dataset:
        for name, feature in names.items():
            number = row[name]
            row[name] = feature.int2str(number) if number is not None and number >= 0 else None
        yield row


def _load_saved(folder: Path, split: str) -> list[Row]:
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: cannot be read: {_first_line(error)}") from error
    splits = dataset if isinstance(dataset, datasets.DatasetDict) else {"train": dataset}
    if split not in splits:
        raise UserError(f"{folder}: no split {split!r}; the dataset has {', '.join(splits)}")
    return _number(str(folder), _decoded(splits[split]))


@contextmanager
def _cache_when_unreachable(path: str) -> Iterator[None]:
    """Send `datasets` straight to its cache if the hub is unreachable; it would otherwise retry for half a minute."""
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline or not hub_is_reachable(path, "dataset")
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def _load_hub(path: str, split: str) -> list[Row]:
    import datasets

    try:
        with _cache_when_unreachable(path):
            dataset = datasets.load_dataset(path, split=split)
    except ConnectionError as error:
        raise UserError(unreachable(path, "dataset")) from error
    except Exception as error:
        raise UserError(
            f"{path}: no such file or folder, and no hub dataset that can be loaded: {_first_line(error)}"
        ) from error
    return _number(path, _decoded(dataset))
