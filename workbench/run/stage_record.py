"""stage.json, the record of a finished stage, with its own checksum and those of the weights it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from workbench.config.names import EVALUATION, PPO, REWARD, SFT
from workbench.errors import UserError
from workbench.run.checksums import first_difference
from workbench.run.files import is_present, read_json, write_text

FILE = "stage.json"
CHECKSUM = "sha256"
# The earlier stages whose weights a stage uses.
MADE_FROM = {SFT: (), REWARD: (), PPO: (SFT, REWARD), EVALUATION: (SFT, REWARD, PPO)}
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt")


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a stage's record into its folder, with the checksum of its contents."""
    record = json.loads(json.dumps(record))  # as it is read: keys that are numbers become texts of another order
    write_text(folder / FILE, json.dumps({**record, CHECKSUM: checksum(record)}, indent=2) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record in a stage's folder; raises UserError if it is missing or not what was written."""
    remedy = f"redo the stage with --force {folder.name}"
    record = read_json(folder / FILE, remedy=remedy)
    recorded = record.pop(CHECKSUM, None)
    # One without checksums at all is of an earlier version.
    if recorded != checksum(record) and (recorded is not None or "files" in record):
        raise UserError(f"{folder / FILE}: corrupt; {remedy}")
    return record


def checksum(record: Mapping[str, Any]) -> str:
    """Return the sha256 of a record."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Raise UserError if files in the folder of a finished stage are not what they were when it finished."""
    if not is_present(folder / FILE):
        return
    digests = read_record(folder).get("files", {})
    difference = first_difference(folder, {name: digests[name] for name in names if name in digests})
    if difference is not None:
        raise UserError(f"{folder}/{difference}; restore it, or redo the stage with --force {folder.name}")


def earlier_weights(run_folder: Path, stage: str, configured: list[str]) -> dict[str, str]:
    """Return the checksum of the weights of each finished stage that a stage is made from."""
    earlier = [name for name in MADE_FROM[stage] if name in configured and is_present(run_folder / name / FILE)]
    return {name: weights_checksum(read_record(run_folder / name)) for name in earlier}


def weights_checksum(record: Mapping[str, Any]) -> str:
    """Return the sha256 of the checksums of the weights that a stage left."""
    files: Mapping[str, str] = record.get("files", {})
    return checksum({name: files[name] for name in files if PurePosixPath(name).suffix in WEIGHT_SUFFIXES})


def check_made_from(run_folder: Path, stage: str, record: Mapping[str, Any]) -> None:
    """Raise UserError if a stage was made from other weights than the earlier stages have now."""
    for name, before in record.get("made_from", {}).items():
        if is_present(run_folder / name / FILE) and weights_checksum(read_record(run_folder / name)) != before:
            raise UserError(
                f"{run_folder / stage}: made from another {name} than the one that is in {run_folder / name} now; "
                f"redo it with --force {stage}, or restore that {name}"
            )
