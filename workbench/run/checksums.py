"""Checksums of files, written once they are complete and compared before they are used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from workbench.errors import UserError
from workbench.run.files import UNTOUCHED, content_hash, flush, is_present, read_json, unreadable, write_text

FILE = "checksums.json"


def write_checksums(folder: Path) -> None:
    """Flush a folder's files to the disk and write their checksums, the mark that it is complete."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != FILE]
    for file in files:
        flush(file)
    write_text(folder / FILE, json.dumps(checksums(folder, files), indent=1) + "\n")


def checksums(folder: Path, files: Iterable[Path]) -> dict[str, str | None]:
    """Return the sha256 of files by their paths in the folder; raises UserError for one that cannot be read."""
    return {file.relative_to(folder).as_posix(): readable_hash(file, UNTOUCHED) for file in files}


def readable_hash(file: Path, remedy: str) -> str | None:
    """Return the sha256 of a file, None where there is none; raises UserError, with the remedy, if it is unreadable."""
    try:
        return content_hash(file) if is_present(file) else None
    except OSError as error:
        raise unreadable(file, error, remedy) from error


def damage(folder: Path) -> str | None:
    """Return what is wrong with a folder that `write_checksums` completed, or None.

    Raises UserError for a file that cannot be read, which says nothing about its contents.
    """
    if not is_present(folder / FILE):
        return "incomplete"
    try:
        expected = read_json(folder / FILE, remedy=UNTOUCHED)
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return "incomplete"
    return first_difference(folder, expected, UNTOUCHED)


def first_difference(folder: Path, expected: dict[str, str | None], remedy: str = "restore it") -> str | None:
    """Return the first file that is missing or has other contents, and which of these; or None.

    Raises UserError, with the remedy, for a file that cannot be read.
    """
    for name, digest in expected.items():
        found_digest = readable_hash(folder / name, remedy)
        if found_digest is None:
            return f"{name}: missing"
        if found_digest != digest:
            return f"{name}: its contents have changed (checksum mismatch)"
    return None
