"""Evaluation: base, SFT and aligned policy side by side, with toxicity, ROUGE and paired intervals."""

# torch and transformers are imported inside the functions, so that --help is instant.
from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from workbench.config.derived import configured_stages
from workbench.config.names import EVALUATION, PPO, SFT
from workbench.config.parsing import dump
from workbench.config.schema import Config
from workbench.data.sources import source_hashes
from workbench.evaluation.records import failure, outcome
from workbench.run.cli import Stage, StageResult, main
from workbench.run.folder import Run

if TYPE_CHECKING:
    from workbench.evaluation.plan import EvaluationPlan


def plan(config: Config) -> EvaluationPlan:
    """Load and check what the stage needs."""
    from workbench.evaluation.plan import plan_evaluation

    return plan_evaluation(config)


def run(run: Run, plan: EvaluationPlan) -> StageResult:
    """Compare the models, write completions.jsonl, results.json, report.md and report.html, and print a summary."""
    from accelerate import Accelerator

    from workbench.evaluation.pipeline import evaluate
    from workbench.evaluation.records import read_curves, read_reward_report
    from workbench.evaluation.results_files import write_evaluation
    from workbench.ppo.overoptimization import read_points
    from workbench.report.live import live_page
    from workbench.report.tables import final_metrics
    from workbench.report.terminal import next_steps, print_results
    from workbench.report.writing import write_report
    from workbench.run.tracking import tracking

    config, folder = run.config, run.stage(EVALUATION)
    for stage, section in {SFT: config.sft, PPO: config.ppo}.items():
        if section is not None:
            run.verified_record(stage)
    with live_page(run, EVALUATION):
        evaluation = evaluate(run, plan, Accelerator(mixed_precision="no"))
        if evaluation is None:
            return StageResult({}, {})
        results = evaluation.results
        write_report(
            folder,
            results,
            evaluation.examples,
            judges=evaluation.judges,
            curves=read_curves(run),
            reward_report=read_reward_report(run),
            held_out=read_points(run.folder / PPO / "metrics.jsonl") if config.ppo else [],
            configuration=dump(config),
        )
        write_evaluation(folder, results, evaluation.examples)
    with tracking(run, EVALUATION) as tracker:
        tracker.log(final_metrics(results), step=0)
    print_results(results, next_steps(run, results))
    inputs = {name: source.path for name, source in config.evaluation.data.items()}
    verdicts = {verdict.question: verdict.word for verdict in results.verdicts}
    return StageResult(inputs, {"verdicts": verdicts, "failed_guards": results.failed_guards})


STAGE = Stage(
    EVALUATION,
    lambda config: EVALUATION in configured_stages(config),
    plan,
    run,
    failure,
    outcome,
    data=partial(source_hashes, stage=EVALUATION),
    sections=("policy", EVALUATION),
)

if __name__ == "__main__":
    main([STAGE], __doc__)
