"""A reward that tells no responses apart is reported while PPO trains, and claims nothing afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import drop, evaluation_source, small
from trainers import make_trainer

from recipes import evaluation, ppo
from workbench.evaluation.results_files import read_results
from workbench.ppo.learning_signal import RewardSignal, read_signal, value_warning
from workbench.run import cli


def constant(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """Score every response alike."""
    return [0.1] * len(completions)


def signal_of(stds: list[float], mean: float = 0.0) -> tuple[RewardSignal, list[int]]:
    """Return the signal after steps of these deviations, and the steps that warned."""
    signal, warned = RewardSignal(4), []
    for step, std in enumerate(stds, 1):
        signal.add({"objective/score_mean": mean, "objective/score_std": std})
        if signal.warning() is not None:
            warned.append(step)
    return signal, warned


@pytest.mark.parametrize(
    ("stds", "warned", "count"),
    [
        ([1, 1, 1, 1], [], None),
        ([0, 0], [], None),
        ([0, 0, 1, 0, 0, 1], [], 4),
        ([0, 0, 0, 0, 0], [3], 5),
        ([1, 0, 0, 0, 1, 0, 0, 0], [4, 8], 6),
    ],
)
def test_three_constant_steps_in_a_row_warn_once(stds: list[float], warned: list[int], count: int | None) -> None:
    signal, steps = signal_of(stds)
    assert steps == warned
    summary = signal.summary()
    assert summary == (count and f"ppo: warning: in {count} of {len(stds)} steps every response got the same score")


def test_rounding_is_no_variance_and_small_scores_may_have_some() -> None:
    assert signal_of([1e-5] * 3, mean=100.0)[1] == [3]
    assert signal_of([1e-5] * 3, mean=0.0)[1] == []


@pytest.mark.parametrize(
    ("explained", "median"),
    [
        ([-1.0] * 19, None),  # too few steps to say
        ([-2.0, -1.5, -1.0, -0.5, 0.5], None),
        ([-1.0] * 20, "-1.00"),
        ([-1.0] * 15 + [0.1] * 5, None),
        ([0.5] * 30 + [-0.2] * 9 + [-1.2], "-0.20"),
        ([0.5] * 38 + [-50.0] * 2, None),  # outliers
        ([-0.04, 0.04] * 20, None),  # as useless as a constant
        ([-1.0] * 16 + [float("nan")] * 8 + [-1.0] * 4, "-1.00"),
        ([float("nan")] * 40, None),
    ],
)
def test_values_worse_than_a_constant_at_the_end_warn(
    tmp_path: Path, explained: list[float], median: str | None
) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"value/explained_variance": value}) + "\n" for value in explained))
    warning = value_warning(file)
    assert (warning is not None) == (median is not None)
    assert median is None or f"(median explained variance {median})" in str(warning)


def test_a_run_warns_while_it_trains_and_at_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(tmp_path, reward=constant, steps=5, batch_size=4, minibatch_size=4, epochs=1).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "every response" in line]
    assert [line.split(":")[2].strip() for line in lines] == [
        "step 3",
        "in 5 of 5 steps every response got the same score",
    ]
    assert read_signal(tmp_path / "metrics.jsonl", 4).constant == [True] * 5
    assert read_signal(tmp_path / "metrics.jsonl", 1).constant == [False] * 5
    make_trainer(tmp_path / "other", steps=4, batch_size=4, minibatch_size=4, epochs=1).train()
    assert "warning" not in capsys.readouterr().out


def test_a_constant_reward_changes_nothing_detectable(
    in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("--sft.max_steps", "--sft.batch_size", "--sft.data.limit", "--reward.model", "--evaluation.data")
    sets = ["--evaluation.data", json.dumps({"test": evaluation_source(40)}), "--evaluation.batch_size", "40"]
    options = [*drop(small("quickstart", tmp_path), *names), *sets, "--sft", "null", "--ppo.steps", "4"]
    cli.launch([ppo.STAGE, evaluation.STAGE], "", [*options, "--reward.model", "test_learning_signal:constant"])
    assert "in 4 of 4 steps every response got the same score" in capsys.readouterr().out
    results = read_results(tmp_path / "quickstart" / "evaluation" / "results.json")
    assert results.verdict.word == "no detectable change"
