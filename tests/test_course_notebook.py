"""The course's three labs as a notebook: its cells run on the toy models, with fewer rows and steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from child_processes import exit_code, fork
from small_runs import SMALL, evaluation_source

from notebooks import check_notebook, make_shell, read_cells, run_cells

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "from_the_course.ipynb"
METHODS = {"full": {"method": "full"}, "LoRA": {"method": "lora", "r": 2}}
FEW = {
    "prompting": ["--prompting.shots", "[0, 1]", "--evaluation.data", json.dumps({"test": evaluation_source(6)})],
    "tuning": [
        *("--tuning.methods", json.dumps(METHODS), "--sft.max_steps", "2", "--sft.data.limit", "32"),
        *("--evaluation.data", json.dumps({"test": evaluation_source(6)}), "--tuning.texts", "{}"),
    ],
    "detox": [
        *SMALL,
        "--reward.model",
        "toy_lexicon",
        "--evaluation.data",
        json.dumps({"test": evaluation_source(10)}),
    ],
}


def test_it_is_a_valid_notebook_without_outputs() -> None:
    check_notebook(NOTEBOOK)


def test_its_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def run() -> None:
        namespace, reports = run_cells(read_cells(NOTEBOOK), make_shell(commands, FEW))
        assert [words[1] for words in commands[1:]] == [
            *("prompting", "prompting", "tuning", "detox", "playground", "export"),
        ]
        assert len(reports) == 3
        assert abs(namespace["first"]["objective/kl_k3"]) < 1e-5, "the reference is the SFT policy"
        assert Path("aligned/model.safetensors").is_file()

    assert exit_code(fork(run, tmp_path / "log")) == 0, (tmp_path / "log").read_text()
