"""What an evaluation leaves: results.json, version 2, and a line of completions.jsonl for every prompt."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.config import Config
from workbench.evaluation.answers import Answer
from workbench.evaluation.measuring import Measured, mean
from workbench.evaluation.pooled import references
from workbench.runs import Run, folder_hash, git_commit, package_versions

VERSION = 2


def head(
    run: Run,
    models: Sequence[str],
    before: str,
    after: str,
    *,
    judges: Sequence[str],
    device: str,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Where the results come from: settings, seeds, commit, versions, and hashes of data and models."""
    config, settings = run.config, run.config.evaluation
    return {
        "version": VERSION,
        "name": config.name,
        "date": datetime.now(UTC).date().isoformat(),
        "seeds": settings.seeds or [config.seed],
        "commit": git_commit(),
        "versions": package_versions(),
        "machine": f"{platform.machine()}, {device}",
        "inputs": inputs(run),
        "models": list(models),
        "before": before,
        "after": after,
        "reward": (config.reward.model or "trained") if config.reward else None,
        "judges": list(judges),
        "threshold": settings.threshold,
        "temperature": settings.temperature,
        "samples": settings.samples,
        "max_new_tokens": max_new_tokens,
    }


def inputs(run: Run) -> dict[str, Any]:
    """Names and sha256 of everything that was compared, where it is a file or a folder here."""
    config: Config = run.config
    found: dict[str, Any] = {"base": {"name": config.policy.model, "sha256": weights_hash(config.policy.model)}}
    stages = {"sft": ("sft", config.sft), "aligned": ("ppo", config.ppo)}
    for title, (stage, wanted) in stages.items():
        if wanted:
            found[title] = {"name": stage, "sha256": folder_hash(run.folder / stage)}
    if config.reward:
        given = config.reward.model
        found["reward"] = {
            "name": given or "reward",
            "sha256": weights_hash(given) if given else folder_hash(run.folder / "reward"),
        }
    for title, place in config.evaluation.models.items():
        found[title] = {"name": place, "sha256": weights_hash(place)}
    data = {
        name: {"path": source.path, "sha256": file_hash(source.path)} for name, source in config.evaluation.data.items()
    }
    return found | {"data": data}


def weights_hash(place: str) -> str | None:
    """sha256 of the weights in a folder; None for what is not a folder here."""
    folder = Path(place).expanduser()
    return folder_hash(folder) if folder.is_dir() else None


def file_hash(place: str) -> str | None:
    """sha256 of a file; None for what is not a file here."""
    file = Path(place).expanduser()
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def completion_lines(
    name: str,
    rows: Sequence[dict[str, Any]],
    answers: Mapping[str, Sequence[Sequence[Answer]]],
    measured: Measured,
    after: str,
    given_toxicity: Sequence[dict[str, float]],
) -> list[dict[str, Any]]:
    """Every prompt of a set with its answers and their mean scores, side by side."""
    return [
        {
            "set": name,
            "index": index,
            "prompt": row["prompt"],
            "reference": references(row) or None,
            "given_toxicity": given_toxicity[index],
            "completions": {model: [answer.text for answer in of[index]] for model, of in answers.items()},
            "scores": {
                metric: {model: mean(of[index]) for model, of in by_model.items()}
                for metric, by_model in measured.answers.items()
            },
            "moved": answers[after][index][0].moved,
        }
        for index, row in enumerate(rows)
    ]


def curves(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The parsed metrics.jsonl of each stage of a run that has one."""
    found = {}
    for stage in ("sft", "reward", "ppo"):
        file = folder / stage / "metrics.jsonl"
        if file.is_file():
            found[stage] = [json.loads(line) for line in file.read_text().splitlines()]
    return found
