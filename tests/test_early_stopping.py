"""An early stopping that something interrupts ends with the weights of one that nothing did."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
from reward_runs import launch
from sharded_processes import stopped_after

from workbench.errors import Interrupted

TRAIN = {"early_stopping": 2, "save_every": 4, "epochs": 12, "learning_rate": 5e-3}


def train(folder: Path, runs: str = "runs") -> Path:
    """Train a classifier until it stops early; return the stage's folder."""
    return launch(folder, TRAIN, runs=runs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nothing interrupted."""
    return train(tmp_path_factory.mktemp("whole"))


def killed_before_saving(folder: Path, runs: str = "runs") -> Path:
    """Train, and end as by a kill before the model is saved; return the stage's folder."""
    saving = mock.patch("workbench.rewards.training.saving.save_reward_model", side_effect=SystemExit("killed"))
    with saving, pytest.raises(SystemExit, match="killed"):
        train(folder, runs)
    return folder / runs / "run" / "reward"


def steps(folder: Path) -> int:
    """Return the number of steps of a stage."""
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def weights(folder: Path) -> str:
    """Return the checksum of the classifier's weights."""
    return json.loads((folder / "stage.json").read_text())["files"]["model.safetensors"]


def test_it_stops_before_the_last_step(whole: Path) -> None:
    assert 12 <= steps(whole) < 120


def test_a_kill_after_its_last_step_takes_no_further_one(whole: Path, tmp_path: Path) -> None:
    killed_before_saving(tmp_path)
    folder = train(tmp_path)
    assert steps(folder) == steps(whole)
    assert weights(folder) == weights(whole)


@pytest.mark.parametrize("stop_at", [3, 9])
def test_a_stop_keeps_its_patience(stop_at: int, whole: Path, tmp_path: Path) -> None:
    with stopped_after(stop_at), pytest.raises(Interrupted):
        launch(tmp_path, TRAIN)
    folder = train(tmp_path)
    assert steps(folder) == steps(whole)
    assert weights(folder) == weights(whole)


def test_the_best_checkpoint_is_found_where_the_run_was_moved_to(whole: Path, tmp_path: Path) -> None:
    killed_before_saving(tmp_path, "before")
    (tmp_path / "before").rename(tmp_path / "after")
    assert weights(train(tmp_path, "after")) == weights(whole)


def test_a_damaged_best_checkpoint_is_not_used(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = killed_before_saving(tmp_path)
    *_, newest = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    best = Path(json.loads((newest / "trainer_state.json").read_text())["best_model_checkpoint"])
    assert best != newest
    weights_file = best / "model.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    train(tmp_path)
    assert f"{best.name}, the best so far, model.safetensors: its contents have changed" in capsys.readouterr().out
    assert weights(folder) == weights(whole)
