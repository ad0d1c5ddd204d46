"""Checksums of files, written once they are complete and compared before they are used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from workbench.errors import UserError
from workbench.run.files import content_hash, flush, read_json, unreadable, write_text

FILE = "checksums.json"


def write_checksums(folder: Path) -> None:
    """Flush a folder's files to the disk and write their checksums, the mark that it is complete."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != FILE]
    for file in files:
        flush(file)
    write_text(folder / FILE, json.dumps(checksums(folder, files), indent=1) + "\n")


def checksums(folder: Path, files: Iterable[Path]) -> dict[str, str | None]:
    """Return the sha256 of files by their paths in the folder."""
    return {file.relative_to(folder).as_posix(): content_hash(file) for file in files}


def damage(folder: Path) -> str | None:
    """Return what is wrong with a folder that `write_checksums` completed, or None."""
    try:
        expected = read_json(folder / FILE, remedy="")
    except UserError:
        return "incomplete"
    return first_difference(folder, expected)


def first_difference(folder: Path, expected: dict[str, str | None]) -> str | None:
    """Return the first file that is missing or has other contents, and which of these; or None.

    Raises UserError for a file that cannot be read.
    """
    for name, digest in expected.items():
        try:
            found_digest = content_hash(folder / name) if (folder / name).is_file() else None
        except OSError as error:
            raise unreadable(folder / name, error, "restore it") from error
        if found_digest is None:
            return f"{name}: missing"
        if found_digest != digest:
            return f"{name}: its contents have changed (checksum mismatch)"
    return None
