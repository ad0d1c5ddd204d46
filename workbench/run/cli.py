"""Run the stages of a recipe: parse, plan, skip what is finished, time the rest, report errors in one line."""

from __future__ import annotations

import gc
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, Protocol

from workbench.config.derived import configured_stages
from workbench.config.help import help_text, key_help, requested_help
from workbench.config.names import PPO, REWARD, STAGES, TUNING
from workbench.config.parsing import dump, parse
from workbench.config.schema import Config
from workbench.errors import Failed, UserError, printable_lines
from workbench.run.distributed import (
    fail_with_main,
    is_main_process,
    planned_on_cpu,
    prepare_launch,
    print_once,
    report_idle_cores,
    reset_accelerate,
    wait_for_everyone,
)
from workbench.run.estimates import earlier_runs, expected_seconds
from workbench.run.folder import (
    Run,
    check_inputs,
    check_run,
    has_other_methods,
    lock_run,
    open_run,
    prepare_folder,
    redone_stages,
)
from workbench.run.library_settings import library_settings_restored
from workbench.run.packages import check_not_hidden
from workbench.run.process import recipe_program, run_recipe
from workbench.run.progress import Following, followed_by
from workbench.run.reuse import copy_stage, reused_stages, with_reused_settings
from workbench.run.stage_record import Hashes, Origin, changes, check_begun
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
    outcome: Callable[[Run], list[str]] = lambda run: []
    """Return in a few lines what the finished stage found, for a command that skips it."""
    data: Callable[[Config], dict[str, Any]] = lambda config: {}
    """Return the path and content hash of the data that the stage reads, by key."""
    earlier: Callable[[Run, Any], list[str]] = lambda run, plan: []
    """Return lines on the parts of the plan that an earlier launch has done."""
    sections: tuple[str, ...] = ()
    """Sections of the configuration that the stage reads, for --help; default: the one named after it."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage's plan, and the hashes of its data from before the plan read it."""

    plan: Any
    data: Hashes


def main(stages: Sequence[Stage], description: str) -> NoReturn:
    """Run the stages that the command line asks for, and exit."""
    run_recipe(lambda argv: launch(stages, description, argv))


def launch(stages: Sequence[Stage], description: str, argv: list[str]) -> None:
    """Run or plan the stages that `argv` asks for."""
    parsed = read_command_line(argv, description, sections_of(stages))
    if parsed is None:
        return
    config, options = parsed
    if options.dry_run:
        dry_run(stages, config, options.force)
    else:
        execute(stages, config, options.force)


def read_command_line(argv: list[str], description: str, sections: list[str]) -> tuple[Config, Namespace] | None:
    """Return the configuration and the command's own options; None where help or the configuration was printed."""
    check_not_hidden()
    key = requested_help(argv)
    if key is not None:
        program = recipe_program()
        print_once(key_help(program, key) if key else help_text(program, description, sections))
        return None
    config, options = parse(argv)
    if options.print_config:
        print_once(dump(config).rstrip())
        return None
    return config, options


def dry_run(stages: Sequence[Stage], config: Config, force: str | None) -> None:
    """Load and check everything that the stages need, and print their plans."""
    print_reused(config)
    for stage, plan in plan_stages(stages, config, force):
        print_plan(stage, plan)


def plan_stages(stages: Sequence[Stage], config: Config, force: str | None) -> Iterator[tuple[Stage, Plan]]:
    """Yield each stage that no other run supplies with its plan; raises UserError for what a run would refuse."""
    stages, config, force = prepare(stages, config, force)
    reused = reused_stages(config)
    for stage in stages:
        if stage.name not in reused:
            yield stage, make_plan(stage, config, force).plan


def make_plan(stage: Stage, config: Config, force: str | None) -> PlannedStage:
    """Return a stage's plan; raises UserError for what a run would refuse."""
    data = stage.data(config)  # first: what is read afterwards is this, or `begin` notices
    run = Run(Path(config.runs) / config.name, config)
    # On every process: the others would wait for one that failed alone.
    if not run.finished(stage.name) and stage.name not in redone_stages(force):
        check_begun(run.folder, stage.name, Origin(data=data))
    with located_errors(None), garbage_collection_paused(), planned_on_cpu():
        plan = stage.plan(config)
        if stage.name not in redone_stages(force):
            plan.lines.extend(stage.earlier(run, plan))
        return PlannedStage(plan, data)


def prepare(stages: Sequence[Stage], config: Config, force: str | None) -> tuple[Sequence[Stage], Config, str | None]:
    """Return the configured stages, the configuration with reused settings, and the first stage to redo.

    Raises UserError for what can be refused before anything is loaded.
    """
    prepare_launch(config)
    if config.sweep is not None:
        raise UserError("sweep: this command runs one reward; use recipes.sweep, or leave sweep out")
    if config.compare is not None:
        raise UserError("compare: this command runs one algorithm; use recipes.compare, or leave compare out")
    config = with_reused_settings(config, force)
    stages = select_stages(stages, config, force)
    force = first_redone(config, force)
    if is_main_process():
        check_run(config, force)
        run = Run(Path(config.runs) / config.name, config)
        for stage in stages:
            if is_already_done(run, stage.name, force):
                check_inputs(run, stage.name, stage.data(config))
    if config.track and find_spec(config.track) is None:
        raise UserError(f"track: {config.track} is not installed: python -m pip install {config.track}")
    return stages, config, force


