"""Use a finished stage of another run: its settings become this run's, and its files are copied."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from workbench.config.checks import check
from workbench.config.derived import configured_stages
from workbench.config.names import REWARD, SFT
from workbench.config.parsing import differences, load_saved
from workbench.config.schema import Config, ReuseConfig, RewardConfig
from workbench.errors import UserError
from workbench.run.files import atomic_folder, content_hash
from workbench.run.folder import Run, redone_stages
from workbench.run.stage_record import FILE, read_record, write_record


def reused_stages(config: Config) -> dict[str, Path]:
    """Return the stages that other runs supply, each with that run's folder."""
    folders = {SFT: config.reuse.sft, REWARD: config.reuse.reward}
    return {stage: Path(folder) for stage, folder in folders.items() if folder is not None}


def sft_seed(config: Config) -> int:
    """Return the seed with which SFT draws its rows: where another run supplies the stage, that run's."""
    folder = reused_stages(config).get(SFT)
    for copy in () if folder is None else (folder / SFT, Path(config.runs) / config.name / SFT):
        if (copy / FILE).is_file():
            return int(read_record(copy)["seed"])
    return config.seed


def with_reused_settings(config: Config, force: str | None) -> Config:
    """Return the configuration with the settings of the stages that other runs supply.

    Raises UserError for a run without that stage, and for settings here that differ from those of the other run.
    """
    paths = {stage: os.path.normpath(folder.expanduser()) for stage, folder in reused_stages(config).items()}
    config = dataclasses.replace(config, reuse=ReuseConfig(**paths))
    for stage, folder in reused_stages(config).items():
        source = copied_settings(config, stage, force) or load_other(config, stage, folder)
        config = with_sft(config, source, folder) if stage == SFT else with_reward_training(config, source, folder)
    check(config)
    return config


def copied_settings(config: Config, stage: str, force: str | None) -> Config | None:
    """Return this run's own configuration if it holds the copy already and keeps it; it no longer needs the other."""
    run = Run(Path(config.runs) / config.name, config)
    if not run.finished(stage) or stage in redone_stages(force):
        return None
    try:
        saved = load_saved(run.folder / "config.yaml")
    except UserError:  # check_run says how to go on
        return None
    return saved if reused_stages(saved).get(stage) == reused_stages(config)[stage] else None


def load_other(config: Config, stage: str, folder: Path) -> Config:
    """Return the configuration of another run; raises UserError if it has not finished the stage."""
    if folder.resolve() == (Path(config.runs) / config.name).resolve():
        raise UserError(f"reuse.{stage}: {folder} is this run itself; name another run")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"reuse.{stage}: {folder} is not a run folder (no config.yaml)")
    if not (folder / stage / "stage.json").is_file():
        raise UserError(f"reuse.{stage}: {folder} has not finished its {stage} stage; finish it, or name another run")
    return load_saved(folder / "config.yaml")


def with_sft(config: Config, other: Config, folder: Path) -> Config:
    """Return the configuration with the SFT section of the other run."""
    for name in ("model", "lora"):
        ours, theirs = vars(config.policy)[name], vars(other.policy)[name]
        if ours != theirs:
            raise UserError(f"reuse.sft: policy.{name} is {ours} here, but {theirs} in {folder}; they must be equal")
    merged = dataclasses.replace(config, sft=other.sft)
    if config.sft is not None:
        require_equal(SFT, config, merged, folder)
    return merged


def with_reward_training(config: Config, other: Config, folder: Path) -> Config:
    """Return the configuration with the reward training of the other run."""
    train = other.reward.train if other.reward is not None else None
    if config.reward is not None and config.reward.model is not None:
        raise UserError(f"reuse.reward: reward.model is {config.reward.model}, which takes precedence; leave one out")
    reward = dataclasses.replace(config.reward or RewardConfig(), train=train)
    merged = dataclasses.replace(config, reward=reward)
    if config.reward is not None and config.reward.train is not None:
        require_equal(REWARD, config, merged, folder)
    return merged


def require_equal(stage: str, config: Config, merged: Config, folder: Path) -> None:
    """Raise UserError if the run's own settings of a stage differ from those that it reuses."""
    changes = differences(config, merged)
    if changes:
        key, _, values = changes[0].partition(": ")
        ours, _, theirs = values.partition(" -> ")
        raise UserError(
            f"reuse.{stage}: {key} is {ours} here, but {theirs} in {folder}; use its settings, or retrain "
            f"with --reuse.{stage} null"
        )


def copy_stage(run: Run, stage: str, source: Path) -> None:
    """Copy a finished stage of the run in `source`, and record in stage.json where it comes from."""
    assert stage in configured_stages(run.config)
    record = Run(source, run.config).verified_record(stage)
    record["reused"] = {"run": str(source), "sha256": content_hash(source / stage)}
    with atomic_folder(run.folder / stage) as folder:
        shutil.copytree(source / stage, folder, dirs_exist_ok=True, copy_function=link_or_copy)
        write_record(folder, record)  # by replacing it: the other run's own file may be linked


def link_or_copy(source: str, target: str) -> None:
    """Link a file, which takes no space, or copy it where the file system has no links between the two places.

    A symbolic link is followed: relative to the other run's folder, it would lead nowhere from this one.
    """
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
