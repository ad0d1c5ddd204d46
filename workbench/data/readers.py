"""Read rows from files, folders, the hub or the toy datasets, each with its location."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench import toy
from workbench.data.folders import SPLIT_WORDS, is_saved_dataset, read_folder, split_files, split_in_name
from workbench.data.formats import READERS, Row, decoded_rows, file_format, first_line, number_rows, read_file
from workbench.errors import UserError
from workbench.run.files import missing_path
from workbench.run.hub import hub_is_reachable, is_hub_id, unreachable


def load_rows(path: str, split: str) -> Iterator[Row]:
    """Return an iterator over the rows of one split of a file, a folder, a hub dataset or toy:NAME.

    Raises UserError, at the latest while it is read, for anything that is not there or cannot be read.
    """
    name = toy.toy_name(path)
    if name is not None:
        return number_rows(path, toy.rows(name, SPLIT_WORDS.get(split, split)))
    local = local_path(path)
    if local is None:
        return _read_hub(path, split)
    if local.is_dir():
        return read_folder(local, split)
    if split != "train" and SPLIT_WORDS.get(split, split) != split_in_name(local.stem):
        raise UserError(
            f"{path}: a single file has no split {split!r}; split it with fractions: {{train: 0.9, {split}: 0.1}}, "
            "or set path to a file for that split"
        )
    return read_file(local)


def local_path(path: str) -> Path | None:
    """Return the file or folder that a path names, None for a hub id; raises UserError if it is neither."""
    local = Path(path).expanduser()
    if local.exists():
        return local
    looks_local = path.startswith((".", "/", "~")) or file_format(local) is not None
    # A bare "json" would make `datasets` load whatever is in the working directory.
    if looks_local or f".{path}" in READERS or not is_hub_id(path):
        raise UserError(f"{missing_path(path)}; use a file or folder that exists, or a hub dataset id")
    return None


def source_files(path: str, split: str) -> list[Path]:
    """Return the files that rows of a split are read from; none for the hub and the toy datasets.

    Raises UserError for a path that does not exist, and for a folder without the split.
    """
    local = None if toy.toy_name(path) is not None else local_path(path)
    if local is None:
        return []
    if local.is_file():
        return [local]
    if is_saved_dataset(local):
        return sorted(file for file in local.rglob("*") if file.is_file())
    return split_files(local, split)


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


def _read_hub(path: str, split: str) -> Iterator[Row]:
    import datasets

    try:
        with _cache_when_unreachable(path):
            dataset = datasets.load_dataset(path, split=split)
    except ConnectionError as error:
        raise UserError(unreachable(path, "dataset")) from error
    except Exception as error:
        raise UserError(
            f"{path}: no such file or folder, and no hub dataset that can be loaded: {first_line(error)}"
        ) from error
    yield from number_rows(path, decoded_rows(dataset))
