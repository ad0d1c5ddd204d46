"""stage.json, the record of a finished stage, and begun.json, of what a stage is made from; each with its checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from workbench.config.names import EVALUATION, PPO, REWARD, SFT
from workbench.errors import UserError
from workbench.run.checksums import first_difference
from workbench.run.files import is_present, read_json, write_text

FILE = "stage.json"
BEGUN = "begun.json"
CHECKSUM = "sha256"
# The earlier stages whose weights a stage uses; others use none.
MADE_FROM = {SFT: (), REWARD: (), PPO: (SFT, REWARD), EVALUATION: (SFT, REWARD, PPO)}
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt")
Hashes = Mapping[str, Mapping[str, str | None]]
"""By key of the configuration: the path of a file or folder, and the sha256 of its contents or None."""


@dataclass(frozen=True)
class Origin:
    """What a stage is made from, as it was when the stage began."""

    made_from: Mapping[str, str] = field(default_factory=dict)
    """The checksum of the weights of each earlier stage that it uses."""
    data: Hashes = field(default_factory=dict)
    models: Hashes = field(default_factory=dict)
    """Local folders that the configuration names."""


def write_record(folder: Path, record: Mapping[str, Any], name: str = FILE) -> None:
    """Write a stage's record into its folder, with the checksum of its contents."""
    record = json.loads(json.dumps(record))  # as it is read: keys that are numbers become texts of another order
    write_text(folder / name, json.dumps({**record, CHECKSUM: checksum(record)}, indent=2) + "\n")


def read_record(folder: Path, name: str = FILE, stage: str | None = None) -> dict[str, Any]:
    """Return the record in a stage's folder; raises UserError if it is missing or not what was written.

    The `stage` to redo is that of the folder's name, unless the folder is of a part of it.
    """
    remedy = f"redo the stage with --force {stage or folder.name}"
    record = read_json(folder / name, remedy=remedy)
    recorded = record.pop(CHECKSUM, None)
    # One of a finished stage without checksums at all is of an earlier version.
    if recorded != checksum(record) and (recorded is not None or "files" in record or name == BEGUN):
        raise UserError(f"{folder / name}: corrupt; {remedy}")
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


def check_begun(run_folder: Path, stage: str, now: Origin) -> Origin | None:
    """Return what an unfinished stage was made from when it began, None where it did not begin.

    Raises UserError where it would be resumed with other data or models, or other weights of the earlier stages.
    """
    folder = run_folder / stage
    if not is_present(folder / BEGUN):
        return None
    try:
        begun = Origin(**read_record(folder, BEGUN))
    except TypeError as error:
        raise UserError(
            f"{folder / BEGUN}: written by another version of this project; start over with --force {stage}"
        ) from error
    check_made_from(run_folder, stage, asdict(begun))
    for key, path in (*changes(begun.data, now.data), *changes(begun.models, now.models)):
        raise UserError(
            f"{key}: {path} has changed since stage {stage} of {run_folder} began; restore it, choose another --name, "
            f"or start over with --force {stage}"
        )
    return begun


def changes(before: Hashes, now: Hashes) -> Iterator[tuple[str, str | None]]:
    """Yield key and path of what has other contents now; what is gone, or was not hashed, cannot be compared."""
    for key, source in now.items():
        earlier = before.get(key, {})
        is_comparable = earlier.get("path") == source["path"] and None not in (earlier.get("sha256"), source["sha256"])
        if is_comparable and earlier["sha256"] != source["sha256"]:
            yield key, source["path"]


def earlier_weights(run_folder: Path, stage: str, configured: list[str]) -> dict[str, str]:
    """Return the checksum of the weights of each finished stage that a stage is made from."""
    earlier = [name for name in MADE_FROM.get(stage, ()) if name in configured and is_present(run_folder / name / FILE)]
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
