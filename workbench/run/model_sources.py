"""The local models that a stage starts from or optimizes against, each with its content hash."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from workbench.config.names import PPO, REWARD, SFT, TUNING
from workbench.config.schema import Config
from workbench.run.files import content_hash

CONFIGURATIONS = ("config.json", "adapter_config.json")


def model_hashes(config: Config, stage: str) -> dict[str, dict[str, str | None]]:
    """Return the path and content hash of each folder of a model that the training of a stage uses, by key.

    Models of the hub and of the project itself are not among them.
    """
    hashes = {}
    for key, name in model_names(config, stage):
        folder = Path(name).expanduser()
        with suppress(OSError, ValueError):  # a text that is no path
            if any((folder / file).is_file() for file in CONFIGURATIONS):
                hashes[key] = {"path": name, "sha256": content_hash(folder)}
    return hashes


def model_names(config: Config, stage: str) -> Iterator[tuple[str, str]]:
    """Yield every text that may name a model of a stage, with its key."""
    reward = config.reward
    if stage in (SFT, PPO, TUNING):
        yield "policy.model", config.policy.model
    if stage == REWARD and reward is not None and reward.train is not None:
        yield "reward.train.model", reward.train.model
    if stage == PPO and reward is not None:
        yield from texts(reward.options, "reward.options")
        yield from texts(reward.model, "reward.model")
        if reward.held_out is not None:
            yield from texts(vars(reward.held_out), "reward.held_out")


def texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield every text at or below a value, with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from texts(entry, f"{key}.{name}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from texts(entry, f"{key}[{index}]")
