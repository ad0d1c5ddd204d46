"""The run folder: one folder per stage, whose stage.json, written last, says that the stage is finished."""

from __future__ import annotations

import fcntl
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from workbench.config.names import STAGES
from workbench.config.parsing import differences, dump, make_parser, parse, parse_saved
from workbench.config.schema import Config
from workbench.errors import UserError
from workbench.run.files import write_text, writing

# Where a run lies, who watches it and what its exit code says do not change what it is.
KEYS_THAT_MAY_CHANGE = ("name", "runs", "track", "evaluation.fail_on")
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "evaluate")


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Holds the run folder's lock; raises UserError when another command holds it."""
    with (run.folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{run.folder}: another command is at work in this run folder; wait, or use --name"
            ) from error
        yield


@dataclass(frozen=True)
class Run:
    """The folder of one experiment: config.yaml sft/ reward/ ppo/ evaluation/."""

    folder: Path
    config: Config

    def stage(self, name: str) -> Path:
        """The folder of a stage, made on first use."""
        folder = self.folder / name
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def finished(self, name: str) -> bool:
        """Whether the stage has its stage.json."""
        return (self.folder / name / "stage.json").is_file()

    def record(self, name: str) -> dict[str, Any]:
        """What a finished stage wrote into its stage.json; raises UserError with the command for an unfinished one."""
        path = self.folder / name / "stage.json"
        if not path.is_file():
            raise UserError(f"{path.parent}: stage {name} is not finished; run it first: python -m recipes.{name}")
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path}: damaged; redo the stage with --force {name}") from error

    def finish(self, name: str, *, minutes: float, inputs: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Mark the stage as finished."""
        record = {
            "stage": name,
            "seed": self.config.seed,
            "minutes": round(minutes, 2),
            "inputs": inputs,
            "metrics": metrics,
            "commit": git_commit(),
            "versions": package_versions(),
        }
        write_text(self.folder / name / "stage.json", json.dumps(record, indent=2) + "\n")


def prepare_folder(folder: Path) -> None:
    """Make the run folder; raises UserError where that cannot be."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file of that name is in the way; choose another --name")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def open_run(config: Config, force: str | None) -> Run:
    """The run folder of `config`, made or found again; `force` makes a stage and those after it unfinished.

    Raises UserError when the folder was made by a configuration that differs in a stage that is kept.
    """
    run = Run(Path(config.runs) / config.name, config)
    saved = run.folder / "config.yaml"
    redone = STAGES[STAGES.index(force) :] if force else ()
    if saved.is_file():
        changes = differences(with_defaults(saved), config)
        kept = [
            line
            for line in changes
            if re.split("[.:]", line)[0] not in (*redone, *KEYS_THAT_MAY_CHANGE)
            and line.split(":")[0] not in KEYS_THAT_MAY_CHANGE
        ]
        kept = [] if force == first_stage(config) else kept  # with nothing kept, everything may change
        if kept:
            shown = "; ".join(kept[:6]) + (f"; and {len(kept) - 6} more" if len(kept) > 6 else "")
            raise UserError(
                f"{run.folder}: made by another configuration: {shown}; choose another --name, "
                f"or redo it with --force {first_changed(kept, config)}"
            )
    elif run.folder.is_dir() and {path.name for path in run.folder.iterdir()} - {".lock"}:
        raise UserError(f"{run.folder}: not empty and no run folder (no config.yaml); choose another --name")
    for stage in redone:
        # An evaluation replaces its files when it is whole, and knows by itself which answers may be taken again.
        if stage == force == "evaluation":
            with writing(run.folder / stage):
                (run.folder / stage / "stage.json").unlink(missing_ok=True)
        else:
            shutil.rmtree(run.folder / stage, ignore_errors=True)
    prepare_folder(run.folder)
    write_text(saved, dump(config))
    return run


def with_defaults(saved: Path) -> dict[str, Any]:
    """The values of a saved configuration; what an older version saved gets the defaults of keys it did not have."""
    try:
        config, _ = parse(make_parser("", ""), ["--config", str(saved)])
    except UserError:  # a key that is no more; the values then differ, which is said by name
        return parse_saved(saved)
    return yaml.safe_load(dump(config))


def first_stage(config: Config) -> str:
    """The first stage that the configuration has."""
    if config.sft:
        return "sft"
    return "reward" if config.reward and config.reward.model is None else "ppo"


def first_changed(changes: list[str], config: Config) -> str:
    """The earliest stage that "key: old -> new" lines touch; what stands outside of the stages touches all."""
    sections = {re.split("[.:]", line)[0] for line in changes}
    if not sections <= set(STAGES):
        return first_stage(config)
    return next(stage for stage in STAGES if stage in sections)


def package_versions() -> dict[str, str]:
    """Versions of python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def git_commit() -> str | None:
    """Commit of the working copy the code runs from, with + when it has changes; None outside of one."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None
