"""The comparison with TRL gives both systems the same start and the same prompts, and reads its clock right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trainers import e_rate

from benchmarks import contestants, time_to_target
from workbench.rewards.contract import CheckedReward, RewardModel

OPTIONS = [
    *("--steps", "2", "--every", "2", "--validation", "4", "--threads", "1", "--sft", "null"),
    *("--reward.model", "repetition", "--ppo.data.limit", "20", "--ppo.max_new_tokens", "4"),
    *("--ppo.batch_size", "8", "--ppo.minibatch_size", "4"),
]


def test_two_steps_of_both_make_a_table(in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    time_to_target.main([*OPTIONS, "--folder", str(tmp_path), "--rounds", "1", "--algorithms", "grpo"])
    blocks = json.loads((tmp_path / "toy_gpt2" / "results.json").read_text())
    assert [block["system"] for block in blocks] == ["workbench", "trl"]
    for block in blocks:
        assert list(block["toxicity"]) == ["0", "2"]
        assert block["peak_bytes"] >= block["loaded_bytes"] > 0
    printed = capsys.readouterr().out
    assert "| grpo | trl | " in printed
    assert "TRL takes " in printed


def recorder(calls: list[list[str]]) -> RewardModel:
    """Return a reward that appends the prompts of each call."""

    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        calls.append(list(prompts))
        return e_rate(prompts, completions)

    return reward


@pytest.mark.parametrize("algorithm", time_to_target.ALGORITHMS)
def test_both_start_alike_and_read_the_same_prompts_in_the_same_order(
    algorithm: str, in_project: Path, tmp_path: Path
) -> None:
    options, changes = time_to_target.arguments(OPTIONS)
    workload = contestants.load_workload(time_to_target.block_config(options, changes, algorithm), options.validation)
    prompts: dict[str, list[list[str]]] = {system: [] for system in contestants.SYSTEMS}
    for system in contestants.SYSTEMS:
        reward = recorder(prompts[system])
        (tmp_path / system).mkdir()
        result = contestants.train(workload, CheckedReward(reward, "e rate"), system, 3, 1, tmp_path / system)
        assert len(result["steps"]) == len(result["rewards"]) == 2
        assert all(min(step.values()) >= 0 for step in result["steps"])
    assert prompts["workbench"] == prompts["trl"]
    assert [len(texts) for texts in prompts["trl"]] == [8, 8]
    for step, is_same in ((0, True), (1, False), (2, False)):
        files = [contestants.snapshot(tmp_path / system, step).read_bytes() for system in contestants.SYSTEMS]
        assert (files[0] == files[1]) == is_same


def block(system: str, seconds: list[float], toxicity: dict[str, float]) -> dict[str, Any]:
    """Return what a training leaves."""
    steps = [{"total": total, "generate": 0.25, "score": 0.25, "update": total - 0.5} for total in seconds]
    memory = {"peak_bytes": 2 * time_to_target.GIB, "loaded_bytes": time_to_target.GIB}
    return {
        "system": system,
        "algorithm": "grpo",
        "settings": {"threads": 2},
        "steps": steps,
        "toxicity": toxicity,
    } | memory


def test_the_time_to_the_target_is_that_of_the_first_measurement_at_half() -> None:
    seconds = [5.0, 1.0, 1.0, 1.0]
    curves = {
        "6.0 (step 2)": {"0": 0.5, "2": 0.25, "4": 0.125},
        "8.0 (step 4)": {"0": 0.5, "2": 0.375, "4": 0.25},
        "not within 4 steps": {"0": 0.5, "2": 0.375, "4": 0.375},
    }
    for text, toxicity in curves.items():
        assert time_to_target.time_to_half(block("trl", seconds, toxicity)) == text


def test_measuring_stops_at_half_and_reads_the_last_adapter() -> None:
    values = {1: 0.5, 2: 0.25, 3: 0.0, 4: 0.375}
    curve = time_to_target.curve(lambda file: values[int(file.name)], lambda step: Path(str(step)), 0.5, [1, 2, 3, 4])
    assert curve == {0: 0.5, 1: 0.5, 2: 0.25, 4: 0.375}


def test_the_table_leaves_out_the_first_step_of_each_training() -> None:
    blocks = [
        block("workbench", [9.0, 1.0, 1.0, 1.0], {"0": 0.5, "4": 0.25}),
        block("trl", [90.0, 3.0, 3.0, 3.0], {"0": 0.5, "4": 0.375}),
    ]
    lines = time_to_target.table(blocks).splitlines()
    assert "| 1.00 (1.00 to 1.00) | 0.25 | 0.25 | 0.50 | 2.00 (1.00) | 12.0 (step 4) | 0.500 to 0.250 |" in lines[2]
    assert "| not within 4 steps | 0.500 to 0.375 |" in lines[3]
    assert lines[-2:] == ["grpo: TRL takes 3.00 times as long per step", "threads 2"]
