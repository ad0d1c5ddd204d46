"""Read the records of earlier stages that the report shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.config.names import PPO, REWARD, SFT


def read_curves(run_folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of metrics.jsonl of each stage that has one, by stage."""
    files = {stage: run_folder / stage / "metrics.jsonl" for stage in (SFT, REWARD, PPO)}
    return {
        stage: [json.loads(line) for line in file.read_text().splitlines()]
        for stage, file in files.items()
        if file.is_file()
    }


def read_reward_report(run_folder: Path) -> dict[str, Any] | None:
    """Return the report on the reward that the run trained; None where it trained none."""
    file = run_folder / REWARD / "report.json"
    return json.loads(file.read_text()) if file.is_file() else None
