"""Options of a quickstart that takes a few steps."""

from __future__ import annotations

import json
from pathlib import Path

from recipes import evaluation, ppo, reward, sft

CHAIN = [sft.STAGE, reward.STAGE, ppo.STAGE, evaluation.STAGE]

SMALL = [
    *("--sft.max_steps", "3", "--sft.batch_size", "8"),
    *("--reward.train.data.limit", "64", "--reward.train.validation.limit", "40"),
    *("--ppo.steps", "2", "--ppo.batch_size", "8", "--ppo.minibatch_size", "4", "--ppo.epochs", "1"),
    *("--ppo.max_new_tokens", "6", "--evaluation.batch_size", "10"),
]


def small(name: str, folder: Path, *options: str) -> list[str]:
    """A quickstart of a few steps in `folder`; the reward is the lexicon unless `options` say otherwise."""
    given = [] if "--reward.model" in options else ["--reward.model", "lexicon"]
    limit = ["--evaluation.data", json.dumps({"test dialogues": evaluation_source(10)})]
    return ["--config", f"recipes/configs/{name}.yaml", "--runs", str(folder), *SMALL, *limit, *given, *options]


def evaluation_source(limit: int) -> dict[str, object]:
    """A few embedded test dialogues."""
    return {
        "path": "toy:summaries",
        "split": "test",
        "template": "{dialogue}",
        "columns": {"reference": "summary"},
        "limit": limit,
    }


def drop(options: list[str], *names: str) -> list[str]:
    """Options without those named, and their values."""
    kept = []
    skip = False
    for option in options:
        if not skip and option not in names:
            kept.append(option)
        skip = option in names
    return kept
