"""Tuning: the same data and steps through full fine-tuning, LoRA, soft prompts and more, compared on one page."""

# torch and transformers are imported inside the functions, so that --help is instant.
from __future__ import annotations

import functools
from functools import partial
from typing import TYPE_CHECKING

from workbench.config.derived import configured_stages
from workbench.config.names import EVALUATION, SFT, TUNING
from workbench.config.parsing import dump
from workbench.config.schema import Config
from workbench.data.sources import source_hashes
from workbench.evaluation.records import outcome_of_rows, refuse_fail_on
from workbench.run.cli import Stage, StageResult, main
from workbench.run.folder import Run

if TYPE_CHECKING:
    from workbench.tuning.plan import TuningPlan


def plan(config: Config) -> TuningPlan:
    """Load and check what the stage needs."""
    from workbench.tuning.plan import plan_tuning

    return plan_tuning(config)


def earlier(run: Run, plan: TuningPlan) -> list[str]:
    """Return a line on the methods that an earlier launch has trained."""
    from workbench.evaluation.cache import weights_hash
    from workbench.tuning.training import earlier_lines

    return earlier_lines(run, plan, functools.cache(weights_hash))


def run(run: Run, plan: TuningPlan) -> StageResult:
    """Train and compare the methods, write completions.jsonl, results.json and the report, and print the table."""
    from accelerate import Accelerator

    from workbench.evaluation.results_files import write_evaluation
    from workbench.report.tables import final_metrics
    from workbench.report.terminal import print_rows
    from workbench.report.tuning_page import FIRST_COLUMN, short_tables, write_tuning_report
    from workbench.run.tracking import tracking
    from workbench.tuning.pipeline import compare_methods
    from workbench.tuning.rows import read_method_curves

    folder = run.stage(TUNING)
    comparison = compare_methods(run, plan, Accelerator(mixed_precision="no"))
    if comparison is None:
        return StageResult({}, {})
    results, examples = comparison.results, comparison.examples
    write_tuning_report(
        folder,
        results,
        examples,
        judges=comparison.judges,
        curves=read_method_curves(run, plan.rows),
        configuration=dump(run.config),
    )
    write_evaluation(folder, results, examples)
    with tracking(run, TUNING) as tracker:
        tracker.log(final_metrics(results), step=0)
    print_rows(results, short_tables(results), FIRST_COLUMN, [("page", str(folder / "report.html"))])
    verdicts = {verdict.question: verdict.word for verdict in results.verdicts}
    return StageResult({"model": run.config.policy.model}, {"verdicts": verdicts, "best": results.after})


STAGE = Stage(
    TUNING,
    lambda config: TUNING in configured_stages(config),
    plan,
    run,
    earlier=earlier,
    failure=lambda run: refuse_fail_on(run.config, TUNING),
    outcome=partial(outcome_of_rows, stage=TUNING),
    data=partial(source_hashes, stage=TUNING),
    sections=("policy", SFT, EVALUATION, TUNING),
)

if __name__ == "__main__":
    main([STAGE], __doc__)
