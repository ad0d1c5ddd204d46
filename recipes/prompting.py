"""Prompting: compare templates, numbers of examples and ways to generate, for a model as it is."""

# torch and transformers are imported inside the functions, so that --help is instant.
from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from workbench.config.derived import configured_stages
from workbench.config.names import EVALUATION, PROMPTING
from workbench.config.parsing import dump
from workbench.config.schema import Config
from workbench.data.sources import source_hashes
from workbench.evaluation.records import outcome_of_rows, refuse_fail_on
from workbench.run.cli import Stage, StageResult, launch
from workbench.run.folder import Run
from workbench.run.process import run_recipe

if TYPE_CHECKING:
    from workbench.prompting.plan import PromptingPlan


def plan(config: Config) -> PromptingPlan:
    """Load and check what the stage needs."""
    from workbench.prompting.plan import plan_prompting

    return plan_prompting(config)


def run(run: Run, plan: PromptingPlan) -> StageResult:
    """Compare the prompts, write completions.jsonl, results.json, grid.json and the report, and print the grid."""
    from accelerate import Accelerator

    from workbench.evaluation.results_files import write_evaluation
    from workbench.prompting.pipeline import compare_prompts
    from workbench.prompting.results import write_grid
    from workbench.report.prompting_page import FIRST_COLUMN, short_tables, write_prompting_report
    from workbench.report.tables import final_metrics
    from workbench.report.terminal import print_rows
    from workbench.run.tracking import tracking

    folder = run.stage(PROMPTING)
    comparison = compare_prompts(run, plan, Accelerator(mixed_precision="no"))
    if comparison is None:
        return StageResult({}, {})
    results = comparison.results
    write_prompting_report(
        folder, results, comparison.examples, comparison.grid, judges=comparison.judges, configuration=dump(run.config)
    )
    write_grid(folder, comparison.grid)
    write_evaluation(folder, results, comparison.examples)
    with tracking(run, PROMPTING) as tracker:
        tracker.log(final_metrics(results), step=0)
    print_rows(results, short_tables(results), FIRST_COLUMN, [("page", str(folder / "report.html"))])
    inputs = {name: source.path for name, source in run.config.evaluation.data.items()}
    verdicts = {verdict.question: verdict.word for verdict in results.verdicts}
    return StageResult(inputs, {"verdicts": verdicts, "best": results.after})


def with_whole_keys(argv: list[str]) -> list[str]:
    """Return the command line with --inspect N as the key that it is short for."""
    return [f"--prompting.{word[2:]}" if word.partition("=")[0] == "--inspect" else word for word in argv]


STAGE = Stage(
    PROMPTING,
    lambda config: PROMPTING in configured_stages(config),
    plan,
    run,
    failure=lambda run: refuse_fail_on(run.config, PROMPTING),
    outcome=partial(outcome_of_rows, stage=PROMPTING),
    data=partial(source_hashes, stage=PROMPTING),
    sections=("policy", EVALUATION, PROMPTING),
)

if __name__ == "__main__":
    run_recipe(lambda argv: launch([STAGE], __doc__ or "", with_whole_keys(argv)))
