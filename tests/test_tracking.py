"""Trackers get one project, a group for each run, the configuration, curves, samples and the verdict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import tracking as accelerate_tracking
from small_runs import CHAIN, small
from typed_results import make_difference, make_results, make_set

from workbench.config.parsing import parse
from workbench.evaluation.results import TOXICITY, Metric
from workbench.report.tables import final_metrics
from workbench.run import cli
from workbench.run.folder import Run
from workbench.run.tracking import NoTracker, tracking

ROOT = Path(__file__).resolve().parent.parent


class Recorder:
    """Stands in for one of Accelerate's trackers, and records what it is told."""

    runs: list[Recorder] = []  # noqa: RUF012, emptied by the fixture

    def __init__(self, project: str, **arguments: Any) -> None:
        self.project, self.arguments = project, arguments
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.tables: list[dict[str, Any]] = []
        self.settings: dict[str, Any] = {}
        self.is_finished = False
        self.runs.append(self)

    name = "wandb"

    def start(self) -> None:
        pass

    def store_init_configuration(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def log_table(self, name: str, columns: list[str], data: list[list[Any]], step: int) -> None:
        self.tables.append({"name": name, "columns": columns, "data": data, "step": step})

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """The class that stands in for W&B's tracker."""
    Recorder.runs = []
    monkeypatch.setitem(accelerate_tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(cli, "find_spec", lambda name: SimpleNamespace())
    return Recorder


def test_a_chain_is_one_group_of_a_run_for_each_stage(
    recorder: type[Recorder], in_project: Path, tmp_path: Path
) -> None:
    cli.launch(CHAIN, "", small("quickstart", tmp_path, "--track", "wandb", "--sft.max_steps", "10"))
    sft, ppo, evaluation = recorder.runs
    names = [run.arguments["name"] for run in recorder.runs]
    assert names == ["quickstart-sft", "quickstart-ppo", "quickstart-evaluation"]
    assert {run.project for run in recorder.runs} == {"alignment-workbench"}
    assert {run.arguments["group"] for run in recorder.runs} == {"quickstart"}
    assert [run.arguments["job_type"] for run in recorder.runs] == ["sft", "ppo", "evaluation"]
    assert all(run.is_finished for run in recorder.runs)
    assert ppo.settings["ppo.kl_coef"] == 0.2
    assert all(isinstance(value, bool | int | float | str | None) for value in ppo.settings.values())

    assert [step for step, values in sft.logged if "loss" in values] == [10]
    folder = tmp_path / "quickstart"
    lines = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert [{"step": step} | values for step, values in ppo.logged] == lines
    samples = [json.loads(line) for line in (folder / "ppo" / "samples.jsonl").read_text().splitlines()]
    (table,) = ppo.tables
    texts = [row[table["columns"].index("completion")] for row in table["data"]]
    assert (table["name"], table["step"], texts) == ("samples", 2, [sample["completion"] for sample in samples])
    ((step, metrics),) = evaluation.logged
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    assert step == 0
    assert metrics["verdict/toxicity"] == results["verdict"]["word"]
    assert metrics["verdict/toxicity/sentence"] == results["verdict"]["sentence"]
    assert {"failed_guards", "test dialogues/ROUGE-L/aligned", "test dialogues/ROUGE-L/aligned - sft"} <= set(metrics)


def test_a_stage_that_fails_ends_its_run_with_the_tracker(
    recorder: type[Recorder], in_project: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path, parse(["--config", "recipes/configs/quickstart.yaml", "--track", "wandb"])[0])
    with pytest.raises(RuntimeError), tracking(run, "ppo"):
        raise RuntimeError
    assert recorder.runs[0].is_finished


def test_without_a_tracker_and_on_other_processes_nothing_is_logged(
    recorder: type[Recorder], in_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = Run(tmp_path, parse(["--config", "recipes/configs/quickstart.yaml"])[0])
    with tracking(without, "ppo") as tracker:
        assert isinstance(tracker, NoTracker)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    other = Run(tmp_path, parse(["--config", "recipes/configs/quickstart.yaml", "--track", "wandb"])[0])
    with tracking(other, "ppo") as tracker:
        tracker.log({"loss": 1.0}, step=1)
        tracker.log_samples([{"prompt": "a"}], step=1)
    assert recorder.runs == []


def test_tensorboard_gets_curves_samples_and_the_configuration(in_project: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tmp_path, parse(["--config", "recipes/configs/quickstart.yaml", "--track", "tensorboard"])[0])
    with tracking(run, "ppo") as tracker:
        tracker.log({"objective/kl": 0.5, "verdict": "better"}, step=3)
        tracker.log_samples([{"prompt": "a | b\nc", "score": 1.0}], step=3)
        tracker.log_samples([], step=4)
    events = EventAccumulator(str(tmp_path / "ppo" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("objective/kl")] == [(3, 0.5)]
    texts = {
        tag: [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    assert texts["samples/text_summary"] == ["| prompt | score |\n| --- | --- |\n| a \\| b c | 1.0 |"]
    assert "kl_coef: 0.2" in texts["configuration/text_summary"][0]


def test_final_metrics_have_the_differences_and_their_intervals() -> None:
    differences = [
        make_difference(Metric(TOXICITY, "lower", "lexicon"), 0.5, 0.25, "better", interval=(-0.375, -0.125)),
        make_difference(Metric("repetition"), 0.5, 0.75, interval=None),
    ]
    metrics = final_metrics(make_results([make_set("prompts", differences)], judges=["lexicon"]))
    assert {name: value for name, value in metrics.items() if "aligned - sft" in name} == {
        "prompts/toxicity (lexicon)/aligned - sft": -0.25,
        "prompts/toxicity (lexicon)/aligned - sft, low": -0.375,
        "prompts/toxicity (lexicon)/aligned - sft, high": -0.125,
        "prompts/repetition/aligned - sft": 0.25,
    }
    assert metrics["verdict/toxicity"] == "no detectable change"


# What trackio's own API reads from its database, in which the arguments are the runs.
READ_BACK = """
import json
import trackio
from trackio.sqlite_storage import SQLiteStorage

runs = trackio.Api().runs("alignment-workbench")
print(json.dumps({run.name: [run.config, SQLiteStorage.get_logs(run.project, run.name)] for run in runs}))
"""


@pytest.fixture
def trackio_environment(tmp_path: Path) -> dict[str, str]:
    """Environment variables with which trackio keeps its database in the test's folder."""
    pytest.importorskip("trackio", reason="trackio is not installed: python -m pip install trackio")
    return os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def test_trackio_keeps_metrics_samples_and_the_verdict(trackio_environment: dict[str, str], tmp_path: Path) -> None:
    """In processes of their own: trackio reads its folder when it is imported, and sends from a thread."""
    options = small("quickstart_gpt2", tmp_path, "--track", "trackio", "--name", "tracked", "--sft", "null")

    def output(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=trackio_environment).stdout

    output("-m", "recipes.detox", *options)
    runs = json.loads(output("-c", READ_BACK).splitlines()[-1])
    assert list(runs) == ["tracked-ppo", "tracked-evaluation"]
    settings, ppo = runs["tracked-ppo"]
    assert (settings["ppo.kl_coef"], settings["_Group"]) == (0.2, "tracked")
    lines = [json.loads(line) for line in (tmp_path / "tracked" / "ppo" / "metrics.jsonl").read_text().splitlines()]
    curves = [entry for entry in ppo if "samples" not in entry]
    assert [{name: entry[name] for name in line} for entry, line in zip(curves, lines, strict=True)] == lines
    (table,) = [entry["samples"] for entry in ppo if "samples" in entry]
    samples = [json.loads(line) for line in (tmp_path / "tracked" / "ppo" / "samples.jsonl").read_text().splitlines()]
    assert table["_type"] == "trackio.table"
    assert [row["completion"] for row in table["_value"]] == [sample["completion"] for sample in samples]
    (final,) = runs["tracked-evaluation"][1]
    results = json.loads((tmp_path / "tracked" / "evaluation" / "results.json").read_text())
    assert final["verdict/toxicity"] == results["verdict"]["word"]
    assert final["verdict/toxicity/sentence"] == results["verdict"]["sentence"]
    assert isinstance(final["test dialogues/ROUGE-L/aligned - base"], float)


def test_trackio_takes_what_it_is_given(in_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own run would send from a thread; everything up to it is the library's."""
    trackio = pytest.importorskip("trackio", reason="trackio is not installed: python -m pip install trackio")
    calls: list[tuple[str, Any]] = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append(("log", values)), finish=lambda: calls.append(("finish", None))
    )
    monkeypatch.setattr(trackio, "init", lambda **arguments: calls.append(("init", arguments)) or run)
    monkeypatch.setattr(trackio, "config", {}, raising=False)
    monkeypatch.setattr(
        trackio, "config", SimpleNamespace(update=lambda values, **_: calls.append(("config", values))), raising=False
    )
    config = parse(["--config", "recipes/configs/quickstart.yaml", "--track", "trackio"])[0]
    with tracking(Run(tmp_path, config), "sft") as tracker:
        tracker.log({"loss": 1.0}, step=1)
        tracker.log_samples([{"prompt": "a", "score": 1.0}], step=1)
    assert [name for name, _ in calls] == ["init", "config", "log", "log", "finish"]
    assert calls[0][1] == {"project": "alignment-workbench", "name": "quickstart-sft", "group": "quickstart"}
    assert isinstance(calls[3][1]["samples"], trackio.Table)
