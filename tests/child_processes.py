"""Child processes that begin with everything imported, which takes a fresh one ten seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

SECONDS_TO_END = 20.0
"""A child that has not ended by then is killed, so that no test waits for ever."""


def fork(function: Callable[[], None], log: Path) -> int:
    """Call the function in a child process whose output goes to `log`; return its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        # They stay open where a child forks again and replaces them.
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, closefd=False)
        torch.set_num_threads(torch.get_num_threads())  # renews torch's pool of threads before several threads race to
        function()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)  # pytest goes on in the parent alone


def exit_code(child: int) -> int:
    """Wait for the child's end; return its exit code, or the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def end(child: int, seconds: float = SECONDS_TO_END) -> int:
    """Ask a forked child to end, kill it if it has not after `seconds`, and return its exit code."""
    os.kill(child, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return exit_code(child)


@contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Yield a command's process in a group of its own; at the end, whatever is left of the group is killed."""
    with subprocess.Popen(command, text=True, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
