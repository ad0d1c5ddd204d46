"""The list of runs: one row each, with what its evaluation found."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from typed_results import make_difference, make_results, make_set

from workbench.errors import UserError
from workbench.evaluation.results import Metric, RunVerdict
from workbench.evaluation.results_files import read_results, to_json
from workbench.report.run_list import main


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with an evaluated run, one whose results are of another version, and an unfinished one."""
    differences = [
        make_difference(Metric("toxicity", "lower", "reward"), 0.9, 0.8, "better", interval=(-0.2, -0.05)),
        make_difference(Metric("toxicity", "lower", "lexicon"), 0.4, 0.1, "better", interval=(-0.4, -0.2)),
        make_difference(Metric("ROUGE-L", "higher"), 0.5, 0.6, "better", interval=(0.05, 0.15)),
    ]
    results = dataclasses.replace(
        make_results(
            [make_set("neutral", differences, neutral=True), make_set("test", differences)],
            judges=["reward", "lexicon"],
        ),
        verdict=RunVerdict("toxicity", "better", ""),
        other_verdicts=[RunVerdict("task", "better", "")],
    )
    evaluation = tmp_path / "runs" / "first" / "evaluation"
    evaluation.mkdir(parents=True)
    (evaluation / "stage.json").write_text("{}")
    (evaluation / "results.json").write_text(json.dumps(to_json(results)))
    (evaluation.parent / "config.yaml").write_text("")
    old = Path(shutil.copytree(evaluation.parent, tmp_path / "runs" / "old"))
    (old / "evaluation" / "results.json").write_text(json.dumps(to_json(results) | {"version": 1}))
    (tmp_path / "runs" / "new").mkdir()
    (tmp_path / "runs" / "new" / "config.yaml").write_text("")
    (tmp_path / "runs" / "no run").mkdir()
    return tmp_path / "runs"


def test_every_run_has_a_row(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--folder", str(runs)])
    head, first, new, old = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "run"
    assert [line.split()[0] for line in (first, new, old)] == ["first", "new", "old"]
    assert "toxicity: better, task: better" in first
    assert "0.400 -> 0.100 [-0.400, -0.200]" in first, "an independent judge comes before the reward"
    assert "0.500 -> 0.600 [+0.050, +0.150]" in first
    assert "2026-11-22" in first
    assert first.index("0.400") == head.index("toxicity")
    assert "KL" not in head, "a column that no run fills is left out"
    assert new.split() == ["new", "none"]
    assert "unreadable" in old


def test_results_without_the_main_comparison_are_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = runs / "first" / "evaluation" / "results.json"
    results = json.loads(file.read_text())
    results["sets"][1]["comparisons"] = []
    file.write_text(json.dumps(results))
    main([str(runs / "first")])
    assert "changed or unreadable; redo it with --force evaluation" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"results\.json: corrupt: KeyError: .*; redo the stage with --force evaluation"
    ):
        read_results(file)


def test_named_runs_alone_are_listed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(runs / "first")])
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUNS/no run"], "not a run folder"),
        (["--folder", "nowhere"], "no run folder in it"),
        (["--floder", "x"], "unknown option; did you mean --folder"),
    ],
)
def test_what_is_no_run_is_one_line(arguments: list[str], message: str, runs: Path) -> None:
    with pytest.raises(UserError, match=message):
        main([argument.replace("RUNS", str(runs)) for argument in arguments])
