"""The notebook runs as it stands on the default configuration, and its own-data configuration plans with QLoRA."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from child_processes import exit_code, fork
from small_runs import CHAIN, SMALL, evaluation_source
from tiny_data import write_chats

from notebooks import check_notebook, make_shell, read_cells, run_cells
from workbench.run import cli

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "detox_t4.ipynb"
SHORT = [*SMALL, "--reward.model", "toy_lexicon", "--evaluation.data", json.dumps({"test": evaluation_source(10)})]


def test_it_is_a_valid_notebook_without_outputs() -> None:
    check_notebook(NOTEBOOK)


def test_its_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def run() -> None:
        _, (report,) = run_cells(read_cells(NOTEBOOK), make_shell(commands, {"detox": SHORT}))
        assert commands[0][-1].endswith(".whl[judge,qlora]")
        assert [words[1] for words in commands[1:]] == ["detox", "detox", "export"]
        page = re.search('srcdoc="([^"]*)"', report)
        assert page is not None
        expected = Path("runs/quickstart/evaluation/report.html").read_text(encoding="utf-8")
        assert html.unescape(page[1]) == expected

    assert exit_code(fork(run, tmp_path / "log")) == 0, (tmp_path / "log").read_text()


def test_its_own_data_plans_with_qlora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_cells({"configuration": read_cells(NOTEBOOK)["configuration"]}, shell=lambda words: None)
    write_chats(tmp_path / "chats.csv")
    file = Path("my_run.yaml")
    text = file.read_text(encoding="utf-8")
    for value, stand_in in {
        "google/flan-t5-base": "toy:t5",
        "max_prompt_tokens: 384": "limit: 64",  # the toy model reads 256
        "{target_label: nothate}": "{}",
        "[profanity]": "[]",
    }.items():
        assert value in text
        text = text.replace(value, stand_in)
    file.write_text(text, encoding="utf-8")
    cli.launch(CHAIN, "", ["--config", "my_run.yaml", "--reward.model", "length", "--dry_run"])
    assert "nf4" in capsys.readouterr().out
