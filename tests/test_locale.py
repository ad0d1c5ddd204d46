"""Files are UTF-8 whatever the locale; a name that the locale cannot spell is one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A plain C locale, in which Python would read and write ASCII.
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "HF_HUB_OFFLINE": "1"}
CONFIG = """# Zusammenfassungen für 名前
name: lauf_ä
policy: {model: toy:gpt2}
evaluation:
  models: {größer: toy:gpt2}
  data: {übung: {path: PATH, template: "{text} →"}}
"""
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no C locale")


def evaluation(folder: Path, path: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an ASCII locale on a configuration in UTF-8 whose prompts are at `path`."""
    (folder / "config.yaml").write_text(CONFIG.replace("PATH", path), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "recipes.evaluation", "--config", "config.yaml", *options],
        cwd=folder,
        env=os.environ | ASCII | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
    )


def test_configuration_and_data_are_utf8_in_an_ascii_locale(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "Grüße 名前"}\n{"text": "b"}\n', encoding="utf-8")
    printed = evaluation(tmp_path, "data.jsonl", "--print_config")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert "name: lauf_ä" in printed.stdout
    assert "template: '{text} →'" in printed.stdout
    planned = evaluation(tmp_path, "data.jsonl", "--dry_run")
    assert planned.returncode == 0, planned.stderr
    assert "evaluation: übung: 2 prompts" in planned.stdout


def test_a_file_that_the_locale_cannot_spell_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "däta.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    completed = evaluation(tmp_path, "däta.jsonl", "--dry_run")
    assert completed.returncode == 2
    assert completed.stderr.startswith("error: evaluation.data.übung: däta.jsonl: no such file or folder")
    assert "set the environment variable PYTHONUTF8=1" in completed.stderr
    assert completed.stderr.count("\n") == 1
