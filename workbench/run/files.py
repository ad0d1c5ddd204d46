"""Write files and folders atomically, and hash their contents."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from workbench.errors import UserError, suggestion

# How Rust's libraries quote an error of the operating system.
OS_ERROR = re.compile(r"\(os error (\d+)\)")
# Of torch's own writers: "unexpected pos" is a file that is shorter than it should be.
WRITER_WORDS = ("space", "large", "write", "writing", "unexpected pos", "Parent directory", "open file failed")
# What to do about a file that is there and cannot be read: what is in it is not lost.
UNTOUCHED = "make it readable; nothing has to be redone"
MODEL_SUFFIXES = (".safetensors", ".bin", ".pt", ".json", ".txt", ".model", ".jinja")


def missing_path(path: str) -> str:
    """Return the message for a path that does not exist: its first missing part and the closest existing name."""
    missing = Path(path).expanduser()
    while not missing.parent.exists():
        missing = missing.parent
    siblings = sorted(name for name in os.listdir(missing.parent) if name[0] != ".") if missing.parent.is_dir() else []
    hint = suggestion(missing.name, siblings, str(missing).removesuffix(missing.name))
    if missing.parent == Path() and "did you mean" not in hint:
        hint = ""  # whatever else is in the working directory is no help
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not path.isascii():
        hint = f"; this locale's names of files are {encoding}: set the environment variable PYTHONUTF8=1"
    return f"{path}: no such file or folder; {missing.parent.resolve()} has no {missing.name!r}{hint}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UserError if the block fails to write, in whichever type a library reports that."""
    try:
        yield
    except Exception as error:
        reason = write_failure(error)
        if reason is None:
            raise
        raise UserError(
            f"{path}: cannot be written: {reason}; the previous contents are unchanged; "
            f"{write_remedy(error)}, then run the same command again"
        ) from error


def write_remedy(error: Exception) -> str:
    """Return what to do about a failure to write."""
    if isinstance(error, FileExistsError | IsADirectoryError | NotADirectoryError):
        return "move away what is in its place"
    if isinstance(error, PermissionError):
        return "make it writable for this user or choose another folder"
    return "free some space or choose another folder"


def write_failure(error: Exception) -> str | None:
    """Return why a write failed, or None for another error.

    torch reports a full disk as a RuntimeError, safetensors as a SafetensorError, and tokenizers as a plain Exception
    that quotes the operating system.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error).splitlines()[0]
    text = str(error)
    code = OS_ERROR.search(text)
    if code is not None:
        return os.strerror(int(code[1]))
    is_write = type(error) is RuntimeError and any(words in text for words in WRITER_WORDS)
    return text.splitlines()[0] if is_write else None


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically, or leave it unchanged and raise UserError.

    A lone surrogate, which UTF-8 lacks, becomes an escape such as \\ud800, by which JSON means the same character.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        try:
            with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def append_text(path: Path, text: str) -> None:
    """Append to a file and return once the text is on disk, so that no checkpoint is ever ahead of its log."""
    with writing(path), path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_json(file: Path, *, remedy: str) -> dict[str, Any]:
    """Return the object in a JSON file; raises UserError, with the remedy, for a missing or corrupt one."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(file, error, remedy) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: corrupt; {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}: corrupt; {remedy}")
    return value


def unreadable(file: Path, error: OSError, remedy: str) -> UserError:
    """Return the error for a file that cannot be read; where only this user may not, `remedy` would be too much."""
    if isinstance(error, PermissionError):
        remedy = "make it readable for this user"
    return UserError(f"{file}: cannot be read: {error.strerror}; {remedy}")


def is_present(file: Path) -> bool:
    """Return whether a file is there; raises UserError where that cannot be told, as in another user's folder.

    Path.is_file raises OSError there, or takes the file for missing, depending on the version of Python.
    """
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a name that no file can have
        return False
    except OSError as error:
        raise unreadable(file, error, UNTOUCHED) from error


def read_json_lines(file: Path) -> list[Any]:
    """Return the values of a JSON Lines file, without one that is just being written; none where there is no file.

    Only a newline ends a line: str.splitlines would also split at separators (U+2028, U+0085) inside texts. Raises
    ValueError for a corrupt line.
    """
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    return [json.loads(line) for line in lines]


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `path` if the block succeeds, and is removed if it fails."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield partial
            set_mode(partial, 0o777 & ~read_umask())
            for file in partial.rglob("*"):  # a machine crash must not leave the new name on unwritten data
                if file.is_file():
                    follow_umask(file)
                    flush(file)
            replaced = set_aside(path)
            os.replace(partial, path)
            if replaced is not None:
                shutil.rmtree(replaced, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def follow_umask(file: Path) -> None:
    """Let others read a file if the user's umask does; some writers (safetensors) make it the user's alone."""
    if file.stat().st_nlink == 1:  # else it belongs to another run, too
        set_mode(file, 0o666 & ~read_umask())


def set_mode(path: Path, mode: int) -> None:
    """Set who may read a file or folder; another user's, or one where the file system has no modes, keeps its own."""
    with suppress(OSError):
        path.chmod(mode)


def read_umask() -> int:
    """Return the umask, which can be read only by setting it."""
    umask = os.umask(0o077)  # what another thread creates meanwhile is too private rather than too public
    os.umask(umask)
    return umask


def flush(file: Path) -> None:
    """Return once a file's contents are on the disk."""
    # Windows flushes only a file that is open for writing; elsewhere a linked file may be read-only.
    with file.open("r+b" if os.name == "nt" else "rb") as stream:
        os.fsync(stream.fileno())


def set_aside(path: Path) -> Path | None:
    """Move a folder, whole, into a new hidden one, and return that; None where it does not exist."""
    if not path.is_dir():
        return None
    hidden = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        os.replace(path, hidden / path.name)
    except OSError:
        hidden.rmdir()
        raise
    return hidden


def remove_folder(path: Path) -> None:
    """Remove a folder, so that a kill leaves none of it under its name; raises UserError where that fails."""
    try:
        hidden = set_aside(path)
        if hidden is not None:
            shutil.rmtree(hidden)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be removed: {error.strerror}; remove it yourself, then run the same command again"
        ) from error


def remove_partial(folder: Path, prefix: str) -> None:
    """Remove the hidden folders with this prefix that killed processes were still writing, or already removing."""
    for partial in folder.glob(f".{prefix}*"):
        shutil.rmtree(partial, ignore_errors=True)


def content_hash(path: Path) -> str | None:
    """Return the sha256 of a file, or of a model folder's weights, configuration and tokenizer; None if it is neither.

    Whatever else a run writes next to a model (metrics, reports, stage.json) is not hashed.
    """
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    if not path.is_dir():
        return None
    files = [file for file in sorted(path.iterdir()) if is_model_file(file)]
    lines = [f"{file.name} {content_hash(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None


def is_model_file(path: Path) -> bool:
    """Return whether a file is part of the model in its folder, rather than of the record of the run that made it."""
    is_record = path.name in ("stage.json", "begun.json") or path.stem == "report"
    return path.is_file() and path.suffix in MODEL_SUFFIXES and not is_record
