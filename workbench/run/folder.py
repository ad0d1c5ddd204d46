"""The run folder: one folder per stage, whose stage.json, written last, marks it as finished."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from workbench.config.derived import configured_stages
from workbench.config.names import EVALUATION, PPO, PROMPTING, REWARD, STAGES, TUNING
from workbench.config.parsing import differences, dump, load_saved
from workbench.config.schema import Config
from workbench.errors import UserError, suggestion
from workbench.run.checksums import checksums, first_difference
from workbench.run.distributed import print_once
from workbench.run.files import MODEL_SUFFIXES, flush, follow_umask, is_present, remove_folder, write_text, writing
from workbench.run.model_sources import model_hashes
from workbench.run.stage_record import (
    BEGUN,
    Hashes,
    Origin,
    changes,
    check_begun,
    check_made_from,
    earlier_weights,
    read_record,
    write_record,
)

# These do not affect results: the folder, the tracker and the exit code.
KEYS_THAT_MAY_CHANGE = ("name", "runs", "track", "evaluation.fail_on")
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "evaluate")
# These are looked at when the training is done, so what a stage has trained is kept when they change.
KEYS_OF_JUDGMENT = ("reward.train.polarity_pair", "reward.train.threshold")
# A comparison of methods compares what each of them was trained with, and trains those that changed.
KEYS_OF_METHODS = ("tuning.methods", "tuning.texts", "evaluation.")
TRAINER_CHECKPOINT = "checkpoint-"  # what transformers begins the name of a checkpoint's folder with
MAX_LISTED_CHANGES = 6
RESULT_SUFFIXES = (*MODEL_SUFFIXES, ".jsonl", ".html", ".md")
# What a kill can leave in a new run folder before its config.yaml is there.
WRITTEN_FIRST = {".lock", "config.yaml.partial"}
# README.md is the model card of a library, which nothing reads.
NOT_RESULTS = ("stage.json", BEGUN, "completions_cache.jsonl", "README.md")


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Hold the run folder's lock; raises UserError if another command holds it."""
    with writing(run.folder / ".lock"):
        try:
            lock = FileLock(run.folder / ".lock", blocking=False).acquire()
        except Timeout as error:
            raise UserError(
                f"{run.folder}: another command is using this run folder; wait for it, or choose another --name"
            ) from error
    with lock:
        yield


@dataclass(frozen=True)
class Run:
    """The folder of one experiment: config.yaml, and a folder for each stage."""

    folder: Path
    config: Config

    def stage(self, name: str) -> Path:
        """Return the folder of a stage, created on first use."""
        folder = self.folder / name
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def finished(self, name: str) -> bool:
        """Return whether the stage has its stage.json."""
        return is_present(self.folder / name / "stage.json")

    def record(self, name: str) -> dict[str, Any]:
        """Return the stage.json of a finished stage; raises UserError with the command to run if it is unfinished."""
        path = self.folder / name / "stage.json"
        if not is_present(path):
            raise UserError(
                f"{path.parent}: stage {name} is not finished; run it first: "
                f"python -m recipes.{name} --config {self.folder / 'config.yaml'}"
            )
        stage, _, part = name.partition("/")
        record = read_record(path.parent, stage=stage if part else None)
        if not all(isinstance(record.get(key), dict) for key in ("inputs", "metrics")):
            raise UserError(f"{path}: corrupt; redo the stage with --force {stage}")
        return record

    def verified_record(self, name: str) -> dict[str, Any]:
        """Return the stage.json of a finished stage, whose files are what they were when it finished.

        Raises UserError for a file that is missing or has changed, and if the stage was made from other weights than
        those of the earlier stages now.
        """
        record = self.record(name)
        check_made_from(self.folder, name, record)
        difference = first_difference(self.folder / name, record.get("files", {}))
        if difference is not None:
            stage = name.partition("/")[0]
            raise UserError(f"{self.folder / name}/{difference}; restore it, or redo the stage with --force {stage}")
        return record

    def check_origin(self, name: str) -> None:
        """Raise UserError if a finished stage was made from other weights than those of the earlier stages now."""
        check_made_from(self.folder, name, self.record(name))

    def begin(self, name: str, data: Hashes) -> Origin:
        """Return what the stage is made from, and note it in the stage's folder if it has not begun before.

        Raises UserError where a stage that began before would be resumed on anything else.
        """
        folder, stages = self.stage(name), configured_stages(self.config)
        origin = Origin(earlier_weights(self.folder, name, stages), data, model_hashes(self.config, name))
        if name in (EVALUATION, PROMPTING):  # whatever its cached completions depend on is in their keys
            return origin
        begun = check_begun(self.folder, name, origin)
        if begun is not None:
            return begun
        if has_checkpoints(folder):
            print_once(f"{name}: warning: {folder} does not say what its checkpoints are made from; see --force {name}")
        write_record(folder, asdict(origin), BEGUN)
        return origin

    def finish(
        self, name: str, *, minutes: float, inputs: dict[str, Any], metrics: dict[str, Any], origin: Origin
    ) -> None:
        """Mark the stage as finished, with the checksums of its files, and remove the checkpoints of its trainer."""
        folder = self.folder / name
        files = [file for file in sorted(folder.rglob("*")) if is_result(file.relative_to(folder)) and file.is_file()]
        record = {
            "stage": name,
            "seed": self.config.seed,
            "minutes": round(minutes, 2),
            "inputs": inputs,
            "metrics": metrics,
            **asdict(origin),
            "files": checksums(folder, files),
            "commit": git_commit(),
            "versions": package_versions(),
        }
        for file in files:
            with writing(file):
                follow_umask(file)
                flush(file)
        write_record(folder, record)
        for checkpoint in folder.glob(f"{TRAINER_CHECKPOINT}*"):
            remove_folder(checkpoint)


