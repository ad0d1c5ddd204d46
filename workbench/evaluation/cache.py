"""Answers kept beside the results, so that what was sampled once is not sampled again to be judged anew."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from workbench.config.schema import PolicyConfig
from workbench.errors import UserError
from workbench.evaluation.generation import Answer, Sampling
from workbench.evaluation.models import Candidate
from workbench.models.adapters import is_adapter
from workbench.models.loading import load_config, resolve
from workbench.run.files import append_text, write_text
from workbench.run.folder import package_versions

FILE = "answers.jsonl"
RUN_TITLES = ("base", "sft", "aligned")
Answers = list[list[Answer]]
Lines = list[list[dict[str, Any]]]
"""Answers as JSON has them."""


def key_of(
    candidate: Candidate,
    weights: Sequence[str],
    rows: Sequence[dict[str, Any]],
    sampling: Sampling,
    policy: PolicyConfig,
    accelerator: Accelerator,
) -> str:
    """A name (sha256) for answers, made of what they depend on; `weights` is the content of the candidate's."""
    device = accelerator.device.type
    facts = {
        "code": code_hash(),
        "versions": package_versions() | {name: version(name) for name in libraries(policy)},
        "machine": [device, accelerator.num_processes, torch.get_num_threads()],
        "gpu": torch.cuda.get_device_name(accelerator.device) if device == "cuda" else None,
        "policy": dataclasses.asdict(policy),
        "model": candidate.model,
        "part": candidate.title if candidate.title in RUN_TITLES else None,
        "with_token_log_ratios": candidate.with_token_log_ratios,
        "weights": list(weights),
        "sampling": dataclasses.asdict(sampling),
        "prompts": [row["prompt_ids"] for row in rows],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def libraries(policy: PolicyConfig) -> tuple[str, ...]:
    """Packages that answers depend on and that every results.json need not name."""
    return ("tokenizers", "bitsandbytes") if policy.quantization else ("tokenizers",)


def content_of(place: str) -> str:
    """sha256 of the files in the folder of a model or adapter; of a model on the hub, the commit."""
    folder = Path(place).expanduser()
    if not is_adapter(folder):
        folder = Path(resolve(place))
    if not folder.is_dir():
        return str(load_config(place)._commit_hash)
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file():
            with file.open("rb") as stream:
                digest.update(f"{file.name}\n{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


@cache
def code_hash() -> str:
    """sha256 of the workbench's own source."""
    root, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def read(folder: Path) -> dict[str, Lines]:
    """What is kept in a stage's folder, by key; a line that a crash left torn is none."""
    file, found = folder / FILE, {}
    try:
        lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}; delete it to have its answers anew") from error
    for line in lines:
        try:
            kept = json.loads(line)
            found[kept["key"]] = kept["answers"]
        except (ValueError, KeyError, TypeError):
            continue
    return found


def answers_of(lines: Lines) -> Answers:
    """The answers that are kept under a key that `key_of` makes today, and so in today's form."""
    return [[Answer(**fields | {"moved": _pairs(fields["moved"])}) for fields in of] for of in lines]


def lines_of(answers: Answers) -> Lines:
    """The answers in the form in which they are kept."""
    return [[dataclasses.asdict(answer) for answer in of] for of in answers]


def add(folder: Path, key: str, lines: Lines) -> None:
    """Keep answers under a key."""
    append_text(folder / FILE, _line(key, lines))


def replace(folder: Path, lines: Mapping[str, Lines]) -> None:
    """Keep these and forget all others."""
    write_text(folder / FILE, "".join(_line(key, of) for key, of in lines.items()))


def _pairs(moved: list[list[Any]] | None) -> list[tuple[str, float]] | None:
    return None if moved is None else [(piece, nats) for piece, nats in moved]


def _line(key: str, lines: Lines) -> str:
    """A line in ASCII, where no character of an answer ends it; it begins with an end, for the last may be torn."""
    return "\n" + json.dumps({"key": key, "answers": lines}, allow_nan=False) + "\n"
