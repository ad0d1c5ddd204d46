"""The page that renews itself while a stage trains, and the time that is left of a chain."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest

from workbench.config.parsing import dump, parse
from workbench.config.schema import Config
from workbench.errors import UserError
from workbench.report import live
from workbench.report.live import live_page, write_live_page
from workbench.run.estimates import earlier_runs, expected_seconds
from workbench.run.files import read_json_lines
from workbench.run.folder import Run
from workbench.run.progress import Following, Progress, followed_by


@pytest.fixture
def run(in_project: Path, tmp_path: Path) -> Run:
    """A run whose SFT stage is finished and whose PPO has logged two steps."""
    config, _ = parse(["--config", "recipes/configs/quickstart.yaml", "--runs", str(tmp_path)])
    run = Run(tmp_path / config.name, config)
    (run.stage("sft") / "stage.json").write_text('{"minutes": 2.0}')
    (run.stage("ppo") / "metrics.jsonl").write_text(
        '{"step": 1, "objective/kl": 0.5}\n{"step": 2, "objective/kl": 1}\n'
    )
    sample = {"step": 2, "prompt": "Hi", "completion": "<b>rude</b>", "score": 1.5, "kl": 0.1}
    (run.stage("ppo") / "samples.jsonl").write_text(json.dumps(sample) + "\n" + '{"step": 3, "pro')
    return run


def page_of(run: Run) -> str:
    """Return the live page."""
    return (run.folder / "live.html").read_text(encoding="utf-8")


def test_the_page_shows_stages_curves_and_the_last_responses(run: Run) -> None:
    write_live_page(run, running="ppo")
    page = page_of(run)
    assert '<meta http-equiv="refresh" content="5">' in page
    assert "finished</span>" in page
    assert "running, step 2" in page
    assert "waiting</span>" in page
    assert "PPO: KL to the reference" in page
    assert "&lt;b&gt;rude" in page
    assert "<b>rude" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_it_is_renewed_while_the_block_runs_and_written_at_its_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SECONDS_BETWEEN_PAGES", 0.05)
    with live_page(run, "ppo"):
        with (run.folder / "ppo" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 7, "objective/kl": 1}\n')
        deadline = time.monotonic() + 20
        while "running, step 7" not in page_of(run):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert "stopped, step 7" in page_of(run)


def test_a_finished_run_is_not_reloaded(run: Run) -> None:
    for stage in ("reward", "ppo"):
        (run.stage(stage) / "stage.json").write_text("{}")
    (run.stage("evaluation") / "report.html").write_text("")
    write_live_page(run, running=None)
    assert "refresh" not in page_of(run)
    assert 'href="evaluation/report.html"' in page_of(run)


def test_a_page_that_cannot_be_written_stops_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, text: str) -> None:
        raise UserError("no space")

    monkeypatch.setattr(live, "write_text", full_disk)
    with live_page(run, "ppo"):
        pass
    assert not (run.folder / "live.html").exists()


def test_a_line_that_is_being_written_is_left_out(run: Run) -> None:
    assert [line["step"] for line in read_json_lines(run.folder / "ppo" / "samples.jsonl")] == [2]
    assert read_json_lines(run.folder / "nothing.jsonl") == []


@pytest.mark.parametrize(
    ("following", "expected"),
    [
        (Following(), "left  note"),
        (Following(["ppo", "evaluation"]), "left, then ppo, evaluation  note"),
        (Following(["ppo"], 65.0), "left, about 1:05 with ppo  note"),
    ],
)
def test_progress_says_what_follows(following: Following, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with followed_by(following):
        progress = Progress("sft", 1)
    progress.advance(note="note")
    assert capsys.readouterr().err.strip().endswith(f"0:00 {expected}")


def other_run(config: Config, folder: Path, name: str, minutes: dict[str, float]) -> None:
    """Write a run with finished stages."""
    for stage, value in minutes.items():
        (folder / name / stage).mkdir(parents=True)
        (folder / name / stage / "stage.json").write_text(json.dumps({"minutes": value}))
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "config.yaml").write_text(dump(config))


def test_the_time_of_a_stage_is_that_of_an_earlier_run_scaled_by_its_work(run: Run, tmp_path: Path) -> None:
    config = run.config
    assert config.ppo is not None
    assert expected_seconds(config, ["ppo"], earlier_runs(config)) is None
    longer = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, steps=2 * config.ppo.steps))
    other_run(longer, tmp_path, "earlier", {"ppo": 8.0, "evaluation": 0.5})
    assert expected_seconds(config, ["ppo", "evaluation"], earlier_runs(config)) == pytest.approx(60 * 4.5)
    assert expected_seconds(config, ["reward", "ppo"], earlier_runs(config)) is None, "nothing is known of one of them"
    assert expected_seconds(config, [], earlier_runs(config)) == 0


def test_runs_of_other_policies_and_copied_stages_say_nothing(run: Run, tmp_path: Path) -> None:
    other = dataclasses.replace(run.config, policy=dataclasses.replace(run.config.policy, model="toy:gpt2"))
    other_run(other, tmp_path, "gpt2", {"ppo": 8.0})
    other_run(run.config, tmp_path, "copy", {})
    (tmp_path / "copy" / "ppo").mkdir(parents=True)
    (tmp_path / "copy" / "ppo" / "stage.json").write_text('{"minutes": 9.0, "reused": {}}')
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "config.yaml").write_text("nonsense: [")
    assert expected_seconds(run.config, ["ppo"], earlier_runs(run.config)) is None


def test_a_separator_inside_a_text_does_not_split_its_line(run: Run) -> None:
    sample = {"step": 2, "completion": "one\u2028two\x85three"}
    file = run.folder / "ppo" / "samples.jsonl"
    file.write_text(json.dumps(sample, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_json_lines(file) == [sample]


def test_a_log_that_cannot_be_read_stops_nothing(run: Run) -> None:
    (run.folder / "ppo" / "samples.jsonl").write_text("nonsense\n")
    with live_page(run, "ppo"):
        pass