def has_checkpoints(folder: Path) -> bool:
    """Return whether a stage's folder has checkpoints from which it resumes."""
    return any(folder.glob(f"{TRAINER_CHECKPOINT}*")) or any(folder.glob("checkpoints/step_*"))


def is_result(file: Path) -> bool:
    """Return whether a file, by its path in a stage's folder, is a result that later commands read."""
    is_state = any(part.startswith((".", "checkpoint")) for part in file.parts)
    return not is_state and file.suffix in RESULT_SUFFIXES and file.name not in NOT_RESULTS


def open_finished_run(folder: Path) -> Run:
    """Return the run in the folder that --run names; raises UserError where it is not a run folder."""
    saved = folder / "config.yaml"
    if not saved.is_file():
        neighbors = (folder.parent, *folder.parent.glob("*")) if folder.parent.is_dir() else ()
        runs = sorted(str(path) for path in neighbors if (path / "config.yaml").is_file())
        reason = "no config.yaml in it" if folder.is_dir() else "no such folder"
        raise UserError(f"--run {folder}: not a run folder: {reason}{suggestion(str(folder), runs)}")
    return Run(folder, load_saved(saved))


def prepare_folder(folder: Path) -> None:
    """Create the run folder; raises UserError if that fails."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def check_run(config: Config, force: str | None) -> None:
    """Raise UserError if the run folder cannot take the configuration: another one made a stage that is not redone."""
    folder = Path(config.runs) / config.name
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file of that name is in the way; choose another --name")
    for stage in STAGES:
        check_kind(folder / stage)
    saved = folder / "config.yaml"
    if saved.is_file():
        if force != configured_stages(config)[0]:  # forcing the first stage redoes everything
            check_unchanged(saved, config, redone_stages(force))
    elif folder.is_dir() and {path.name for path in folder.iterdir()} - WRITTEN_FIRST:
        raise UserError(f"{folder}: not empty, and not a run folder (no config.yaml); choose another --name")


def check_kind(folder: Path) -> None:
    """Raise UserError if something else is where a stage's folder or its record belongs, or if it cannot be read."""
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise UserError(f"{folder}: not a folder, but a stage's folder belongs there; move it away")
    if not is_present(folder / "stage.json") and (folder / "stage.json").is_dir():
        raise UserError(f"{folder / 'stage.json'}: a folder, but a stage's record belongs there; move it away")


