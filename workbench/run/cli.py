"""Run the stages of a recipe: parse, plan, skip what is finished, time the rest, report errors in one line."""

from __future__ import annotations

import gc
import logging
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, Protocol

from workbench.config.derived import configured_stages
from workbench.config.help import help_text, key_help, requested_help
from workbench.config.names import PPO, REWARD, STAGES
from workbench.config.parsing import dump, parse
from workbench.config.schema import Config
from workbench.errors import Failed, Interrupted, UserError
from workbench.run.distributed import (
    is_main_process,
    print_once,
    report_idle_cores,
    reset_accelerate,
    wait_for_everyone,
)
from workbench.run.folder import Run, check_run, lock_run, open_run, prepare_folder
from workbench.run.reuse import copy_stage, reused_stages, with_reused_settings
from workbench.run.tracebacks import remove_traceback, with_location


class Plan(Protocol):
    """Everything that a stage loaded and checked before anything trains; its `run` uses the same objects."""

    @property
    def lines(self) -> list[str]:
        """Return what the stage is going to do, for --dry_run and the log."""
        ...


@dataclass(frozen=True)
class StageResult:
    """The part of stage.json that only the stage can supply."""

    inputs: dict[str, Any]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One recipe: a name, and its functions."""

    name: str
    is_configured: Callable[[Config], bool]
    """Whether the configuration has this stage."""
    plan: Callable[[Config], Any]
    """Load and check everything that the stage needs into a Plan; raises UserError for a configuration error."""
    run: Callable[[Run, Any], StageResult]
    """Do the work of the plan in `run.stage(name)`."""
    failure: Callable[[Run], str | None] = lambda run: None
    """Return why the finished stage ends the command with exit code 1, or None."""
    sections: tuple[str, ...] = ()
    """Sections of the configuration that the stage reads, for --help; default: the one named after it."""


def main(stages: Sequence[Stage], description: str) -> NoReturn:
    """Run the stages and exit: 0, 1 if the result matches fail_on, 2 for a user error, 130 if interrupted."""
    quiet_libraries()
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
            state = str(interruption) or "stopped; progress up to the last checkpoint is saved"
            print(f"{state}. To resume, run {command()}", file=sys.stderr, flush=True)
        sys.exit(130)
    except BrokenPipeError:
        exit_for_closed_pipe()
    finally:
        # The interpreter collects garbage while it exits, which takes seconds over what the libraries hold.
        gc.freeze()
    sys.exit(0)


def exit_on_error(command: Callable[[list[str]], None]) -> NoReturn:
    """Run a command that is not a recipe and exit: 0, 2 for a user error, 130 if interrupted."""
    quiet_libraries()
    try:
        command(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        exit_for_closed_pipe()
    sys.exit(0)


def exit_for_closed_pipe() -> NoReturn:
    """Exit as a program does whose reader, such as `head`, has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the exit flushes what is left into it
    sys.exit(128 + signal.SIGPIPE)


def launch(stages: Sequence[Stage], description: str, argv: list[str]) -> None:
    """Run or plan the stages that `argv` asks for."""
    key = requested_help(argv)
    if key is not None:
        prog = f"python -m recipes.{Path(sys.argv[0]).stem}"
        print_once(key_help(prog, key) if key else help_text(prog, description, sections_of(stages)))
        return
    config, options = parse(argv)
    if options.print_config:
        print_once(dump(config).rstrip())
        return
    config = with_reused_settings(config, options.force)
    stages = select_stages(stages, config, options.force)
    force = first_redone(config, options.force)
    if is_main_process():
        check_run(config, force)  # before the plans, which take long
    if config.track and find_spec(config.track) is None:
        raise UserError(f"track: {config.track} is not installed: python -m pip install {config.track}")
    reused = reused_stages(config)
    if options.dry_run:
        for stage in stages:
            if stage.name in reused:
                print_once(f"{stage.name}: reused from {reused[stage.name]}")
                continue
            with located_errors(None), garbage_collection_paused():
                plan = stage.plan(config)
            print_plan(stage, plan)
        return
    run = Run(Path(config.runs) / config.name, config)
    # All plans come first, so that an error in the last stage ends the command before the first one trains.
    to_do = [stage for stage in stages if not is_already_done(run, stage.name, force)]
    to_copy = {stage.name: reused[stage.name] for stage in to_do if stage.name in reused}
    if plan_names := [stage.name for stage in to_do if stage.name not in to_copy]:
        announce(f"loading libraries and data to plan {', '.join(plan_names)} ...")
    with located_errors(None), garbage_collection_paused():
        plans = {stage.name: stage.plan(config) for stage in to_do if stage.name not in to_copy}
    with ExitStack() as stack:
        if is_main_process():
            prepare_folder(run.folder)
            stack.enter_context(lock_run(run))
            open_run(config, force)
        wait_for_everyone()
        report_idle_cores()
        stack.enter_context(located_errors(run.folder))
        for stage in stages:
            if stage.name in to_copy:
                reuse(run, stage.name, to_copy[stage.name])
            elif run.finished(stage.name):
                report_skipped(stage, run)
            else:
                run_stage(stage, run, plans.pop(stage.name))


