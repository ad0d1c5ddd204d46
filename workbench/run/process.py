"""A command as a process: quiet libraries, errors in one line, exit codes."""

from __future__ import annotations

import errno
import gc
import io
import logging
import os
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from workbench.errors import Failed, Interrupted, UserError, printable
from workbench.run.distributed import is_main_process, was_launched
from workbench.run.options import program

SECONDS_BETWEEN_LOOKS = 1.0
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED_PIPE = 128 + 13  # the exit code of a program that SIGPIPE ends; Windows does not define the signal


def run_recipe(recipe: Callable[[list[str]], None]) -> NoReturn:
    """Run a recipe and exit: 0, 1 if the result matches fail_on, 2 for a user error, 130 if interrupted."""
    open_closed_streams()
    follow_launcher()
    share_cores()
    quiet_libraries()
    print_utf8()
    try:
        recipe(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        where = "" if is_main_process() else f" (process {os.environ['RANK']})"
        print(f"error{where}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except Failed as failure:
        if is_main_process():
            print(printable(f"failed: {failure}"), file=sys.stderr, flush=True)
        sys.exit(1)
    except (Interrupted, KeyboardInterrupt) as interruption:
        if is_main_process():
            state = str(interruption) or "stopped; progress up to the last checkpoint is saved"
            print(f"{state}. To resume, run {command()}", file=sys.stderr, flush=True)
        sys.exit(130)
    except BrokenPipeError:
        exit_for_closed_pipe()
    except OSError as error:
        exit_for_lost_output(error)
    finally:
        # The interpreter collects garbage while it exits, which takes seconds over what the libraries hold.
        gc.freeze()
    sys.exit(0)


def exit_on_error(command: Callable[[list[str]], None]) -> NoReturn:
    """Run a command that is not a recipe and exit: 0, 2 for a user error, 130 if interrupted."""
    open_closed_streams()
    share_cores()
    quiet_libraries()
    print_utf8()
    try:
        command(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        exit_for_closed_pipe()
    except OSError as error:
        exit_for_lost_output(error)
    sys.exit(0)


def exit_for_lost_output(error: OSError) -> NoReturn:
    """Exit with code 2 and one line where a full disk takes no more of the output; raises any other error again."""
    if error.errno not in FULL_DISK or error.filename is not None:
        raise error
    with suppress(OSError):
        print(f"error: the output cannot be written: {error.strerror}; free some space", file=sys.stderr, flush=True)
    discard_output()
    sys.exit(2)


def discard_output() -> None:
    """Let the exit flush what is left of the output into nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_for_closed_pipe() -> NoReturn:
    """Exit as a program does whose reader, such as `head`, has closed the pipe."""
    discard_output()
    sys.exit(CLOSED_PIPE)


def follow_launcher() -> None:
    """End as on SIGTERM when `accelerate launch` has ended, which passes no signal on."""
    if not was_launched() or os.name == "nt":
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def share_cores() -> None:
    """Let threads that wait for each other give their core away, before torch starts them.

    By default they wait busily. With other work on the cores, those that wait then take the time of those that work
    (docs/performance.md has the measurement).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def quiet_libraries() -> None:
    """Turn off progress bars in logs, and library warnings that a user can do nothing about.

    It must run before the libraries are imported; environment variables that are already set take precedence.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # On import, bitsandbytes warns that an optional package of kernels is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # peft reads a property that transformers has renamed.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def open_closed_streams() -> None:
    """Send to nowhere what is printed to a standard stream that the process was started without, as by `>&-`.

    Left closed, the stream is None in Python, and its descriptor goes to the next file that is opened, in which
    whatever a library prints would end up.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:  # another file may have its descriptor by now
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, "w" if number else "r", encoding="utf-8"))


def print_utf8() -> None:
    """Print UTF-8, as in every file that the project writes; on Windows a pipe or a file would get another encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # The name of a file may have bytes that are not UTF-8; it must not hide the error that quotes it.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def command() -> str:
    """Return the command that resumes the run; with several processes, the launcher's options are not known here."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return "the same launch command again"
    return f"the same command again: {recipe_program()} {shlex.join(sys.argv[1:])}"


def recipe_program() -> str:
    """Return how the user started the recipe."""
    return program(f"recipes.{Path(sys.argv[0]).stem}")