def open_run(config: Config, force: str | None) -> Run:
    """Open the run folder of `config`, creating it if needed; `force` discards a stage and those after it.

    Raises UserError if the folder was created with a different configuration for a stage that is not redone.
    """
    run = Run(Path(config.runs) / config.name, config)
    saved = run.folder / "config.yaml"
    check_run(config, force)
    redone = redone_stages(force)
    if REWARD not in configured_stages(config) and saved.is_file() and changes_reward_training(saved, config):
        redone = (REWARD, *redone)  # a later configuration must not take up a reward model of other settings
    for stage in redone:
        # An evaluation replaces its files once it is complete, and decides itself which completions to reuse.
        if stage == force and stage in (EVALUATION, PROMPTING):
            with writing(run.folder / stage):
                (run.folder / stage / "stage.json").unlink(missing_ok=True)
        else:
            remove_folder(run.folder / stage)
    if TUNING not in redone and has_other_methods(run):
        with writing(run.folder / TUNING):
            (run.folder / TUNING / "stage.json").unlink(missing_ok=True)
    prepare_folder(run.folder)
    write_text(saved, dump(config))
    return run


def redone_stages(force: str | None) -> tuple[str, ...]:
    """Return the stages that --force redoes: that stage and those after it, or one that no other depends on."""
    if force in (PROMPTING, TUNING):
        return (force,)
    return STAGES[STAGES.index(force) :] if force else ()


def check_unchanged(saved: Path, config: Config, redone: Sequence[str]) -> None:
    """Raise UserError if the saved configuration differs from `config` outside the stages to redo."""
    stages = configured_stages(config)
    if {PROMPTING, TUNING} & set(stages):  # they need no other stage, which may never have begun
        stages = [stage for stage in stages if (saved.parent / stage).is_dir()] or stages
    try:
        before = load_saved(saved)
    except UserError as error:
        if isinstance(error.__cause__, OSError):  # which says nothing about its contents
            raise
        raise UserError(
            f"{error}; correct that file, choose another --name, or start over with --force {stages[0]}"
        ) from error
    affected = {change: first_affected(change.split(":")[0], stages) for change in differences(before, config)}
    changes = {
        change: stage
        for change, stage in affected.items()
        if stage is not None
        and stage not in redone
        and not (stage == TUNING and change.startswith(KEYS_OF_METHODS))
        and not (change.startswith(KEYS_OF_JUDGMENT) and not (saved.parent / stage / "stage.json").is_file())
    }
    if changes:
        more = f"; and {len(changes) - MAX_LISTED_CHANGES} more" if len(changes) > MAX_LISTED_CHANGES else ""
        raise UserError(
            f"{saved.parent}: created with a different configuration: "
            f"{'; '.join(list(changes)[:MAX_LISTED_CHANGES])}{more}; choose another --name, or rerun the affected "
            f"stages with --force {min(changes.values(), key=stages.index)}"
        )


def first_affected(key: str, stages: Sequence[str]) -> str | None:
    """Return the first of the configured `stages` whose result depends on a key; None where none does."""
    section = key.split(".")[0]
    if key in KEYS_THAT_MAY_CHANGE or (key.startswith("reward.train") and REWARD not in stages):
        return None
    if section == REWARD and not key.startswith("reward.train"):
        section = PPO  # what is trained in the reward stage depends on reward.train alone
    elif section == "reuse":
        section = key.split(".")[1]
    if section not in STAGES:
        return stages[0]
    return next((stage for stage in stages if STAGES.index(stage) >= STAGES.index(section)), stages[-1])


def has_other_methods(run: Run) -> bool:
    """Return whether the run folder compares other methods, or in another way, than the run's configuration."""
    saved = run.folder / "config.yaml"
    return saved.is_file() and any(
        change.startswith(KEYS_OF_METHODS) for change in differences(load_saved(saved), run.config)
    )


def changes_reward_training(saved: Path, config: Config) -> bool:
    """Return whether what a trained reward depends on differs from the saved configuration."""
    try:
        changes = differences(load_saved(saved), config)
        return any(change.startswith(("reward.train", "reuse.reward", "seed:")) for change in changes)
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return True  # a corrupt file, which --force of the first stage replaces


def check_inputs(run: Run, stage: str, hashes: Hashes) -> None:
    """Raise UserError if data or weights that a finished stage used are others now; data that is gone is no concern."""
    record = run.record(stage)
    check_made_from(run.folder, stage, record)
    for key, path in changes(record.get("data", {}), hashes):
        raise UserError(
            f"{key}: {path} has changed since stage {stage} of {run.folder} was finished; restore it, choose another "
            f"--name, or redo the stage with --force {stage}"
        )


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def git_commit() -> str | None:
    """Return the commit that the code runs from, with + if the working copy has changes; None outside a repository."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie inside another repository
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None
