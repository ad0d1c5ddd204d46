"""A tiny PPO run that uses everything a stop could lose, the stop, and what the run leaves at its end."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from accelerate.utils import set_seed
from trainers import lines, make_trainer

from workbench.config.schema import PPOConfig
from workbench.config.sources import DataSource
from workbench.errors import Interrupted
from workbench.ppo.rollout import Rollout
from workbench.ppo.trainer import PPOTrainer

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


def noisy_reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """A countable reward with noise from the generators that a run does not seed by step."""
    return [text.count("e") + 0.1 * random.random() + 0.1 * numpy.random.random() for text in completions]


def trainer(folder: Path, architecture: str = "gpt2", *, lora: bool = True, **changes: Any) -> PPOTrainer:
    """Return a trainer with four validation prompts; like a recipe, it starts from one seed every time."""
    run = make_trainer(folder, architecture, config=CONFIG, lora=lora, reward=noisy_reward, validation=4, **changes)
    set_seed(1)
    return run


def interrupt(run: PPOTrainer, step: int, number: int = signal.SIGINT) -> None:
    """Train until a signal, sent during `step`, stops the run."""
    update = run.update

    def updating(rollout: Rollout) -> dict[str, float]:
        if run.state.step == step - 1:
            os.kill(os.getpid(), number)
        return update(rollout)

    run.update = updating
    with pytest.raises(Interrupted, match=f"saved at step {step} of {run.config.steps}"):
        run.train()


def file_digest(folder: Path) -> str:
    """Return a hash of the weight files in a folder."""
    files = sorted(folder.rglob("*.safetensors"))
    assert files
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def outcome(run: PPOTrainer) -> dict[str, Any]:
    """Return everything that a run leaves."""
    trained = {n: p.detach().numpy().tobytes() for n, p in run.unwrapped.named_parameters() if p.requires_grad}
    return {
        "metrics": lines(run.folder / "metrics.jsonl"),
        "samples": (run.folder / "samples.jsonl").read_text(),
        "weights": {name: hashlib.sha256(value).hexdigest() for name, value in trained.items()},
        "best": file_digest(run.folder / "best"),
    }


UninterruptedOutcome = Callable[..., dict[str, Any]]


def uninterrupted(folders: pytest.TempPathFactory) -> UninterruptedOutcome:
    """Return a function that returns what uninterrupted runs leave, each made once."""
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
    """Train to the end what was begun in `folder`, and return what it leaves."""
    run = trainer(folder, *arguments, **options)
    run.train()
    assert not list(folder.rglob(".*")), "nothing half written is left"
    return outcome(run)
