"""A comparison of algorithms on toy models in a few steps, for several tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from small_runs import small

from workbench.config.parsing import parse
from workbench.config.schema import Config

GROUPS = {
    "ppo.advantage": "rloo",
    "ppo.samples_per_prompt": 2,
    "ppo.value_model": "shared",
    "ppo.value_learning_rate": None,
}
ALGORITHMS: dict[str, Any] = {"PPO": {}, "RLOO": GROUPS}
POLICIES: dict[str, Any] = {"T5": {}, "GPT-2": {"policy.model": "toy:gpt2", "sft.max_steps": 2}}
ANTI_EXPERT: dict[str, Any] = {
    "anti_expert": {"path": "toy:rude", "template": "{dialogue}", "columns": {"response": "summary"}}
}
BEST_OF = {"best of 2": {"model": "sft", "n": 2}}


def options(folder: Path, *others: str, reward: str = "toy_lexicon", **comparison: Any) -> list[str]:
    """Return the command line of a small comparison; keywords are keys of the section compare."""
    section = {"algorithms": ALGORITHMS} | comparison
    compared = ["--compare", json.dumps(section), "--evaluation.best_of", json.dumps(BEST_OF)]
    return [*small("quickstart", folder, "--reward.model", reward), "--name", "cells", *compared, *others]


def config(folder: Path, *others: str, **comparison: Any) -> Config:
    """Return the configuration of a small comparison."""
    return parse(options(folder, *others, **comparison))[0]


def fails_in_short_trainings(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
    """Score the letters e, but fail where the training has one step."""
    if trainer_state.max_steps == 1 and trainer_state.global_step == 0:
        raise RuntimeError("this reward is out of order")
    return [float(text.count("e")) for text in completions]
