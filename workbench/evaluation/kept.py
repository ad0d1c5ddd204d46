"""Answers kept beside the results, so that what was sampled once is not sampled again to be judged anew."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from workbench.config import PolicyConfig
from workbench.evaluation.answers import Answer, Sampling
from workbench.evaluation.contenders import Candidate
from workbench.runs import append_text, package_versions, write_text

FILE = "answers.jsonl"
Answers = list[list[Answer]]


def key_of(
    candidate: Candidate,
    rows: Sequence[dict[str, Any]],
    sampling: Sampling,
    policy: PolicyConfig,
    accelerator: Accelerator,
) -> str:
    """A name (sha256) for answers, of everything that they depend on."""
    facts = {
        "code": code_hash(),
        "versions": package_versions(),
        "machine": [str(accelerator.device), accelerator.num_processes, torch.get_num_threads()],
        "policy": dataclasses.asdict(policy),
        "title": candidate.title,
        "model": candidate.model,
        "explained": candidate.explained,
        "weights": [files_of(folder) for folder in candidate.folders],
        "sampling": dataclasses.asdict(sampling),
        "prompts": [row["prompt_ids"] for row in rows],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def files_of(folder: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change of every file in a folder; nothing of what is no folder here."""
    if not folder.is_dir():
        return []
    found = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in found]


@cache
def code_hash() -> str:
    """sha256 of the workbench's own source."""
    root, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def read(folder: Path) -> dict[str, Answers]:
    """The answers kept in a stage's folder, by key; a line that a crash left torn is none."""
    file, found = folder / FILE, {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            kept = json.loads(line)
        except ValueError:
            continue
        found[kept["key"]] = [[_answer(fields) for fields in of] for of in kept["answers"]]
    return found


def add(folder: Path, key: str, answers: Answers) -> None:
    """Keep answers under a key."""
    append_text(folder / FILE, _line(key, answers))


def forget_others(folder: Path, keys: Collection[str]) -> None:
    """Keep only the answers under these keys."""
    known = read(folder)
    write_text(folder / FILE, "".join(_line(key, known[key]) for key in keys))


def _answer(fields: dict[str, Any]) -> Answer:
    moved = fields["moved"]
    return Answer(**fields | {"moved": moved and [(piece, nats) for piece, nats in moved]})


def _line(key: str, answers: Answers) -> str:
    """A line in ASCII, where no character of an answer ends it; it begins with an end, for the last may be torn."""
    line = {"key": key, "answers": [[dataclasses.asdict(answer) for answer in of] for of in answers]}
    return "\n" + json.dumps(line, allow_nan=False) + "\n"
