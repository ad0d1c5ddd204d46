"""Sweep: one run for each reward of sweep.rewards, all from the same SFT policy, and a page that compares them."""

from __future__ import annotations

from pathlib import Path

from recipes import evaluation, ppo, sft
from workbench.errors import Failed
from workbench.run.cli import announce, execute, plan_stages, print_plan, print_reused, read_command_line, sections_of
from workbench.run.distributed import is_main_process, print_once, wait_for_everyone
from workbench.run.process import run_recipe
from workbench.run.reuse import reused_stages
from workbench.run.sweep import sweep_configs, without_pending_sft

STAGES = [sft.STAGE, ppo.STAGE, evaluation.STAGE]


def sweep(argv: list[str]) -> None:
    """Run or plan the runs of the sweep that `argv` asks for; raises Failed at the end if a result matches fail_on."""
    parsed = read_command_line(argv, __doc__ or "", ["reward", "sweep", *sections_of(STAGES)])
    if parsed is None:
        return
    announce("loading libraries and data to plan the runs ...")
    config, options = parsed
    configs = sweep_configs(config, options.force)
    print_once(f"sweep: {len(configs)} runs: {', '.join(each.name for each in configs.values())}")
    failures = []
    # All runs are planned first, so that a mistake in the last reward ends the sweep before the first one trains.
    for each in configs.values():
        if options.dry_run:
            print_once(f"\nsweep: {each.name}")
            print_reused(each)
        for stage, plan in plan_stages(STAGES, without_pending_sft(each, options.force), options.force):
            if options.dry_run and stage.name not in reused_stages(each):
                print_plan(stage, plan)
    if options.dry_run:
        return
    for each in configs.values():
        print_once(f"\nsweep: {each.name}")
        try:
            execute(STAGES, each, options.force)
        except Failed as failure:
            failures.append(str(failure))
    if is_main_process():
        from workbench.compare import write_comparison

        folders = [Path(each.runs) / each.name for each in configs.values()]
        write_comparison(folders, Path(config.runs) / f"{config.name}-sweep.html")
    wait_for_everyone()  # a process that fails ends the others, also the one that writes the page
    if failures:
        raise Failed("; ".join(failures))


if __name__ == "__main__":
    run_recipe(sweep)
