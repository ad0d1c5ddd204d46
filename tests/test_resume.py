"""A PPO run that a signal or a failing reward stopped resumes, bit for bit, to what it would have been."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import PeftModel, get_peft_model_state_dict
from stopped_runs import (
    CONFIG,
    UninterruptedOutcome,
    file_digest,
    finish,
    interrupt,
    noisy_reward,
    trainer,
    uninterrupted,
)
from trainers import both, either, lines

from recipes import ppo
from workbench.errors import Interrupted, RewardError
from workbench.ppo import trainer as trainer_module
from workbench.ppo.trainer import PPOTrainer
from workbench.rewards.contract import CheckedReward
from workbench.run import cli


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> UninterruptedOutcome:
    """What uninterrupted runs leave, each made once."""
    return uninterrupted(tmp_path_factory)


@both
@either
def test_a_signal_at_any_step_changes_nothing(
    architecture: str, lora: bool, whole: UninterruptedOutcome, tmp_path: Path
) -> None:
    expected = whole(architecture, lora=lora)
    assert [line["step"] for line in expected["metrics"]] == [0, 1, 2, 3, 4]
    assert len({line["objective/kl_coef"] for line in expected["metrics"][1:]}) == 4
    assert [line["step"] for line in expected["metrics"] if "validation/objective" in line] == [0, 3, 4]
    for step in range(1, CONFIG.steps):
        interrupt(trainer(tmp_path / "every", architecture, lora=lora), step, signal.SIGTERM)
        if lora == (architecture == "gpt2"):  # once alone, for one architecture with an adapter and one without
            interrupt(trainer(tmp_path / str(step), architecture, lora=lora), step, signal.SIGINT)
            assert finish(tmp_path / str(step), architecture, lora=lora) == expected, step
    assert finish(tmp_path / "every", architecture, lora=lora) == expected


@pytest.mark.parametrize("steps", [2, CONFIG.checkpoint_every, CONFIG.steps])  # a rollout, and both validations
def test_a_reward_that_fails_changes_nothing_either(steps: int, whole: UninterruptedOutcome, tmp_path: Path) -> None:
    def fail_at(run: PPOTrainer) -> None:
        inner = run.reward

        def failing(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
            scores = inner(prompts, completions, **columns)
            if run.state.step == steps:
                raise RewardError("the scorer did not answer")
            return scores

        run.reward = CheckedReward(failing, "failing")
        with pytest.raises(RewardError):
            run.train()

    for _ in range(2):  # the second time right after it resumed
        fail_at(trainer(tmp_path))
    assert finish(tmp_path) == whole()


def test_a_validation_that_failed_is_made_up_for_once(
    whole: UninterruptedOutcome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def failing(*arguments: Any, **options: Any) -> None:
        raise RewardError("the scorer did not answer")

    # First the validation of step 3 fails; after it is made up for, the rollout of step 4 does.
    interrupt(trainer(tmp_path), 1)
    for owner, name, logged in (("module", "sample_validation", [0, 1, 2]), ("run", "rollout", [0, 1, 2, 3])):
        run = trainer(tmp_path)
        monkeypatch.setattr(trainer_module if owner == "module" else run, name, failing)
        with pytest.raises(RewardError):
            run.train()
        monkeypatch.undo()
        assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == logged
    assert finish(tmp_path) == whole()


@both
@either
def test_best_is_the_policy_of_the_highest_objective_and_loads_without_this_project(
    architecture: str, lora: bool, tmp_path: Path
) -> None:
    # A penalty that outweighs the reward: the further the policy goes, the worse.
    changes = {"checkpoint_every": 1, "kl_coef": 50.0, "kl_target": None, "score_samples": 0}
    # At these rates the best one is the first of gpt2 and one in the middle of t5.
    changes |= {"learning_rate": 1e-1} if architecture == "gpt2" else {"learning_rate": 3e-2, "schedule": "constant"}
    weights: dict[int, dict[str, torch.Tensor]] = {}

    def recorded(folder: Path) -> PPOTrainer:
        run = trainer(folder, architecture, lora=lora, **changes)
        save_best = run.save_best

        def recording(objective: float) -> None:
            model = run.unwrapped.model
            state = get_peft_model_state_dict(model, adapter_name="policy") if lora else model.state_dict()
            weights[run.state.step] = {name: value.clone() for name, value in state.items()}
            save_best(objective)

        run.save_best = recording
        return run

    recorded(tmp_path / "whole").train()
    _, *steps = lines(tmp_path / "whole" / "metrics.jsonl")
    objectives = [line["validation/objective"] for line in steps]
    step = objectives.index(max(objectives)) + 1
    assert step < CONFIG.steps, objectives
    base, folder = tiny.model(architecture), tmp_path / "whole" / "best"
    if lora:
        loaded = get_peft_model_state_dict(PeftModel.from_pretrained(base, folder))
    else:
        loaded = type(base).from_pretrained(folder).state_dict()
    assert loaded.keys() == weights[step].keys()
    assert all(torch.equal(loaded[name], weights[step][name]) for name in loaded)
    assert any(not torch.equal(loaded[name], weights[step + 1][name]) for name in loaded)
    interrupt(recorded(tmp_path / "stopped"), step)
    recorded(tmp_path / "stopped").train()
    assert file_digest(tmp_path / "stopped" / "best") == file_digest(folder)


signalled_at: int | None = None
"""The call of `signalling_reward` at which a signal arrives."""


def signalling_reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """The reward as a recipe finds it by its name."""
    global signalled_at
    if signalled_at is not None:
        signalled_at -= 1
        if signalled_at == 0:
            os.kill(os.getpid(), signal.SIGTERM)
    return noisy_reward(prompts, completions)


def test_the_recipe_resumes_to_the_same_files(
    in_project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts, config = tmp_path / "prompts.jsonl", tmp_path / "config.yaml"
    texts.write_text("".join(json.dumps({"prompt": f"Anna: hello {i}"}) + "\n" for i in range(12)))
    same = ("steps", "batch_size", "minibatch_size", "checkpoint_every", "kl_target", "max_new_tokens", "value_model")
    ppo_settings = {name: getattr(CONFIG, name) for name in same} | {"data": {"path": str(texts)}}
    ppo_settings["validation"] = {"path": str(texts), "limit": 4}
    policy, reward = {"model": "toy:gpt2", "lora": {"r": 4, "alpha": 8}}, {"model": "test_resume:signalling_reward"}
    rest = {"evaluation": {"data": {"test": {"path": str(texts)}}}}
    config.write_text(json.dumps({"name": "run", "policy": policy, "reward": reward, "ppo": ppo_settings} | rest))

    def launch(runs: str) -> Path:
        cli.launch([ppo.STAGE], "", ["--config", str(config), "--runs", str(tmp_path / runs)])
        return tmp_path / runs / "run" / "ppo"

    expected = launch("whole")
    monkeypatch.setattr(sys.modules[__name__], "signalled_at", 3)
    with pytest.raises(Interrupted, match="saved at step 2 of 4"):
        launch("stopped")
    resumed = launch("stopped")
    files = [path.relative_to(expected) for path in expected.rglob("*.safetensors")]
    assert {"best", "value", "adapter_model.safetensors"} <= {file.parts[0] for file in files}
    assert [file for file in files if (resumed / file).read_bytes() != (expected / file).read_bytes()] == []
    assert lines(resumed / "metrics.jsonl") == lines(expected / "metrics.jsonl")
