"""What a method costs counts all of its launches and nothing else, and what is trained is not trained again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerControl
from tuning_runs import options, planned, run

from recipes import tuning
from workbench.config.parsing import parse
from workbench.run.cli import plan_stages
from workbench.run.peak_memory import PeakMemory
from workbench.tuning import training
from workbench.tuning.costs import CostCallback, Costs
from workbench.tuning.warm_up import warm_up

LORA: dict[str, Any] = {"LoRA": {"method": "lora", "r": 2}}
FULL: dict[str, Any] = {"full": {"method": "full"}}


def test_costs_add_over_launches_and_the_peak_is_the_highest(tmp_path: Path) -> None:
    control, arguments = TrainerControl(), TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    state = TrainerState()
    with mock.patch("time.monotonic", side_effect=[0.0, 60.0, 1000.0, 1120.0]):
        first = CostCallback(tmp_path, PeakMemory(lambda: 900))
        first.on_train_begin(arguments, state, control)
        state.global_step = 3
        (tmp_path / "checkpoint-3").mkdir()
        first.on_save(arguments, state, control)
        second = CostCallback(tmp_path, PeakMemory(lambda: 700))
        second.on_train_begin(arguments, state, control)
        assert second.total() == Costs(3.0, 900)
    assert Costs(1.0, 5).plus(1.0, None) == Costs(2.0, None), "a launch that cannot measure leaves it unknown"


def test_a_resumed_method_has_the_costs_of_both_launches(tmp_path: Path) -> None:
    words: dict[str, Any] = {"tuning.methods": LORA, "sft.save_every": "2"}

    with mock.patch.object(CostCallback, "on_step_begin", killed_after(3)), pytest.raises(KeyboardInterrupt):
        run(tmp_path, **words)
    folder = tmp_path / "ways" / "tuning" / "methods" / "LoRA"
    file = folder / "checkpoint-2" / "costs.json"
    assert json.loads(file.read_text())["minutes"] > 0
    checksums = folder / "checkpoint-2" / "checksums.json"
    assert "costs.json" in checksums.read_text()
    before = Costs.plus

    def plus(self: Costs, minutes: float, peak: int | None) -> Costs:
        return before(Costs(self.minutes and 100.0, self.peak_memory_bytes and 2**40), minutes, peak)

    with mock.patch.object(Costs, "plus", plus):
        run(tmp_path, **words)
    record = json.loads((folder / "stage.json").read_text())
    assert 100 < record["minutes"] < 110
    assert record["metrics"]["peak_memory_bytes"] == 2**40


def killed_after(step: int) -> Any:
    """Return a callback that ends the process at a step."""

    def kill(self: CostCallback, args: Any, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt

    return kill


def test_no_method_pays_for_being_the_first(tmp_path: Path) -> None:
    """The warm-up of every kind of method ends before the first one is measured."""
    events: list[str] = []
    methods = {"a": {"method": "lora", "r": 2}, "b": {"method": "prompt_tuning"}, "c": {"method": "lora", "r": 4}}
    make, measure = training.make_sft_trainer, training.peak_memory

    def made(*arguments: Any, **rest: Any) -> Any:
        events.append(f"warm {rest['method'].method}")
        return make(*arguments, **rest)

    @contextmanager
    def measured(device: torch.device) -> Iterator[PeakMemory]:
        events.append("measured")
        with measure(device) as peak:
            yield peak

    with (
        mock.patch("workbench.tuning.warm_up.make_sft_trainer", made),
        mock.patch("workbench.tuning.training.peak_memory", measured),
    ):
        run(tmp_path, **{"tuning.methods": methods})
    assert events == ["warm lora", "warm prompt_tuning", *["measured"] * 3]


@pytest.mark.parametrize("model", ["toy:t5", "toy:gpt2"])
def test_a_warm_up_leaves_nothing_behind(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = planned(tmp_path, **{"policy.model": model}).config
    assert config.tuning is not None
    warm_up(config, [method for method in config.tuning.methods.values() if method.method in ("full", "lora")])
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().out


def test_a_further_method_is_trained_alone_and_the_plan_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, **{"tuning.methods": LORA})
    weights = folder / "methods" / "LoRA" / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    config = parse(options(tmp_path, **{"tuning.methods": LORA | FULL}))[0]
    line = "already trained: LoRA; to train: full"
    (_, plan), (_, forced) = (next(iter(plan_stages([tuning.STAGE], config, force))) for force in (None, "tuning"))
    assert line in plan.lines
    assert not [each for each in forced.lines if "already trained" in each], "--force redoes them all"
    run(tmp_path, **{"tuning.methods": LORA | FULL})
    assert line in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == before
    assert json.loads((folder / "results.json").read_text())["models"] == ["zero-shot", "LoRA", "full"]


def test_a_changed_method_is_trained_again_and_no_other(tmp_path: Path) -> None:
    folder = run(tmp_path, **{"tuning.methods": LORA | FULL})
    files = [folder / "methods" / "full" / "model.safetensors", folder / "methods" / "LoRA" / "stage.json"]
    before = [file.stat().st_mtime_ns for file in files]
    run(tmp_path, **{"tuning.methods": {"LoRA": {"method": "lora", "r": 4}} | FULL})
    assert [file.stat().st_mtime_ns == time for file, time in zip(files, before, strict=True)] == [True, False]
    assert json.loads((folder / "methods" / "LoRA" / "adapter_config.json").read_text())["r"] == 4
