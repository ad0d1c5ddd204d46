"""Preference models: which pairs they learn from, and that they are scored as they were trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reward_runs import launch, lines, preferences

from recipes import ppo
from workbench.errors import UserError
from workbench.rewards.registry import load_reward


def test_a_preference_model_learns_the_order_and_is_scored_with_its_prompt(
    in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {
        "objective": "preference",
        "target_label": None,
        "data": preferences(tmp_path / "pairs.jsonl", 96, 0, same=3),
        "validation": preferences(tmp_path / "held_out.jsonl", 24, 1),
    }
    folder = launch(tmp_path, train, chain=[ppo.STAGE])
    assert "96 pairs, 3 dropped with chosen == rejected" in capsys.readouterr().out
    report = json.loads((folder / "report.json").read_text())
    assert (report["pairs"], report["accuracy"]) == (24, 1.0)
    score = load_reward(str(folder))
    high, low = score(["Anna asks Tom."] * 2, ["Thank you, Mia.", "You idiot, Mia."])
    assert high > low
    assert score(["Anna asks Tom."], ["Thank you, Mia."]) != score(["Ben asks."], ["Thank you, Mia."])


def test_pairs_without_a_difference_are_refused(in_project: Path, tmp_path: Path) -> None:
    same = preferences(tmp_path / "same.jsonl", 0, 0, same=5)
    with pytest.raises(UserError, match="all 5 rows have chosen == rejected"):
        launch(tmp_path, {"objective": "preference", "target_label": None, "data": same})


def test_pairs_that_are_equal_once_truncated_are_dropped_and_a_model_without_prompts_is_scored_without(
    in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opening = "Anna asks Tom for the way to the market, and Tom, who knows it well, says: " * 4

    def pairs(file: Path, count: int, equal: int, **more: str) -> dict[str, Any]:
        start = [opening] * equal + [""] * count
        rows = [
            {"chosen": f"{s}Thank you, {i}.", "rejected": f"{s}You idiot, {i}."} | more for i, s in enumerate(start)
        ]
        return lines(file, rows)

    training, validation = pairs(tmp_path / "pairs.jsonl", 48, 3), pairs(tmp_path / "held_out.jsonl", 12, 2)
    train = {"objective": "preference", "target_label": None, "data": training, "validation": validation, "epochs": 1}
    folder = launch(tmp_path, train)
    printed = capsys.readouterr().out
    for count, equal in ((48, 3), (12, 2)):
        dropped = f"0 dropped with chosen == rejected, {equal} dropped as equal within reward.train.max_tokens 32"
        assert f"{count} pairs, {dropped}" in printed
    assert json.loads((folder / "report.json").read_text())["pairs"] == 12
    score = load_reward(str(folder))
    assert score(["Anna asks."], ["Thank you."]) == score(["Ben asks."], ["Thank you."])
    with pytest.raises(UserError, match="prompt is true, but it was trained without prompts"):
        load_reward(str(folder), prompt=True)
    for key in ("data", "validation"):
        equal_pairs = pairs(tmp_path / "equal.jsonl", 0, 5)
        with pytest.raises(UserError, match=rf"train\.{key}: .*all 5 pairs are equal in their first 32 tokens; raise"):
            launch(tmp_path, train | {key: equal_pairs}, "--dry_run", runs="other")
    with_prompts = pairs(tmp_path / "with.jsonl", 48, 0, prompt="Anna asks.")
    with pytest.raises(UserError, match=r"validation: reward\.train\.data has prompts and .*validation has none"):
        launch(tmp_path, train | {"data": with_prompts}, "--dry_run", runs="other")
