"""Read the records of finished stages: what the report shows of them, and what an evaluation found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.config.derived import configured_stages
from workbench.config.names import EVALUATION, REWARD
from workbench.config.schema import Config
from workbench.errors import UserError, one_line
from workbench.run.files import read_json, read_json_lines
from workbench.run.folder import Run
from workbench.run.stage_record import check_files

LOG = "metrics.jsonl"


def read_curves(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of metrics.jsonl of each configured stage that has one, by stage.

    Raises UserError for a corrupt file, and for one of a finished stage that is not what it logged.
    """
    for stage in configured_stages(run.config):
        check_files(run.folder / stage, [LOG])
    return read_logs(run)


def read_logs(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Return what `read_curves` returns, also while the stages are still running; no checksum is compared."""
    files = {stage: run.folder / stage / LOG for stage in configured_stages(run.config)}
    return {stage: read_log(file, stage) for stage, file in files.items() if file.is_file()}


def read_log(file: Path, stage: str) -> list[dict[str, Any]]:
    """Return the lines of a stage's metrics.jsonl; raises UserError for a corrupt one."""
    try:
        lines = read_json_lines(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: corrupt: {one_line(error)}; redo the stage with --force {stage}") from error
    if not all(isinstance(line, dict) for line in lines):
        raise UserError(f"{file}: corrupt; redo the stage with --force {stage}")
    return lines


def read_reward_report(run: Run) -> dict[str, Any] | None:
    """Return the report on the reward model of the run's reward stage; None where it has no such stage.

    Raises UserError for a corrupt one, and for one that is not what was written.
    """
    file = run.folder / REWARD / "report.json"
    if REWARD not in configured_stages(run.config):
        return None
    check_files(file.parent, [file.name])
    if not file.is_file():
        return None
    return read_json(file, remedy=f"redo the stage with --force {REWARD}")


def outcome(run: Run) -> list[str]:
    """Return the verdicts of the finished evaluation, and its page; raises UserError if either was changed."""
    from workbench.evaluation.results_files import check_unchanged

    for name in ("results.json", "report.html"):
        check_unchanged(run.folder / EVALUATION / name)
    metrics = run.record(EVALUATION)["metrics"]
    verdicts = [f"{question}: {word}" for question, word in metrics.get("verdicts", {}).items()]
    failed = [f"guards failed: {', '.join(metrics['failed_guards'])}"] if metrics.get("failed_guards") else []
    return ["; ".join([", ".join(verdicts), *failed]), f"page {run.folder / EVALUATION / 'report.html'}"]


def outcome_of_rows(run: Run, stage: str) -> list[str]:
    """Return the best row of a finished comparison with the first, and its page; raises UserError as `outcome` does."""
    from workbench.evaluation.results_files import check_unchanged

    check_unchanged(run.folder / stage / "results.json")
    metrics = run.record(stage)["metrics"]
    verdicts = ", ".join(f"{question}: {word}" for question, word in metrics.get("verdicts", {}).items())
    return [f"best after the first: {metrics.get('best')} ({verdicts})", f"page {run.folder / stage / 'report.html'}"]


def failure(run: Run) -> str | None:
    """Return why the finished evaluation ends the command with exit code 1, or None."""
    from workbench.evaluation.guards import fails
    from workbench.evaluation.results_files import read_results

    if run.config.evaluation.fail_on is None:
        return None
    results = read_results(run.folder / EVALUATION / "results.json")
    verdicts = ", ".join(verdict.headline for verdict in results.verdicts)
    failed = ", ".join(results.failed_guards) or "none"
    return f"evaluation: {verdicts}; guards failed: {failed}" if fails(results) else None


def refuse_fail_on(config: Config, stage: str) -> None:
    """Raise UserError for evaluation.fail_on where a stage compares rows with the first, none of which is a failure."""
    if config.evaluation.fail_on is not None:
        raise UserError(
            f"evaluation.fail_on: {config.evaluation.fail_on} is about the verdicts of recipes.evaluation; "
            f"recipes.{stage} compares rows, some of which may well be worse; remove it"
        )
