"""Read the records of earlier stages that the report shows."""

from __future__ import annotations

import json
from typing import Any

from workbench.config.derived import configured_stages
from workbench.config.names import REWARD
from workbench.run.folder import Run


def read_curves(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of metrics.jsonl of each configured stage that has one, by stage."""
    files = {stage: run.folder / stage / "metrics.jsonl" for stage in configured_stages(run.config)}
    return {
        stage: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for stage, file in files.items()
        if file.is_file()
    }


def read_reward_report(run: Run) -> dict[str, Any] | None:
    """Return the report on the reward model of the run's reward stage; None where it has no such stage."""
    file = run.folder / REWARD / "report.json"
    if REWARD not in configured_stages(run.config) or not file.is_file():
        return None
    return json.loads(file.read_text(encoding="utf-8"))
