"""Processes that train and are killed at a chosen moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
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


def die_after(seconds: float) -> None:
    """Arrange for the process to be killed after so many CPU seconds, wherever it is by then."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def train_in_child(folder: Path, changes: dict[str, Any], arrange: Callable[[], None]) -> tuple[int, float]:
    """Call `arrange` and train in a child process; return its exit code and CPU seconds."""
    child = os.fork()
    if child == 0:
        arrange()
        trainer(folder, **changes).train()
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def be_killed(root: Path, deaths: list[tuple[str, str, Any]], changes: dict[str, Any]) -> None:
    """Train once for each (folder, function, argument), in a process that is killed as the function arranges.

    The argument of die_after is a fraction of the time that an uninterrupted run takes.
    """
    code, seconds = train_in_child(root / "uninterrupted", changes, lambda: None)
    assert code == 0
    for folder, function, argument in deaths:
        value = argument * seconds if function == "die_after" else argument
        arrange = partial(globals()[function], value)
        code, _ = train_in_child(root / folder, changes, arrange)
        assert code in (-signal.SIGKILL, -signal.SIGPROF), (folder, function, code)
