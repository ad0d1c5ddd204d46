"""A small chain in a process of its own, what it leaves, and faults that are arranged there."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from child_processes import exit_code, fork
from small_runs import CHAIN, small

from workbench.run import cli
from workbench.run.process import run_recipe

NAME = "quickstart_gpt2"
# Events of Python's audit hooks that change a file; those of native code (safetensors, pyarrow) are not among them.
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "shutil.rmtree"}
VARYING = ("minutes", "seconds", "date", "commit")


def options(folder: Path) -> list[str]:
    """Return the options of a chain of all stages that saves often."""
    often = ("--sft.save_every", "1", "--reward.train.save_every", "30", "--ppo.checkpoint_every", "1")
    return small(NAME, folder, "--reward.model", "null", "--reward.train.data.limit", "320", *often)


def start_chain(folder: Path, log: Path, arrange: Callable[[], None] = lambda: None) -> int:
    """Start the chain in a child process, after `arrange`, with its output in `log`; return its process id."""
    log.unlink(missing_ok=True)

    def command() -> None:
        sys.argv = ["recipes/detox.py", *options(folder / "runs")]
        arrange()
        run_recipe(lambda argv: cli.launch(CHAIN, "", argv))

    return fork(command, log)


def run_chain(folder: Path, arrange: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Run the chain in a child process, after `arrange`; return its exit code (negative: signal) and its output."""
    log = folder / "log"
    return exit_code(start_chain(folder, log, arrange)), log.read_text(encoding="utf-8")


def outcome(folder: Path) -> dict[str, Any]:
    """Return the hashes of all weights that the chain left, and its results, without times and dates."""
    run = folder / "runs" / NAME
    weights = {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()
        for stage in ("sft", "reward", "ppo")
        for file in sorted((run / stage).glob("*.safetensors"))
    }
    results = json.loads((run / "evaluation" / "results.json").read_text(encoding="utf-8"))
    losses = {
        stage: json.loads((run / stage / "stage.json").read_text(encoding="utf-8"))["metrics"].get("loss")
        for stage in ("sft", "reward")
    }
    return {"weights": weights, "sets": without_times(results["sets"]), "losses": losses}


def without_times(value: Any) -> Any:
    """Return plain data without what depends on the clock."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if not any(word in key for word in VARYING)}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def on_change(folder: Path, act: Callable[[int], None]) -> Callable[[], None]:
    """Return an arrangement that calls `act` with its number before each change of a file in the folder."""

    def arrange() -> None:
        numbers = itertools.count(1)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if (is_write or event in CHANGES) and str(folder) in str(arguments[0]):
                act(next(numbers))

        sys.addaudithook(hook)

    return arrange


def kill_before_change(folder: Path, number: int) -> Callable[[], None]:
    """Return an arrangement that kills the process before its nth change of a file."""

    def act(current: int) -> None:
        if current == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_change(folder, act)


def kill_after(seconds: float) -> Callable[[], None]:
    """Return an arrangement that kills the process after so many seconds."""

    def arrange() -> None:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()

    return arrange


def limit_file_size(size: int) -> Callable[[], None]:
    """Return an arrangement under which no file can grow beyond a size, which fails as a full disk does."""

    def arrange() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return arrange
