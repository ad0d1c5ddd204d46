"""What every recipe does around its stage: parse, plan, skip what is finished, time it, report mistakes in one line."""

from __future__ import annotations

import gc
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

from workbench.config import Config
from workbench.config_file import make_parser, parse
from workbench.errors import Failed, Interrupted, UserError
from workbench.runs import Run, only_one, open_run, prepare_folder

# The other processes wait while the main one judges an evaluation's answers, where torch would give up after ten
# minutes (GPUs) or thirty.
LONGEST_WAIT = timedelta(days=7)


@dataclass(frozen=True)
class Stage:
    """One recipe: a name, and its functions."""

    name: str
    wanted: Callable[[Config], bool]
    """Whether the configuration has this stage."""
    plan: Callable[[Config], list[str]]
    """Lines for --dry_run: what would be loaded, trained and predicted; raises UserError like the real run."""
    run: Callable[[Run], dict[str, Any]]
    """Do the work in `run.stage(name)` and return {"inputs": ..., "metrics": ...} for stage.json."""
    failed: Callable[[Run], str | None] = lambda run: None
    """Why the finished stage shall end the command with exit code 1, if it shall."""


def main(stages: Sequence[Stage], description: str) -> NoReturn:
    """Run the stages and leave with 0, 1 for a result that was asked to fail, 2 for a mistake, 130 when interrupted."""
    calm_libraries()
    try:
        launch(stages, description, sys.argv[1:])
    except UserError as error:
        where = "" if is_main_process() else f" (process {os.environ['RANK']})"
        print(f"error{where}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except Failed as failure:
        if is_main_process():
            print(f"failed: {failure}", file=sys.stderr, flush=True)
        sys.exit(1)
    except (Interrupted, KeyboardInterrupt) as interruption:
        if is_main_process():
            saved = str(interruption) or "stopped before the next checkpoint; the last one is kept"
            print(f"{saved}. To go on, run the same command again: {command()}", file=sys.stderr, flush=True)
        sys.exit(130)
    sys.exit(0)


def leave_with(command: Callable[[list[str]], None]) -> NoReturn:
    """Run a command that is no recipe and leave with 0, 2 for a user's mistake, 130 when interrupted."""
    calm_libraries()
    try:
        command(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def launch(stages: Sequence[Stage], description: str, argv: list[str]) -> None:
    """Run or plan the stages that `argv` asks for."""
    config, options = parse(make_parser(f"python -m recipes.{Path(sys.argv[0]).stem}", description), argv)
    wanted = [stage for stage in stages if stage.wanted(config)]
    if not wanted:
        raise UserError(f"{stages[0].name}: the configuration has no such stage")
    names = [stage.name for stage in wanted]
    if options.force and options.force not in names:
        raise UserError(
            f"--force {options.force}: only {', '.join(names)} would run here; "
            f"use recipes.{options.force} or recipes.detox"
        )
    if config.track and find_spec(config.track) is None:
        raise UserError(f"track: {config.track} is not installed: python -m pip install {config.track}")
    if options.dry_run:
        for stage in wanted:
            for line in stage.plan(config):
                print(f"{stage.name}: {line}")
        return
    # A mistake in the last stage's settings is found before the first stage trains, and before anything is written.
    with redirect_stdout(StringIO()):
        for stage in wanted:
            stage.plan(config)
    run = Run(Path(config.runs) / config.name, config)
    with ExitStack() as stack:
        if is_main_process():
            prepare_folder(run.folder)
            stack.enter_context(only_one(run))
            open_run(config, options.force)
        wait_for_everyone()
        work(wanted, run)


def work(stages: Sequence[Stage], run: Run) -> None:
    """Do the stages that are not finished, one after the other."""
    hint_at_idle_cores()
    for stage in stages:
        if run.finished(stage.name):
            say(f"{stage.name}: finished before, skipped (--force {stage.name} redoes it)")
            report = run.folder / stage.name / "report.md"
            if report.is_file():
                say("\n" + report.read_text())
            fail_if_asked(stage, run)
            continue
        start = time.monotonic()
        result = stage.run(run)
        minutes = (time.monotonic() - start) / 60
        if is_main_process():
            run.finish(stage.name, minutes=minutes, inputs=result["inputs"], metrics=result["metrics"])
        wait_for_everyone()
        say(f"{stage.name}: finished in {minutes:.1f} min -> {run.folder / stage.name}")
        reset_accelerate()
        fail_if_asked(stage, run)


def fail_if_asked(stage: Stage, run: Run) -> None:
    """Raises Failed where the finished stage's result shall be the command's."""
    reason = stage.failed(run)
    if reason is not None:
        raise Failed(reason)


def hint_at_idle_cores() -> None:
    """Say so when `accelerate launch`, as it does unless told otherwise, left a CPU run one thread of several cores."""
    import torch

    cores = (os.cpu_count() or 1) // int(os.environ.get("WORLD_SIZE", "1"))
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1" and cores > 1 and not torch.cuda.is_available():
        say(
            f"note: one thread of {cores} cores in use; "
            f"accelerate launch --num_cpu_threads_per_process {cores} uses all"
        )


def wait_for_everyone() -> None:
    """Meet the other processes; a stage must find what the one before it wrote."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # The first state decides for all that come after it, and only later ones would look for this flag by themselves.
    cpu, started = parse_flag_from_env("ACCELERATE_USE_CPU"), os.environ.get("WORLD_SIZE", "1")
    state = PartialState(cpu=cpu, timeout=LONGEST_WAIT)
    if state.num_processes != int(started):
        raise UserError(
            f"launch: {started} processes were started, but there is no GPU for them to meet on; "
            "for processes on CPUs put ACCELERATE_USE_CPU=true before the command"
        )
    state.wait_for_everyone()


def calm_libraries() -> None:
    """Lines instead of bars in a log, and no library's notes that a user can do nothing about.

    Set before the libraries are imported; what the environment says already is kept.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # bitsandbytes looks for a package of kernels that it can do without, on import.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # peft reads a property that transformers renamed.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def say(line: str) -> None:
    """Print a line once, whatever the number of processes."""
    if is_main_process():
        print(line, flush=True)


def is_main_process() -> bool:
    """Known from the launcher's environment, so that it can be asked before anything is loaded."""
    return os.environ.get("RANK", "0") == "0"


def reset_accelerate() -> None:
    """Forget the trainer's global state, so that the next stage sets its own precision and plugins."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()
    gc.collect()


def command() -> str:
    """The command to type again; one that was launched for several processes is launched as before."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return "launched as before"
    return shlex.join(["python", "-m", f"recipes.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
