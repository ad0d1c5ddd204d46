"""The checkpoints of SFT and reward training: how many stay, and what resuming one changes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from sharded_processes import stopped_after
from small_runs import small
from transformers import Trainer

from recipes import sft
from workbench.errors import Interrupted, UserError
from workbench.run import cli, hf_trainer
from workbench.run.checksums import write_checksums
from workbench.run.hf_trainer import LAUNCH, check_not_diverged, existing_checkpoints, mean_loss

NAME = "quickstart_gpt2"


def options(folder: Path, limit: int | None = None) -> list[str]:
    """Return options of seven steps with a checkpoint after every second."""
    arguments = {} if limit is None else {"save_total_limit": limit}
    steps = ["--sft.max_steps", "7", "--sft.save_every", "2", "--sft.trainer_args", json.dumps(arguments)]
    return small(NAME, folder, *steps)


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_as_many_checkpoints_are_kept_as_asked_for_and_always_a_complete_one(limit: int, tmp_path: Path) -> None:
    counts = []

    def counting(folder: Path) -> None:
        write_checksums(folder)
        counts.append(len(existing_checkpoints(folder.parent)))

    with mock.patch.object(hf_trainer, "write_checksums", counting):
        cli.launch([sft.STAGE], "", options(tmp_path, limit))
    assert counts == [min(limit + 1, number) for number in (1, 2, 3, 4)]


def test_a_kill_before_the_checksums_loses_no_earlier_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = []

    def killed(folder: Path) -> None:
        saved.append(folder)
        if len(saved) == 2:
            raise SystemExit("killed")
        write_checksums(folder)

    with mock.patch.object(hf_trainer, "write_checksums", killed), pytest.raises(SystemExit, match="killed"):
        cli.launch([sft.STAGE], "", options(tmp_path, 1))
    steps: list[int] = []
    advance = hf_trainer.StepCallback.on_step_end

    def counting(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps.append(state.global_step)
        advance(self, args, state, control, **kwargs)

    with mock.patch.object(hf_trainer.StepCallback, "on_step_end", counting):
        cli.launch([sft.STAGE], "", options(tmp_path, 1))
    assert steps == [3, 4, 5, 6, 7]
    assert "checkpoint-4 is not used (incomplete)" in capsys.readouterr().out


def test_a_resume_by_another_launch_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stopped_after(3), pytest.raises(Interrupted):
        cli.launch([sft.STAGE], "", options(tmp_path))
    checkpoint = tmp_path / NAME / "sft" / "checkpoint-3"
    assert json.loads((checkpoint / LAUNCH).read_text()) == {"processes": 1, "precision": "fp32"}
    with stopped_after(2), pytest.raises(Interrupted):
        cli.launch([sft.STAGE], "", options(tmp_path))
    assert "warning: " not in capsys.readouterr().out, "the same launch"
    checkpoint = tmp_path / NAME / "sft" / "checkpoint-5"
    (checkpoint / LAUNCH).write_text(json.dumps({"processes": 2, "precision": "bf16"}))
    write_checksums(checkpoint)
    cli.launch([sft.STAGE], "", options(tmp_path))
    assert [line for line in capsys.readouterr().out.splitlines() if "warning: " in line] == [
        "sft: warning: saved by 2 processes, resumed by 1: the steps from here on draw other random numbers than they "
        "would have",
        "sft: warning: this machine goes on in fp32 what was begun in bf16; see policy.precision",
    ]


def finished_trainer(precision: str, losses: list[float], weight: float = 1.0) -> Any:
    """Return what is left of a trainer that logged these losses."""
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, weight)
    history = [{"step": 10 * number, "loss": loss} for number, loss in enumerate(losses, 1)]
    return SimpleNamespace(
        state=SimpleNamespace(log_history=[*history, {"step": 10 * len(losses), "train_loss": math.nan}]),
        accelerator=SimpleNamespace(mixed_precision=precision),
        is_fsdp_enabled=False,
        model=model,
    )


@pytest.mark.parametrize(
    ("precision", "losses", "weight", "has_diverged"),
    [
        ("fp16", [2.0, math.inf, 1.0], 1.0, False),
        ("fp16", [2.0, 1.0, math.nan], 1.0, False),
        ("fp16", [2.0, math.nan, math.nan], 1.0, True),
        ("fp16", [math.inf], 1.0, True),
        ("fp16", [2.0, 1.0], math.nan, True),
        ("bf16", [2.0, math.inf, 1.0], 1.0, True),
        ("no", [2.0, 1.0], 1.0, False),
    ],
)
def test_a_step_that_the_loss_scaling_skipped_is_no_divergence(
    precision: str, losses: list[float], weight: float, has_diverged: bool
) -> None:
    trainer = finished_trainer(precision, losses, weight)
    if has_diverged:
        with pytest.raises(UserError, match="the loss or the trained weights are not finite"):
            check_not_diverged(trainer, "sft")
        with pytest.raises(UserError, match=r"^tuning: .*lower tuning\.methods\.LoRA r 2\.learning_rate or set"):
            check_not_diverged(trainer, "tuning", "LoRA r 2")
    else:
        check_not_diverged(trainer, "sft")
        finite = [loss for loss in losses if math.isfinite(loss)]
        assert mean_loss(trainer.state.log_history) == pytest.approx(sum(finite) / len(finite))


def test_a_loss_that_is_not_finite_is_not_in_the_ones_after_it(tmp_path: Path) -> None:
    steps = Trainer.training_step
    calls: list[int] = []

    def step(self: Trainer, *arguments: Any, **options: Any) -> torch.Tensor:
        loss = steps(self, *arguments, **options)
        calls.append(1)
        return loss * math.inf if len(calls) == 2 else loss

    logged: list[float] = []

    def checked(trainer: Trainer, label: str, method: str | None) -> None:
        logged.extend(float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)

    patched = mock.patch.object(hf_trainer, "check_not_diverged", checked)
    with patched, mock.patch.object(Trainer, "training_step", step):
        cli.launch([sft.STAGE], "", options(tmp_path))
    assert [math.isfinite(loss) for loss in logged] == [False, True, True, True]
