"""Our rewards drive TRL's own trainers unchanged, and TRL's reward functions are rewards here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer
from trl.rewards import get_repetition_penalty_reward

from workbench.rewards.registry import load_reward

TERMS = [{"model": "length", "options": {"target": 1}}, {"model": "rouge", "options": {"column": "reference"}}]


def train(folder: Path, rewards: list[Any], rows: dict[str, list[str]]) -> list[dict[str, float]]:
    """What two optimizer steps of RLOO on the tiny GPT-2 log."""
    tokenizer = tiny.tokenizer("gpt2")
    tokenizer.padding_side = "left"
    arguments = RLOOConfig(
        str(folder),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=6,
        max_steps=2,
        beta=0.0,  # a reference would be loaded from the hub
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = RLOOTrainer(
        tiny.model("gpt2"), rewards, arguments, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer
    )
    trainer.train()
    return trainer.state.log_history


def test_our_rewards_drive_trls_trainer(tmp_path: Path) -> None:
    ours = load_reward("combine", terms=TERMS)
    trl_reward = load_reward("trl.rewards:get_repetition_penalty_reward", ngram_size=1)
    seen: list[dict[str, list]] = []

    def record(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        selected = {name: columns[name] for name in ("reference", "completion_ids")}
        seen.append({"prompts": prompts, "completions": completions, **selected})
        return [0.0] * len(completions)

    logs = train(tmp_path, [ours, trl_reward, record], {"prompt": ["ab", "cd"], "reference": ["ba", "dc"]})
    steps = [log for log in logs if "reward" in log]
    assert len(steps) == len(seen) == 2
    for call, log in zip(seen, steps, strict=True):
        assert len(call["completions"]) == 4
        assert call["reference"] == [prompt[::-1] for prompt in call["prompts"]]
        assert log["rewards/combine/mean"] == pytest.approx(np.mean(ours(**call)), abs=1e-5)
        assert log[f"rewards/{trl_reward.name}/mean"] == pytest.approx(np.mean(trl_reward(**call)), abs=1e-5)
        assert log["reward"] == pytest.approx(np.mean(ours(**call)) + np.mean(trl_reward(**call)), abs=1e-5)
    assert np.ptp([score for call in seen for score in ours(**call)]) > 0
    assert max(log["grad_norm"] for log in steps) > 0


def test_a_reward_function_of_trl_is_a_reward_here() -> None:
    ids = [[1, 2, 3, 4], [5, 5, 5, 5, 5], []]
    reward = load_reward("trl.rewards:get_repetition_penalty_reward", ngram_size=2)
    assert reward([""] * 3, ["a", "b", ""], completion_ids=ids) == [0.0, -0.75, 0.0]
    assert reward.__name__ == "trl.rewards:get_repetition_penalty_reward"
    plain = load_reward("trl.rewards:get_repetition_penalty_reward")
    assert plain([""] * 3, [""] * 3, completion_ids=ids) == get_repetition_penalty_reward()(ids)
