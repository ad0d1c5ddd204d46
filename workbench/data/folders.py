"""Splits of folders: files named after them, clones of hub datasets, and datasets saved by `save_to_disk`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from workbench.data.formats import READERS, Row, decoded_rows, file_format, first_line, number_rows, read_file
from workbench.errors import UserError, shorten

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# What a clone of a hub dataset has beside its data.
METADATA = {"dataset_info.json", "dataset_infos.json"}
SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\..*")


def split_in_name(name: str) -> str | None:
    """Return the split that a file or folder is named after, None if it is named after none."""
    words = re.split("[^a-z]+", name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def matching_split(split: str, names: Iterable[str]) -> str | None:
    """Return the name that means a split: itself, or the only other word for it, such as dev for validation."""
    names = list(names)
    aliases = [name for name in names if SPLIT_WORDS.get(name, name) == SPLIT_WORDS.get(split, split)]
    return split if split in names else aliases[0] if len(aliases) == 1 else None


def read_folder(folder: Path, split: str) -> Iterator[Row]:
    """Yield the rows of a split; raises UserError if the folder does not have it, or part of it is missing."""
    if is_saved_dataset(folder):
        yield from _read_saved(folder, split)
    else:
        for file in split_files(folder, split):
            yield from read_file(file)


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def split_files(folder: Path, split: str) -> list[Path]:
    """Return the files of a split, in order; raises UserError if there is none, or they do not belong together."""
    splits = _declared_splits(folder) or _named_splits(folder)
    name = matching_split(split, splits)
    if name is None:
        raise UserError(f"{folder}: no split {split!r}; its files define the splits {', '.join(filter(None, splits))}")
    files = splits[name]
    if len({file_format(file) for file in files}) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{folder}: split {split} has several formats: {names}; keep one format, or use a single file")
    _check_shards(folder, files)
    return files


def _named_splits(folder: Path) -> dict[str, list[Path]]:
    """Return the files by the split in their names, or in those of their folders."""
    files = _data_files(folder)
    splits: dict[str, list[Path]] = {}
    for file in files:
        parts = file.relative_to(folder).parts
        splits.setdefault(next(filter(None, map(split_in_name, reversed(parts))), ""), []).append(file)
    # If no file is named after a split, all of them belong to one.
    return {"train": files} if list(splits) == [""] else splits


def _data_files(folder: Path) -> list[Path]:
    """Return the files of a folder, or where it has none, those of its folder data or of the folders of its splits."""
    files = sorted(file for file in folder.iterdir() if _is_data_file(file))
    if files:
        return files
    below = sorted(file for file in folder.rglob("*") if _is_data_file(file) and not _is_hidden(file, folder))
    parents = sorted({file.relative_to(folder).parts[0] for file in below})
    if not below:
        raise UserError(f"{folder}: the folder contains no {', '.join(READERS)} file")
    if parents != ["data"] and not all(map(split_in_name, parents)):
        raise UserError(
            f"{folder}: the folder contains no {', '.join(READERS)} file; set path to {', '.join(parents)} in it"
        )
    return below


def _is_data_file(file: Path) -> bool:
    return file.name not in METADATA and file_format(file) is not None and file.is_file()


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _declared_splits(folder: Path) -> dict[str, list[Path]]:
    """Return the files by split that the README of a hub dataset declares; none where it declares none."""
    entries = _readme_configs(folder)
    if not entries:
        return {}
    default = [entry for entry in entries if entry.get("default") or entry.get("config_name") == "default"]
    if len(entries) > 1 and not default:
        names = ", ".join(str(entry.get("config_name")) for entry in entries)
        raise UserError(f"{folder}: README.md declares several configurations: {names}; set path to the files of one")
    declared = (default or entries)[0].get("data_files")
    if isinstance(declared, str | list) and not any(isinstance(part, dict) for part in declared):
        declared = {"train": declared}
    if isinstance(declared, list):
        declared = {str(part.get("split", "train")): part.get("path") for part in declared if isinstance(part, dict)}
    if not isinstance(declared, dict):
        return {}
    splits = {str(split): _matching_files(folder, patterns) for split, patterns in declared.items()}
    return {split: files for split, files in splits.items() if files}


def _readme_configs(folder: Path) -> list[dict[str, Any]]:
    """Return the `configs` in the YAML at the start of README.md; none where it cannot be read as such."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    block = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        head = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError:  # the files may still be named after their splits
        return []
    configs = head.get("configs") if isinstance(head, dict) else None
    return [entry for entry in configs if isinstance(entry, dict)] if isinstance(configs, list) else []


def _matching_files(folder: Path, patterns: Any) -> list[Path]:
    """Return the files that patterns match; raises UserError for a pattern that leads out of the folder."""
    files: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        if not isinstance(pattern, str) or not pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise UserError(f"{folder}: README.md declares data_files {shorten(pattern)}; use a path inside the folder")
        files += sorted(file for file in folder.glob(pattern) if _is_data_file(file))
    return list(dict.fromkeys(files))


def _check_shards(folder: Path, files: list[Path]) -> None:
    """Raise UserError if one of the files NAME-00000-of-00002 and so on is missing."""
    shards: dict[tuple[str, int], int] = {}
    for file in files:
        match = SHARD.fullmatch(file.name)
        if match:
            key = (str(file.parent / match[1]), int(match[2]))
            shards[key] = shards.get(key, 0) + 1
    for (name, count), present in shards.items():
        if present != count:
            raise UserError(
                f"{folder}: {present} of the {count} files {Path(name).name}-*-of-{count:05} are there; add the rest"
            )


def _read_saved(folder: Path, split: str) -> Iterator[Row]:
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: cannot be read: {first_line(error)}") from error
    splits = dataset if isinstance(dataset, datasets.DatasetDict) else {"train": dataset}
    name = matching_split(split, map(str, splits))
    if name is None:
        raise UserError(f"{folder}: no split {split!r}; the dataset has {', '.join(map(str, splits))}")
    yield from number_rows(str(folder), decoded_rows(splits[name]))
