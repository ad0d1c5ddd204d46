"""A tiny PPO run with everything on that a stop could lose, the stop, and what the run leaves at its end."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny
from accelerate import Accelerator
from accelerate.utils import set_seed

from workbench.config.schema import DataSource, PPOConfig
from workbench.errors import Interrupted
from workbench.ppo.rollout import Rollout
from workbench.ppo.trainer import PPOTrainer
from workbench.rewards.contract import CheckedReward

# Everything that carries state from step to step is on; the last step is no multiple of checkpoint_every.
CONFIG = PPOConfig(
    data=DataSource(path="unused"),
    steps=4,
    batch_size=4,
    minibatch_size=2,
    epochs=1,
    learning_rate=1e-2,
    kl_coef=0.2,
    kl_target=0.5,
    kl_horizon=25,
    score_samples=8,
    max_new_tokens=5,
    min_token_limit=2,
    checkpoint_every=3,
    value_model="separate",
)


def paid(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """A countable reward with noise from the generators that a run does not seed by step."""
    return [text.count("e") + 0.1 * random.random() + 0.1 * numpy.random.random() for text in completions]


def trainer(folder: Path, architecture: str = "gpt2", *, lora: bool = True, **changes: Any) -> PPOTrainer:
    """A trainer that answers prompts of different lengths; like a recipe, it starts from one seed every time."""
    config = dataclasses.replace(CONFIG, **changes)
    tokenizer = tiny.tokenizer(architecture)
    texts = [f"{'ab' * (i % 4)} {chr(97 + i % 26)}:" for i in range(24)]
    rows = [{"prompt": text, "prompt_ids": tokenizer(text).input_ids} for text in texts]
    folder.mkdir(parents=True, exist_ok=True)
    run = PPOTrainer(
        tiny.policy(architecture, lora=lora, separate=config.value_model == "separate"),
        tokenizer,
        CheckedReward(paid, "test"),
        rows,
        config,
        accelerator=Accelerator(cpu=True),
        folder=folder,
        seed=0,
        validation_rows=rows[:4],
    )
    set_seed(1)
    return run


def interrupt(run: PPOTrainer, step: int, number: int = signal.SIGINT) -> None:
    """Train until a signal, sent at work on `step`, stops the run."""
    update = run.update

    def updating(rollout: Rollout) -> dict[str, float]:
        if run.step == step - 1:
            os.kill(os.getpid(), number)
        return update(rollout)

    run.update = updating
    with pytest.raises(Interrupted, match=f"saved at step {step} of {run.config.steps}"):
        run.train()


def lines(file: Path) -> list[dict[str, Any]]:
    """Of a log, without what a clock says."""
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("seconds/") and "_per_s" not in k} for line in found]


def digest(folder: Path) -> str:
    """Hash of the weight files in a folder."""
    files = sorted(folder.rglob("*.safetensors"))
    assert files
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def outcome(run: PPOTrainer) -> dict[str, Any]:
    """Everything that a run leaves."""
    trained = {n: p.detach().numpy().tobytes() for n, p in run.unwrapped.named_parameters() if p.requires_grad}
    return {
        "metrics": lines(run.folder / "metrics.jsonl"),
        "samples": (run.folder / "samples.jsonl").read_text(),
        "weights": {name: hashlib.sha256(value).hexdigest() for name, value in trained.items()},
        "best": digest(run.folder / "best"),
    }


Whole = Callable[..., dict[str, Any]]


def remembered(folders: pytest.TempPathFactory) -> Whole:
    """What uninterrupted runs leave, each made once."""
    known: dict[str, dict[str, Any]] = {}

    def outcome_of(*arguments: Any, **options: Any) -> dict[str, Any]:
        key = repr((arguments, sorted(options.items())))
        if key not in known:
            run = trainer(folders.mktemp("runs") / "whole", *arguments, **options)
            run.train()
            known[key] = outcome(run)
        return known[key]

    return outcome_of


def finish(folder: Path, *arguments: Any, **options: Any) -> dict[str, Any]:
    """What a run that was begun in `folder` leaves at its end."""
    run = trainer(folder, *arguments, **options)
    run.train()
    assert not list(folder.rglob(".*")), "nothing half written is left"
    return outcome(run)
