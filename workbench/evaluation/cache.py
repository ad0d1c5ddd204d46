"""Completions cached with the results, so that they can be scored again without being sampled again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from workbench.config.names import TITLES
from workbench.config.schema import PolicyConfig
from workbench.evaluation.generation import Completion, Sampling
from workbench.evaluation.models import ModelSpec, local_folder
from workbench.models.loading import load_config
from workbench.run.distributed import print_once
from workbench.run.files import append_text, content_hash, unreadable, write_text
from workbench.run.folder import package_versions

FILE = "completions_cache.jsonl"


@dataclass
class Cache:
    """Plain data by a key that hashes everything the data depends on."""

    file: Path
    entries: dict[str, Any]
    used: set[str] = field(default_factory=set)

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def get(self, key: str) -> Any:
        """Return an entry and mark it as used."""
        self.used.add(key)
        return self.entries[key]

    def add(self, key: str, value: Any) -> None:
        """Store an entry on disk."""
        append_text(self.file, _line(key, value))
        self.entries[key] = value

    def keep_used(self) -> None:
        """Delete the entries that were not used."""
        if self.used != self.entries.keys():
            self.entries = {key: value for key, value in self.entries.items() if key in self.used}
            write_text(self.file, "".join(_line(key, value) for key, value in self.entries.items()))


def open_cache(folder: Path) -> Cache:
    """Return the cache in a stage's folder; lines that are cut off or corrupt are counted and left out."""
    file, entries, corrupt = folder / FILE, {}, 0
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.is_file() else []
    except OSError as error:
        raise unreadable(file, error, "delete it to resample the completions") from error
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["sha256"] == _value_hash(entry["value"]):
                entries[entry["key"]] = entry["value"]
                continue
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        corrupt += bool(line.strip())
    if corrupt:
        print_once(
            f"{folder.name}: {corrupt} entries of {file} are cut off or corrupt; what they held is sampled again"
        )
    return Cache(file, entries)


def completions_key(
    spec: ModelSpec,
    weights: Sequence[str],
    prompt_ids: Sequence[Sequence[list[int]]],
    sampling: Sampling,
    policy: PolicyConfig,
    accelerator: Accelerator,
) -> str:
    """Return the key of a model's completions; `weights` are the content hashes of `spec.weights`.

    The prompts are as the model reads them, and as reference and base do.
    """
    return _key(
        {
            "model": spec.model,
            "title": spec.title if spec.title in TITLES else None,
            "with_token_log_ratios": spec.with_token_log_ratios,
            "weights": list(weights),
            "alpha": None if spec.steered is None else spec.steered[1],
            "sampling": dataclasses.asdict(sampling),
            "prompts": list(prompt_ids),
        },
        policy,
        accelerator,
    )


def texts_key(
    spec: ModelSpec,
    weights: Sequence[str],
    rows: Sequence[dict[str, Any]],
    batch_size: int,
    policy: PolicyConfig,
    accelerator: Accelerator,
) -> str:
    """Return the key of how well a model predicts texts; `weights` are the content hashes of `spec.weights`."""
    return _key(
        {
            "model": spec.model,
            "title": spec.title if spec.title in TITLES else None,
            "weights": list(weights),
            "texts": [[row["prompt_ids"], row["response_ids"]] for row in rows],
            "batch_size": batch_size,
        },
        policy,
        accelerator,
    )


def references_key(
    base: str,
    reference_ids: Sequence[tuple[list[int], list[int]]],
    batch_size: int,
    policy: PolicyConfig,
    accelerator: Accelerator,
) -> str:
    """Return the key of the references' perplexity; `base` is the content hash of the base."""
    return _key({"base": base, "references": list(reference_ids), "batch_size": batch_size}, policy, accelerator)


def weights_hash(name: str) -> str:
    """Return the content hash of a model or adapter; for a model on the hub, the commit."""
    folder = local_folder(name)
    return str(load_config(name)._commit_hash) if folder is None else str(content_hash(folder))


def completions_to_json(completions: Sequence[Sequence[Completion]]) -> list[list[dict[str, Any]]]:
    """Return completions as plain data."""
    return [[dataclasses.asdict(completion) for completion in row] for row in completions]


def completions_from_json(data: Sequence[Sequence[dict[str, Any]]]) -> list[list[Completion]]:
    """Return the completions in an entry; its key was made by this code, so it has this code's format."""
    return [[_completion(values) for values in row] for row in data]


def _completion(values: dict[str, Any]) -> Completion:
    ratios = values["token_log_ratios"]
    pairs = None if ratios is None else [(piece, nats) for piece, nats in ratios]
    return Completion(**values | {"token_log_ratios": pairs})


def _key(facts: dict[str, Any], policy: PolicyConfig, accelerator: Accelerator) -> str:
    """Return the sha256 of the facts and of code, libraries, machine and policy settings."""
    device = accelerator.device.type
    facts = facts | {
        "code": _code_hash(),
        "versions": package_versions() | {name: version(name) for name in _libraries(policy)},
        "machine": [device, accelerator.num_processes, torch.get_num_threads()],
        "gpu": torch.cuda.get_device_name(accelerator.device) if device == "cuda" else None,
        "policy": dataclasses.asdict(policy),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _libraries(policy: PolicyConfig) -> tuple[str, ...]:
    """Return packages that completions depend on but that results.json does not list."""
    return ("tokenizers", "bitsandbytes") if policy.quantization else ("tokenizers",)


@functools.cache
def _code_hash() -> str:
    """Return the sha256 of the workbench's own source."""
    root, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _line(key: str, value: Any) -> str:
    """Return a line in ASCII, which no character in a text can break.

    It begins with a line break because the line before it may have been cut off.
    """
    entry = {"key": key, "sha256": _value_hash(value), "value": value}
    return "\n" + json.dumps(entry, allow_nan=False) + "\n"


def _value_hash(value: Any) -> str:
    """Return the sha256 of an entry's value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
