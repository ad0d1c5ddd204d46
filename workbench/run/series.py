"""Run several configurations one after another: all are planned first, and a broken one is named while others go on."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from workbench.config.derived import configured_stages
from workbench.config.names import EVALUATION, PPO, REWARD, SFT
from workbench.config.parsing import dump
from workbench.config.schema import Config
from workbench.errors import Failed, UserError, one_line
from workbench.run.cli import Stage, announce, execute, is_already_done, make_plan, prepare, print_plan, print_reused
from workbench.run.distributed import fail_alike, print_once, reset_accelerate, wait_for_everyone
from workbench.run.folder import Run, redone_stages
from workbench.run.reuse import reused_stages


@dataclass(frozen=True)
class SeriesRun:
    """One run of a series, which may reuse stages of those before it."""

    config: Config
    stages: Sequence[Stage]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.runs) / self.config.name


@dataclass
class SeriesOutcome:
    """What became of the runs of a series that has ended."""

    broken: dict[str, str] = field(default_factory=dict)
    """Why runs are not finished, by name."""
    failures: list[str] = field(default_factory=list)
    """Why finished runs match evaluation.fail_on."""

    def raise_if_any(self, total: int, page: Path | None) -> None:
        """Raise Failed, with every broken run and the page of the others, unless all runs are finished and well."""
        lines = [f"{name}: {line}" for name, line in self.broken.items()]
        if lines:
            rest = f"page of the rest: {page}" if page is not None else "no page, since no other is finished"
            lines = [f"{len(lines)} of {total} runs are broken, {rest}; {'; '.join(lines)}"]
        if lines or self.failures:
            raise Failed("; ".join([*lines, *self.failures]))


def plan_series(runs: Sequence[SeriesRun], force: str | None, label: str, *, show: bool) -> None:
    """Load and check what every run needs, and print it if `show`; raises UserError for what one of them would refuse.

    What only differs in name and seed is loaded once.
    """
    if force is not None and all(redone_by(each, force) is None for each in runs):
        names = dict.fromkeys(stage.name for each in runs for stage in each.stages)
        raise UserError(f"--force {force}: this command runs {', '.join(names)}")
    planned: dict[str, str] = {}
    for each in runs:
        name, needed = each.config.name, redone_by(each, force)
        config = without_pending(each.config, runs, force)
        if show:
            print_once(f"\n{label}: {name}")
            print_reused(each.config)
        stages, config, needed = prepare(each.stages, config, needed)
        run = Run(each.folder, config)
        for stage in stages:
            if stage.name in reused_stages(each.config):
                continue
            if not show and is_already_done(run, stage.name, needed):
                continue
            same = f"{stage.name}\n{dump(replace(config, name=label, seed=0))}"
            if same in planned:
                print_again(show, f"{stage.name}: as for {planned[same]}, with seed {config.seed}")
                continue
            plan = make_plan(stage, config, needed).plan
            planned[same] = name
            if show:
                print_plan(stage, plan)


def print_again(show: bool, line: str) -> None:
    """Print a line if plans are shown."""
    if show:
        print_once(line)


def run_series(runs: Sequence[SeriesRun], force: str | None, label: str) -> SeriesOutcome:
    """Run what is not finished; a run that fails, or reuses one that did, is broken, and the others go on.

    Raises Interrupted after a signal.
    """
    wait_for_everyone()  # from here on processes can tell each other that one of them failed
    outcome, broken = SeriesOutcome(), dict[Path, str]()
    for each in runs:
        name = each.config.name
        print_once(f"\n{label}: {name}")
        folders = [*reused_stages(each.config).values()]
        folders += [Path(entry.adapter).parent for entry in each.config.evaluation.anti_expert.values()]
        reused = [broken[folder] for folder in folders if folder in broken]
        line = f"it reuses {reused[0]}, which is broken" if reused else attempt(each, force, outcome)
        if line is not None:
            outcome.broken[name], broken[each.folder] = line, name
            announce(f"{label}: {name} is broken: {line}")
    return outcome


def attempt(run: SeriesRun, force: str | None, outcome: SeriesOutcome) -> str | None:
    """Return why a run could not be finished, or None; a result that matches fail_on is added to the `outcome`."""
    line = None
    try:
        execute(run.stages, run.config, redone_by(run, force))
    except Failed as failure:
        outcome.failures.append(str(failure))
    except UserError as error:
        line = str(error)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        line = f"out of memory: {one_line(error)}"
    # Only here has the traceback of the failure, which held the tensors, gone.
    line = fail_alike(run.config.name, line)
    if line is not None:
        release_memory()
    return line


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the host or on a device."""
    torch = sys.modules.get("torch")
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))


def release_memory() -> None:
    """Leave nothing of a failed run behind for the next one."""
    import torch

    reset_accelerate()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def redone_by(run: SeriesRun, force: str | None) -> str | None:
    """Return the first stage of a run that --force redoes; None where the run depends on none of them."""
    names = {stage.name for stage in run.stages} & set(configured_stages(run.config))
    if force is None or force in names:
        return force
    if force == REWARD and run.config.reward is not None:  # one that is not trained
        return next((stage for stage in (PPO, EVALUATION) if stage in names), None)
    return None


def without_pending(config: Config, runs: Sequence[SeriesRun], force: str | None) -> Config:
    """Return the configuration of a run without the stages that runs of the series have yet to do for it.

    The plan is the same, since the settings are.
    """
    suppliers = {each.folder: each for each in runs}
    run = Run(Path(config.runs) / config.name, config)
    pending = {
        stage: None
        for stage, folder in reused_stages(config).items()
        if folder in suppliers
        and (
            stage in redone_stages(redone_by(suppliers[folder], force))
            or not (Run(folder, config).finished(stage) or run.finished(stage))
        )
    }
    # Nor can an adapter that one of them has yet to train be loaded.
    anti_experts = {
        title: entry
        for title, entry in config.evaluation.anti_expert.items()
        if not is_pending(Path(entry.adapter).parent, suppliers, force)
    }
    evaluation = replace(config.evaluation, anti_expert=anti_experts)
    return replace(config, reuse=replace(config.reuse, **pending), evaluation=evaluation)


def is_pending(folder: Path, suppliers: Mapping[Path, SeriesRun], force: str | None) -> bool:
    """Return whether a run of the series in the folder has yet to train its SFT stage."""
    if folder not in suppliers:
        return False
    run = suppliers[folder]
    return SFT in redone_stages(redone_by(run, force)) or not Run(folder, run.config).finished(SFT)
