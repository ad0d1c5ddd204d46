"""Small runs of the stage `reward` on sentences about a few people."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from recipes import reward
from workbench.run import cli

NAMES = ["Anna", "Tom", "Mia", "Ben", "Lea", "Max"]


def lines(file: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A source of `rows`."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(file)}


def labeled(file: Path, count: int, seed: int, rude_fraction: float = 0.5) -> dict[str, Any]:
    """Sentences of which `rude_fraction` hold one rude word."""
    chance = random.Random(seed)
    rows = []
    for row in range(count):
        rude = row < rude_fraction * count
        word = "idiot" if rude else chance.choice(["friend", "teacher", "doctor"])
        label = "rude" if rude else "ok"
        rows.append({"text": f"{chance.choice(NAMES)} is a {word}, said {chance.choice(NAMES)}.", "label": label})
    chance.shuffle(rows)
    return lines(file, rows)


def preferences(file: Path, count: int, seed: int, same: int = 0) -> dict[str, Any]:
    """Pairs whose chosen completion thanks, and `same` pairs without a difference."""
    chance = random.Random(seed)
    rows = [
        {
            "prompt": f"{chance.choice(NAMES)} asks {chance.choice(NAMES)}.",
            "chosen": f"Thank you, {chance.choice(NAMES)}.",
            "rejected": f"You idiot, {chance.choice(NAMES)}.",
        }
        for _ in range(count)
    ]
    return lines(file, rows + [{"prompt": "a", "chosen": "Yes.", "rejected": "yes. "}] * same)


def write_config(folder: Path, train: dict[str, Any]) -> Path:
    """A configuration file around the section reward.train."""
    texts = lines(folder / "prompts.jsonl", [{"prompt": f"{name}: hello"} for name in NAMES])
    defaults = {
        "model": "toy:gpt2",
        "data": labeled(folder / "train.jsonl", 160, 0),
        "validation": labeled(folder / "validation.jsonl", 40, 1),
        "target_label": "ok",
        "polarity_pair": ["Anna is a friend, said Tom.", "Anna is an idiot, said Tom."],
        "batch_size": 16,
        "epochs": 3,
        "learning_rate": 2e-3,
        "max_tokens": 32,
    }
    config = {
        "name": "run",
        "policy": {"model": "toy:gpt2", "lora": {"r": 4, "alpha": 8}},
        "reward": {"train": defaults | train},
        "ppo": {"data": texts, "steps": 1, "batch_size": 4, "minibatch_size": 4, "max_new_tokens": 4},
        "evaluation": {"data": {"test": texts}},
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(config))
    return file


def launch(folder: Path, train: dict[str, Any], *options: str, runs: str = "runs", chain: Any = None) -> Path:
    """Run the stage, and those of `chain` after it; its folder."""
    arguments = ["--config", str(write_config(folder, train)), "--runs", str(folder / runs), *options]
    cli.launch([reward.STAGE, *(chain or [])], "", arguments)
    return folder / runs / "run" / "reward"
