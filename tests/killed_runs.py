"""Runs that are killed at a chosen moment."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from child_processes import exit_code, fork
from stopped_runs import trainer


def die(*arguments: Any) -> None:
    """End this process as a kill from outside does."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_save(nth: int) -> None:
    """Arrange for the process to be killed when half of the `nth` checkpoint is written."""
    save, files = torch.save, []

    def half(state: Any, file: Path) -> None:
        files.append(file)
        save(state, file)
        if len(files) == nth:
            os.truncate(file, file.stat().st_size // 2)
            die()

    torch.save = half


def die_before_renaming(name: str) -> None:
    """Arrange for the process to be killed when a folder is whole under its temporary name."""
    replace = os.replace
    os.replace = lambda source, target: (die if Path(target).name == name else replace)(source, target)


def die_at_call(number: int) -> None:
    """Arrange for the process to be killed at the `number`th call or return of a function, wherever that is."""
    numbers = itertools.count(1)
    sys.setprofile(lambda frame, event, argument: die() if next(numbers) == number else None)


def number_of_calls(root: Path, changes: dict[str, Any]) -> int:
    """Return how many calls and returns die_at_call counts in a run that nothing interrupts."""

    def train() -> None:
        run, numbers = trainer(root / "uninterrupted", **changes), itertools.count()
        sys.setprofile(lambda frame, event, argument: next(numbers) and None)
        run.train()
        sys.setprofile(None)
        (root / "calls").write_text(str(next(numbers)))

    assert exit_code(fork(train, root / "log")) == 0, (root / "log").read_text()
    return int((root / "calls").read_text())


def be_killed(folder: Path, arrange: Callable[[Any], None], moment: Any, changes: dict[str, Any]) -> None:
    """Train in a process that is killed at the moment for which `arrange` provides."""

    def train() -> None:
        run = trainer(folder, **changes)
        arrange(moment)
        run.train()

    log = folder.with_suffix(".log")
    assert exit_code(fork(train, log)) == -signal.SIGKILL, f"{folder}: {log.read_text()}"