def announce(line: str) -> None:
    """Print to stderr what takes a while before the first result."""
    if is_main_process():
        print(line, file=sys.stderr, flush=True)


@contextmanager
def located_errors(run_folder: Path | None) -> Iterator[None]:
    """Add to a failure of the user's own code where it was raised; its traceback goes to the run folder."""
    try:
        yield
    except UserError as error:
        raise with_location(error, run_folder) from error.__cause__


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause the cycle collector, which otherwise takes a sixth of the time to import the libraries."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def select_stages(stages: Sequence[Stage], config: Config, force: str | None) -> list[Stage]:
    """Return the stages that the configuration has; raises UserError if it has none, or lacks the one to redo."""
    selected = [stage for stage in stages if stage.is_configured(config)]
    configured = configured_stages(config)
    if not selected:
        raise UserError(f"{stages[0].name}: the configuration has no such stage; it has {', '.join(configured)}")
    names = [stage.name for stage in selected]
    if force and first_redone(config, force) not in names:
        if first_redone(config, force) not in configured:
            raise UserError(f"--force {force}: the configuration has no such stage; it has {', '.join(configured)}")
        raise UserError(f"--force {force}: this command runs {', '.join(names)}; use recipes.{force} or recipes.detox")
    return selected


def first_redone(config: Config, force: str | None) -> str | None:
    """Return the stage that --force redoes first; a reward that is not trained is used first by PPO."""
    return PPO if force == REWARD and REWARD not in configured_stages(config) else force


def sections_of(stages: Sequence[Stage]) -> list[str]:
    """Return the sections of the configuration that the stages read."""
    return [section for stage in stages for section in stage.sections or (stage.name,)]


def is_already_done(run: Run, stage: str, force: str | None) -> bool:
    """Return whether the stage is finished and `force` does not redo it."""
    return run.finished(stage) and (force is None or STAGES.index(stage) < STAGES.index(force))


def print_plan(stage: Stage, plan: Plan) -> None:
    """Print what the stage is going to do; each line begins with the name of the stage, or with one of its keys."""
    for line in plan.lines:
        print_once(line if line.startswith(f"{stage.name}.") else f"{stage.name}: {line}")


def report_skipped(stage: Stage, run: Run) -> None:
    """Print that the stage is finished, and its report if it has one."""
    print_once(f"{stage.name}: already finished, skipping (--force {stage.name} redoes it)")
    report = run.folder / stage.name / "report.md"
    if report.is_file():
        print_once("\n" + report.read_text())
    fail_if_asked(stage, run)


def reuse(run: Run, stage: str, folder: Path) -> None:
    """Copy the stage from another run."""
    if is_main_process():
        copy_stage(run, stage, folder)
    wait_for_everyone()
    print_once(f"{stage}: reused from {folder} -> {run.folder / stage}")


def run_stage(stage: Stage, run: Run, plan: Plan) -> None:
    """Run one stage and write its record."""
    print_plan(stage, plan)
    start = time.monotonic()
    result = stage.run(run, plan)
    minutes = (time.monotonic() - start) / 60
    if is_main_process():
        run.finish(stage.name, minutes=minutes, inputs=result.inputs, metrics=result.metrics)
        remove_traceback(run.folder)
    wait_for_everyone()
    print_once(f"{stage.name}: finished in {minutes:.1f} min -> {run.folder / stage.name}")
    reset_accelerate()
    fail_if_asked(stage, run)


def fail_if_asked(stage: Stage, run: Run) -> None:
    """Raise Failed if the configuration says to fail on the finished stage's result."""
    reason = stage.failure(run)
    if reason is not None:
        raise Failed(reason)


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


def command() -> str:
    """Return the command that resumes the run; with several processes, the launcher's options are not known here."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return "the same `accelerate launch` command again"
    return "the same command again: " + shlex.join(["python", "-m", f"recipes.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
