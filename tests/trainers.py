"""A PPOTrainer of a tiny policy on a countable reward, and what a run leaves."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator

from workbench.config.derived import has_values
from workbench.config.schema import PPOConfig
from workbench.config.sources import DataSource
from workbench.models.policy import Policy
from workbench.ppo.rollout import Rollout
from workbench.ppo.trainer import PPOTrainer
from workbench.rewards.contract import CheckedReward, RewardModel

both = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
either = pytest.mark.parametrize("lora", [True, False])

CONFIG = PPOConfig(
    data=DataSource(path="unused"),
    steps=4,
    batch_size=16,
    minibatch_size=8,
    epochs=2,
    learning_rate=1e-2,
    kl_coef=0.01,
    max_new_tokens=8,
    checkpoint_every=2,
)


GROUPS: dict[str, Any] = {"samples_per_prompt": 4}
# By what is learned beside the policy, or instead of values.
VALUES: dict[str, dict[str, Any]] = {
    "shared": {},
    "separate": {"value_model": "separate"},
    "reward": {"value_model": "reward"},
    "rloo": {"advantage": "rloo"} | GROUPS,
    "dpo": {"loss": "dpo"} | GROUPS,
    "raft": {"loss": "raft"} | GROUPS,
}


def e_rate(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """Return the fraction of a completion's characters that are e."""
    return [text.count("e") / max(len(text), 1) for text in completions]


def interrupting(call: int) -> RewardModel:
    """Return e_rate as a reward whose call of this number, from 1, is interrupted as by Ctrl-C."""
    calls = itertools.count(1)

    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return e_rate(prompts, completions)

    return reward


def make_rows(architecture: str, count: int) -> list[dict[str, Any]]:
    """Return prompts of different lengths, with a column for the reward."""
    tokenizer = tiny.tokenizer(architecture)
    texts = [f"{'ab' * (i % 4)} {chr(97 + i % 26)}:" for i in range(count)]
    return [{"prompt": text, "prompt_ids": tokenizer(text).input_ids, "index": i} for i, text in enumerate(texts)]


def make_trainer(
    folder: Path,
    architecture: str = "gpt2",
    *,
    config: PPOConfig = CONFIG,
    lora: bool = True,
    policy: Policy | None = None,
    reward: RewardModel | None = e_rate,
    held_out: RewardModel | None = None,
    validation: int = 0,
    texts: Sequence[dict[str, Any]] = (),
    ptx_texts: Sequence[dict[str, Any]] = (),
    seed: int = 0,
    cpu: bool = True,
    **changes: Any,
) -> PPOTrainer:
    """Return a trainer on 40 prompts, `validation` of them validated on, with `changes` to `config`."""
    config = dataclasses.replace(config, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    return PPOTrainer(
        policy or initial_policy(architecture, config, lora=lora),
        tiny.tokenizer(architecture),
        CheckedReward(reward, "test") if reward else None,
        make_rows(architecture, 40),
        config,
        accelerator=Accelerator(cpu=cpu),
        folder=folder,
        seed=seed,
        validation_rows=make_rows(architecture, validation),
        texts=texts,
        ptx_texts=ptx_texts,
        held_out=CheckedReward(held_out, "held out") if held_out else None,
    )


def initial_policy(architecture: str, config: PPOConfig, *, lora: bool) -> Policy:
    """Return the tiny policy that the configuration's kind of advantage needs."""
    separate = config.value_model == "separate"
    return tiny.policy(architecture, lora=lora, separate=separate, with_values=has_values(config))


def minibatches_in_order(
    processes: int, rows: int, epochs: int, size: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield minibatches whose union over the processes does not depend on how many there are."""
    parts_here = processes // Accelerator(cpu=True).num_processes
    parts = [part.split(size * len(part) // rows) for part in torch.arange(rows).chunk(parts_here)]
    for _ in range(epochs):
        yield from (torch.cat(minibatch) for minibatch in zip(*parts, strict=True))


def step(run: PPOTrainer) -> tuple[Rollout, dict[str, float]]:
    """Take one step; return its rollout and metrics."""
    rollout = run.rollout(run.batch(run.state.step))
    return rollout, run.update(rollout)


def untimed(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics without those that a clock measured."""
    return {k: v for k, v in metrics.items() if not k.startswith("seconds/") and not k.endswith("_per_second")}


def lines(file: Path) -> list[dict[str, Any]]:
    """Return the entries of a log, without what a clock measured."""
    return [untimed(json.loads(line)) for line in file.read_text().splitlines()]


def digest(parameters: Iterable[torch.Tensor]) -> str:
    """Return a hash of weights."""
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in parameters)).hexdigest()


def trained_weights(policy: Policy) -> str:
    """Return a hash of the weights that are trained."""
    return digest(p for p in policy.parameters() if p.requires_grad)


def frozen_weights(policy: Policy) -> str:
    """Return a hash of the weights that are not trained, and of the frozen copy."""
    return digest(policy.reference_parameters())