def execute(stages: Sequence[Stage], config: Config, force: str | None) -> None:
    """Run the stages that are not finished; `force` redoes that stage and those after it."""
    stages, config, force = prepare(stages, config, force)
    reused = reused_stages(config)
    run = Run(Path(config.runs) / config.name, config)
    # All plans come first, so that an error in the last stage ends the command before the first one trains.
    to_do = [stage for stage in stages if not is_already_done(run, stage.name, force) and stage.name not in reused]
    # A stage alone takes up the reused stages before it, too.
    to_copy = {stage: folder for stage, folder in reused.items() if not is_already_done(run, stage, force)}
    if not to_do and not to_copy:  # nothing is written: the folder may be someone else's
        for stage in stages:
            report_skipped(stage, run)
        return
    for stage in stages:
        if stage not in to_do and stage.name not in reused:
            run.verified_record(stage.name)  # before anything trains on it
    if to_do:
        announce(f"loading libraries and data to plan {', '.join(stage.name for stage in to_do)} ...")
    plans = {stage.name: make_plan(stage, config, force) for stage in to_do}
    with ExitStack() as stack:
        if is_main_process():
            prepare_folder(run.folder)
            stack.enter_context(lock_run(run))
            open_run(config, force)
        wait_for_everyone()
        report_idle_cores()
        stack.enter_context(located_errors(run.folder))
        for name, folder in to_copy.items():
            reuse(run, name, folder)
        earlier = earlier_runs(config) if len(plans) > 1 else []
        for stage in stages:
            if stage.name in to_copy:
                continue
            if run.finished(stage.name):
                run.check_origin(stage.name)  # an earlier stage may just have been redone
                report_skipped(stage, run)
                continue
            planned = plans.pop(stage.name)
            with followed_by(Following(list(plans), expected_seconds(config, list(plans), earlier))):
                run_stage(stage, run, planned)


def announce(line: str) -> None:
    """Print to stderr what takes a while before the first result."""
    if is_main_process():
        print(printable_lines(line), file=sys.stderr, flush=True)


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
    """Return whether the stage is finished, and neither `force` nor a change of its methods redoes it."""
    if not run.finished(stage) or (force is not None and STAGES.index(stage) >= STAGES.index(force)):
        return False
    return stage != TUNING or not has_other_methods(run)


def print_plan(stage: Stage, plan: Plan) -> None:
    """Print what the stage is going to do; each line begins with the name of the stage, or with one of its keys."""
    for line in plan.lines:
        print_once(line if line.startswith(f"{stage.name}.") else f"{stage.name}: {line}")


def print_reused(config: Config) -> None:
    """Print which stages other runs supply."""
    for name, folder in reused_stages(config).items():
        print_once(f"{name}: reused from {folder}")


def report_skipped(stage: Stage, run: Run) -> None:
    """Print that the stage is finished, and what it found."""
    print_once(f"{stage.name}: already finished, skipping (--force {stage.name} redoes it)")
    for line in stage.outcome(run):
        print_once(f"{stage.name}: {line}")
    fail_if_asked(stage, run)


def reuse(run: Run, stage: str, folder: Path) -> None:
    """Copy the stage from another run."""
    if is_main_process():
        copy_stage(run, stage, folder)
    wait_for_everyone()
    print_once(f"{stage}: reused from {folder} -> {run.folder / stage}")


def run_stage(stage: Stage, run: Run, planned: PlannedStage) -> None:
    """Run one stage and write its record."""
    print_plan(stage, planned.plan)
    start, origin = time.monotonic(), Origin()
    with fail_with_main():
        if is_main_process():
            origin = begin(stage, run, planned.data)
    with library_settings_restored():
        result = stage.run(run, planned.plan)
    minutes = (time.monotonic() - start) / 60
    if is_main_process():
        run.finish(stage.name, minutes=minutes, inputs=result.inputs, metrics=result.metrics, origin=origin)
        remove_traceback(run.folder)
    wait_for_everyone()
    print_once(f"{stage.name}: finished in {minutes:.1f} min -> {run.folder / stage.name}")
    reset_accelerate()
    fail_if_asked(stage, run)


def begin(stage: Stage, run: Run, data: Hashes) -> Origin:
    """Return what the stage is made from, noted in its folder; raises UserError if its data has changed."""
    for key, path in changes(data, stage.data(run.config)):
        raise UserError(f"{key}: {path} has changed since its rows were read; run the same command again")
    return run.begin(stage.name, data)


def fail_if_asked(stage: Stage, run: Run) -> None:
    """Raise Failed if the configuration says to fail on the finished stage's result."""
    reason = stage.failure(run)
    if reason is not None:
        raise Failed(reason)
