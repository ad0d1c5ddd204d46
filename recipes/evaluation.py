"""Evaluation: base, SFT and aligned policy side by side, with toxicity, ROUGE and paired intervals."""

# torch and transformers are imported inside the functions, so that --help is instant.
from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.config.derived import configured_stages
from workbench.config.names import EVALUATION, PPO, SFT
from workbench.config.parsing import dump
from workbench.config.schema import Config
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
    from workbench.evaluation.results import write_evaluation
    from workbench.ppo.overoptimization import read_points
    from workbench.report.terminal import next_steps, print_results
    from workbench.report.writing import write_report

    config, folder = run.config, run.stage(EVALUATION)
    for stage, section in {SFT: config.sft, PPO: config.ppo}.items():
        if section is not None:
            run.record(stage)  # raises UserError for a stage that is not finished
    evaluation = evaluate(run, plan, Accelerator())
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
    print_results(results, next_steps(run, results))
    inputs = {name: source.path for name, source in config.evaluation.data.items()}
    verdicts = {verdict.question: verdict.word for verdict in results.verdicts}
    return StageResult(inputs, {"verdicts": verdicts, "failed_guards": results.failed_guards})


def outcome(run: Run) -> list[str]:
    """Return the verdicts of the finished evaluation, and where its page is."""
    metrics = run.record(EVALUATION)["metrics"]
    verdicts = [f"{question}: {word}" for question, word in metrics.get("verdicts", {}).items()]
    failed = [f"guards failed: {', '.join(metrics['failed_guards'])}"] if metrics.get("failed_guards") else []
    return ["; ".join([", ".join(verdicts), *failed]), f"page {run.folder / EVALUATION / 'report.html'}"]


def failure(run: Run) -> str | None:
    """Return why the finished evaluation ends the command with exit code 1, or None."""
    from workbench.evaluation.guards import fails
    from workbench.evaluation.results import read_results

    if run.config.evaluation.fail_on is None:
        return None
    results = read_results(run.folder / EVALUATION / "results.json")
    verdicts = ", ".join(verdict.headline for verdict in results.verdicts)
    failed = ", ".join(results.failed_guards) or "none"
    return f"evaluation: {verdicts}; guards failed: {failed}" if fails(results) else None


STAGE = Stage(
    EVALUATION,
    lambda config: EVALUATION in configured_stages(config),
    plan,
    run,
    failure,
    outcome,
    sections=("policy", EVALUATION),
)

if __name__ == "__main__":
    main([STAGE], __doc__)
