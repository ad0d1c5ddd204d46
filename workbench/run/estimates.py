"""Estimate how long stages will take, from the runs of the same policy in the same folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workbench.config.derived import completion_limit, sampled_responses, sampling_seeds
from workbench.config.names import PPO, REWARD, SFT
from workbench.config.parsing import load_saved
from workbench.config.schema import Config
from workbench.errors import UserError
from workbench.run.files import read_json

MAX_RUNS = 20  # reading the configuration of a run takes a moment


def expected_seconds(config: Config, stages: Sequence[str], earlier: Sequence[tuple[Config, Path]]) -> float | None:
    """Return how long the stages will take together; None where no earlier run says so for one of them."""
    total = 0.0
    for stage in stages:
        seconds = next(filter(None, (scaled_seconds(config, stage, *run) for run in earlier)), None)
        if seconds is None:
            return None
        total += seconds
    return total


def earlier_runs(config: Config) -> list[tuple[Config, Path]]:
    """Return the latest runs of the same policy with their folders, the newest first."""
    files = sorted(Path(config.runs).glob("*/config.yaml"), key=lambda file: file.stat().st_mtime, reverse=True)
    runs = []
    for file in files[:MAX_RUNS]:
        try:
            saved = load_saved(file)
        except UserError:  # of another version
            continue
        if saved.policy == config.policy:
            runs.append((saved, file.parent))
    return runs


def scaled_seconds(config: Config, stage: str, saved: Config, folder: Path) -> float | None:
    """Return the time that a stage took in another run, scaled by its work; None if it was not done there."""
    ours, theirs = work(config, stage), work(saved, stage)
    try:
        record = read_json(folder / stage / "stage.json", remedy="")
        minutes = float(record["minutes"])
    except (UserError, ValueError, TypeError, KeyError):
        return None
    if ours is None or theirs is None or "reused" in record:
        return None
    return 60 * minutes * ours / theirs


def work(config: Config, stage: str) -> float | None:
    """Return a number that the time of a stage is proportional to; None where only the data would say."""
    if stage == SFT and config.sft is not None:
        return config.sft.batch_size * config.sft.max_steps if config.sft.max_steps else None
    if stage == PPO and config.ppo is not None:
        return config.ppo.steps * sampled_responses(config.ppo) * config.ppo.max_new_tokens
    if stage == REWARD and config.reward is not None and config.reward.train is not None:
        return config.reward.train.epochs
    return completion_limit(config) * config.evaluation.samples * len(sampling_seeds(config))
