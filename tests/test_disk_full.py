"""A disk that is full while a library writes is the one line of `writing`, in whatever type the library reports it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from workbench.errors import UserError
from workbench.models.loading import save_model
from workbench.run.files import append_text, atomic_folder, write_failure, write_text, writing

LIMIT = 4096
BIG = torch.zeros(LIMIT)


@contextmanager
def small_files_only() -> Iterator[None]:
    """Let no file of this process grow above LIMIT bytes; Python ignores the signal, so that writers get an error."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer that is larger than the limit."""
    tokenizer = tiny.tokenizer("gpt2")
    tokenizer.add_tokens([f"token{number}" for number in range(1000)])
    tokenizer.save_pretrained(folder)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "safetensors": lambda folder: save_file({"weight": BIG}, folder / "model.safetensors"),
    "transformers": lambda folder: save_model(tiny.model("gpt2"), folder),
    "peft": lambda folder: save_model(tiny.policy("gpt2", lora=True).model, folder),
    "torch": lambda folder: torch.save(BIG, folder / "state.pt"),
    "tokenizers": save_tokenizer,
    "text": lambda folder: (folder / "text").write_text("x" * 3 * LIMIT, encoding="utf-8"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize("name", WRITERS)
def test_every_library_that_writes_weights_gives_the_same_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised, small_files_only(), atomic_folder(tmp_path / "stage") as folder:
        WRITERS[name](folder)
    assert str(raised.value).startswith(f"{tmp_path / 'stage'}: cannot be written: ")
    assert "free some space or choose another folder, then run the same command again" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [], "nothing is left of it"


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize("write", [write_text, append_text])
def test_our_own_writers_do_too(write: Callable[[Path, str], None], tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write(file, "before\n")
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written: File too large"), small_files_only():
        write(file, "x" * 3 * LIMIT)
    assert file.read_bytes().startswith(b"before\n")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), os.strerror(28)),
        (Exception("No space left on device (os error 28)"), os.strerror(28)),
        (OSError(28, "No space left on device", "x"), "No space left on device"),
        (OSError("Error writing bytes to file"), "Error writing bytes to file"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "[enforce fail at"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "PytorchStreamWriter"),
        (RuntimeError("Parent directory x does not exist."), "Parent directory x does not exist."),
    ],
)
def test_what_a_full_disk_looks_like(error: Exception, reason: str) -> None:
    assert str(write_failure(error)).startswith(reason)


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while deserializing header: incomplete metadata"),
        ValueError("not enough space in the argument list"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        torch.OutOfMemoryError("out of memory: too large"),
    ],
)
def test_other_errors_are_not_taken_for_one(error: Exception) -> None:
    assert write_failure(error) is None
    with pytest.raises(type(error)), writing(Path("x")):
        raise error
