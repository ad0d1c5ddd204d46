"""Sweep: one run for each reward of sweep.rewards, or for each cell of a grid, from one SFT policy, and their page.

A grid needs no section: --grid ppo.kl_coef=0.02,0.2 --grid ppo.lam=0.9,1 makes four runs.
"""

from __future__ import annotations

from pathlib import Path

from recipes import evaluation, ppo, sft
from recipes.compare import run_comparison
from workbench.config.schema import Config
from workbench.run.cli import announce, read_command_line, sections_of
from workbench.run.distributed import is_main_process, print_once, wait_for_everyone
from workbench.run.process import run_recipe
from workbench.run.series import SeriesRun, plan_series, run_series
from workbench.run.sweep import sweep_configs

STAGES = [sft.STAGE, ppo.STAGE, evaluation.STAGE]


def sweep(argv: list[str]) -> None:
    """Run or plan the runs that `argv` asks for; raises Failed at the end if one is broken or matches fail_on."""
    from workbench.config.grid import split_grid, with_grid

    grid, argv = split_grid(argv)
    parsed = read_command_line(argv, __doc__ or "", ["reward", "sweep", *sections_of(STAGES)])
    if parsed is None:
        return
    config, options = parsed
    if grid:
        run_comparison(with_grid(config, grid), options.force, "sweep", is_dry=options.dry_run)
    else:
        sweep_rewards(config, options.force, is_dry=options.dry_run)


def sweep_rewards(config: Config, force: str | None, *, is_dry: bool) -> None:
    """Run or plan one run for each reward, and write the page that compares them."""
    announce("loading libraries and data to plan the runs ...")
    runs = [SeriesRun(each, STAGES) for each in sweep_configs(config, force).values()]
    print_once(f"sweep: {len(runs)} runs: {', '.join(each.config.name for each in runs)}")
    # All runs are planned first, so that a mistake in the last reward ends the sweep before the first one trains.
    plan_series(runs, force, "sweep", show=is_dry)
    if is_dry:
        return
    outcome = run_series(runs, force, "sweep")
    page = Path(config.runs) / f"{config.name}-sweep.html"
    finished = [each.folder for each in runs if each.config.name not in outcome.broken]
    has_page = len(finished) > 1
    if has_page and is_main_process():
        from workbench.compare import write_comparison

        write_comparison(finished, page)
    wait_for_everyone()  # a process that fails ends the others, also the one that writes the page
    outcome.raise_if_any(len(runs), page if has_page else None)


if __name__ == "__main__":
    run_recipe(sweep)
