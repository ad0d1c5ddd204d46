"""Read finished runs: configuration, results, completions and training curves, and which of their settings differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

from workbench.comparison.comparability import EvaluatedRun
from workbench.config.names import EVALUATION
from workbench.config.parsing import flatten, load_saved
from workbench.config.schema import Config
from workbench.errors import UserError, one_line
from workbench.evaluation.records import read_curves
from workbench.evaluation.results_files import read_examples, read_results
from workbench.run.files import is_present
from workbench.run.folder import Run

SAME_EVERYWHERE = ("name", "runs", "track")
"""Keys that say nothing about the results."""


def read_evaluated(folder: Path) -> EvaluatedRun:
    """Return the run in a folder; raises UserError without a finished evaluation, and for one that was changed."""
    for file in (folder / "config.yaml", folder / EVALUATION / "stage.json"):
        if not is_present(file):
            raise UserError(f"{folder}: no finished evaluation ({file.name} is missing); run it, or name another run")
    results = read_results(folder / EVALUATION / "results.json")
    examples = read_examples(folder / EVALUATION / "completions.jsonl", results)
    return EvaluatedRun(load_saved(folder / "config.yaml"), results, examples)


def curves_of(run: Run) -> dict[str, list[dict[str, float]]]:
    """Return the lines of each stage's metrics.jsonl; raises UserError where one is corrupt."""
    try:
        curves = read_curves(run)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{run.folder}: a metrics.jsonl is corrupt: {one_line(error)}") from error
    for stage, log in curves.items():
        if not all(isinstance(line, dict) and all(map(is_number, line.values())) for line in log):
            raise UserError(f"{run.folder / stage}/metrics.jsonl: corrupt: a metric is not a number")
    return curves


def is_number(value: object) -> bool:
    """Return whether a value is a number, or a metric that has none at that step."""
    return value is None or isinstance(value, int | float)


def differing_settings(
    configs: Mapping[str, Config], ignored: Collection[str] = SAME_EVERYWHERE
) -> dict[str, list[str]]:
    """Return the value of each run for every key of the configuration that differs between runs, but for `ignored`."""
    flat = [flatten(dataclasses.asdict(config)) for config in configs.values()]
    keys = dict.fromkeys(key for values in flat for key in values if key not in ignored)
    rows = {key: [values.get(key) for values in flat] for key in keys}
    return {
        key: ["" if value is None else str(value) for value in row]
        for key, row in rows.items()
        if any(value != row[0] for value in row)
    }
