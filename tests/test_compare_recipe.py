"""A comparison trains one SFT stage, names a broken run while the others go on, and resumes where it stopped."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from compared_cells import ANTI_EXPERT, GROUPS, options

from recipes.compare import compare
from workbench.config.schema import Config
from workbench.errors import Failed, Interrupted
from workbench.run import series
from workbench.run.cli import execute
from workbench.run.stage_record import read_record

BROKEN = {"PPO": {}, "one step": {"ppo.steps": 1}, "RLOO": GROUPS}
REWARD = "compared_cells:fails_in_short_trainings"


def test_a_broken_run_is_named_and_the_others_go_on(
    in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(tmp_path, reward=REWARD, algorithms=BROKEN)
    with pytest.raises(Failed) as failed:
        compare(arguments)
    page = tmp_path / "cells-compare.html"
    assert str(failed.value).startswith(f"1 of 5 runs are broken, page of the rest: {page}; cells-one-step-seed0: ")
    assert "this reward is out of order" in str(failed.value)
    assert "\n" not in str(failed.value)
    table = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert [note for note in table["warnings"] if "cells-one-step-seed0" in note], "the page names it, too"
    runs = {name: tmp_path / f"cells-{name}" for name in ("sft", "baselines-seed0", "ppo-seed0", "rloo-seed0")}
    trained = read_record(runs.pop("sft") / "sft")
    for run in runs.values():
        copied = read_record(run / "sft")
        assert copied.pop("reused")["run"] == str(tmp_path / "cells-sft")
        assert copied == trained, "one SFT stage for all"
    models = {name: json.loads((run / "evaluation/results.json").read_text())["models"] for name, run in runs.items()}
    assert models == {
        "baselines-seed0": ["base", "sft", "best of 2"],
        "ppo-seed0": ["base", "sft", "aligned"],
        "rloo-seed0": ["base", "sft", "aligned"],
    }
    peaks = [read_record(runs[name] / "ppo")["metrics"]["peak_memory_bytes"] for name in ("ppo-seed0", "rloo-seed0")]
    assert all(peak is None or 0 < peak < 2**32 for peak in peaks)
    capsys.readouterr()
    with pytest.raises(Failed, match="1 of 5 runs are broken"):
        compare(arguments)
    printed = capsys.readouterr().out
    assert printed.count("already finished, skipping") == 1 + 2 + 3 + 3 + 1, "of the broken run its SFT is there"


def test_an_anti_expert_is_trained_before_it_steers(in_project: Path, tmp_path: Path) -> None:
    compare([*options(tmp_path, algorithms={"RLOO": GROUPS}, **ANTI_EXPERT), "--dry_run"])
    assert not list(tmp_path.iterdir()), "the plan needs no adapter"
    compare(options(tmp_path, algorithms={"RLOO": GROUPS}, **ANTI_EXPERT))
    assert (tmp_path / "cells-anti-expert/sft/adapter_model.safetensors").is_file()
    results = json.loads((tmp_path / "cells-baselines-seed0/evaluation/results.json").read_text(encoding="utf-8"))
    assert results["models"] == ["base", "sft", "best of 2", "anti-expert"]


def test_without_the_anti_expert_its_row_does_not_begin(
    in_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute_but_one(stages: list, config: Config, force: str | None) -> None:
        if config.name == "cells-anti-expert":
            raise MemoryError("no room")
        execute(stages, config, force)

    monkeypatch.setattr(series, "execute", execute_but_one)
    with pytest.raises(Failed, match="2 of 4 runs are broken") as failed:
        compare(options(tmp_path, algorithms={"RLOO": GROUPS}, **ANTI_EXPERT))
    assert "cells-baselines-seed0: it reuses cells-anti-expert, which is broken" in str(failed.value)


def test_a_signal_stops_everything_and_the_same_command_goes_on(
    in_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = []

    def execute_with_signal(stages: list, config: Config, force: str | None) -> None:
        begun.append(config.name)
        if config.name == "cells-rloo-seed0":
            monkeypatch.setattr("workbench.ppo.trainer.progress_note", lambda metrics: signal.raise_signal(2) or "")
        execute(stages, config, force)

    monkeypatch.setattr(series, "execute", execute_with_signal)
    arguments = options(tmp_path, algorithms={"RLOO": GROUPS, "PPO": {}})
    with pytest.raises(Interrupted, match="stopped and saved at step 1 of 2"):
        compare(arguments)
    assert begun == ["cells-sft", "cells-baselines-seed0", "cells-rloo-seed0"]
    monkeypatch.undo()
    monkeypatch.chdir(in_project)
    capsys.readouterr()
    compare(arguments)
    log = (tmp_path / "cells-rloo-seed0/ppo/metrics.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["step"] for line in log.splitlines()] == [1, 2]
    assert capsys.readouterr().out.count("already finished, skipping") == 1 + 2 + 1
    assert (tmp_path / "cells-compare.html").is_file()


def test_without_the_shared_stage_nothing_else_begins(
    in_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute_out_of_memory(stages: list, config: Config, force: str | None) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(series, "execute", execute_out_of_memory)
    with pytest.raises(Failed) as failed:
        compare(options(tmp_path))
    assert str(failed.value).startswith("4 of 4 runs are broken, no page, since no other is finished; cells-sft: ")
    assert "cells-sft: out of memory: MemoryError: no room;" in str(failed.value)
    assert str(failed.value).count("it reuses cells-sft, which is broken") == 3
