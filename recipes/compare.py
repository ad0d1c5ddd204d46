"""Compare: one SFT policy, reward and data set, several algorithms and seeds, and one table of all of them."""

# torch and transformers are imported inside the functions, so that --help is instant.
from __future__ import annotations

from pathlib import Path

from recipes import evaluation, ppo, reward, sft
from workbench.config.schema import Config
from workbench.run.cli import announce, read_command_line, sections_of
from workbench.run.distributed import is_main_process, print_once, wait_for_everyone
from workbench.run.process import run_recipe
from workbench.run.series import SeriesRun, plan_series, run_series

STAGES = {stage.name: stage for stage in (sft.STAGE, reward.STAGE, ppo.STAGE, evaluation.STAGE)}


def compare(argv: list[str]) -> None:
    """Run or plan the comparison that `argv` names; raises Failed at the end if a run is broken or as fail_on says."""
    parsed = read_command_line(argv, __doc__ or "", ["compare", *sections_of(list(STAGES.values()))])
    if parsed is None:
        return
    config, options = parsed
    run_comparison(config, options.force, "compare", is_dry=options.dry_run)


def run_comparison(config: Config, force: str | None, label: str, *, is_dry: bool) -> None:
    """Run or plan every cell of the configuration's comparison, and write the table of those that are finished."""
    announce("loading libraries and data to plan the runs ...")
    from workbench.comparison.matrix import budget_lines, comparison_runs, template_lines

    matrix = comparison_runs(config)
    runs = [SeriesRun(each.config, [STAGES[name] for name in each.stages]) for each in matrix]
    print_once(f"{label}: {len(runs)} runs: {', '.join(each.config.name for each in runs)}")
    for line in (*budget_lines(matrix), *template_lines(matrix)):
        print_once(f"{label}: {line}")
    # All runs are planned first, so that a mistake in the last algorithm ends the command before anything trains.
    plan_series(runs, force, label, show=is_dry)
    if is_dry:
        return
    outcome = run_series(runs, force, label)
    cells = [cell for each in matrix if each.config.name not in outcome.broken for cell in each.cells]
    page = Path(config.runs) / f"{config.name}-{label}.html"
    if cells and is_main_process():
        from workbench.report.algorithm_comparison import write_algorithm_comparison

        write_algorithm_comparison(cells, page, broken=list(outcome.broken))
    wait_for_everyone()  # a process that fails ends the others, also the one that writes the page
    outcome.raise_if_any(len(runs), page if cells else None)


if __name__ == "__main__":
    run_recipe(compare)
