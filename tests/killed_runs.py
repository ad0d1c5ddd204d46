"""Processes that train and are killed at a chosen moment."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from stopped_runs import trainer


def die(*arguments: Any) -> None:
    """Leave as a process does that is killed from outside."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_save(nth: int) -> None:
    """From now on, half of the `nth` checkpoint is written before the process is gone."""
    save, files = torch.save, []

    def half(state: Any, file: Path) -> None:
        files.append(file)
        save(state, file)
        if len(files) == nth:
            os.truncate(file, file.stat().st_size // 2)
            die()

    torch.save = half


def die_before_renaming(name: str) -> None:
    """From now on, a folder is whole under its temporary name when the process is gone."""
    replace = os.replace
    os.replace = lambda source, target: (die if Path(target).name == name else replace)(source, target)


def die_at_call(nth: int) -> None:
    """The process is gone at its `nth` call of a function, or return from one."""
    left = iter(range(nth))
    sys.setprofile(lambda *event: None if next(left, None) is not None else die())


def be_killed(root: Path, deaths: list[tuple[str, str, Any]]) -> None:
    """For each (folder, function, argument) a process that trains until it is killed as the function arranges."""
    for folder, function, argument in deaths:
        child = os.fork()
        if child == 0:
            run = trainer(root / folder)
            globals()[function](argument)
            run.train()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, (folder, function)
