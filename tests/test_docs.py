"""docs/ppo.md is true: its code runs, it lists every option, and the tests and metrics that it names exist."""

from __future__ import annotations

import ast
import dataclasses
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

from workbench import toy
from workbench.config.schema import PPOConfig

ROOT = Path(__file__).resolve().parent.parent
PPO = (ROOT / "docs" / "ppo.md").read_text()
NAMED = {
    (document.name, file, name)
    for document in sorted((ROOT / "docs").glob("*.md"))
    for file, name in re.findall(r"`tests/(\w+\.py)::(\w+)", document.read_text())
}


def test_the_loop_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PPO, flags=re.DOTALL)
    exec(compile(code, "docs/ppo.md", "exec"), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2", "3"]


def test_the_twenty_lines_run_and_save_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    variables: dict[str, Any] = {}
    exec(compile(code, "docs/library.md", "exec"), variables)
    sampled, step = capsys.readouterr().out.splitlines()
    assert " scores " in sampled
    assert step == f"score {variables['rollout'].scores.mean():.3f}, KL 0.000 nats per response"
    base = AutoModelForSeq2SeqLM.from_pretrained(toy.model_folder("t5"))
    saved = PeftModel.from_pretrained(base, "aligned")
    weights = {name: weight for name, weight in saved.named_parameters() if "lora_B" in name}
    assert weights
    assert any(weight.abs().max() > 0 for weight in weights.values()), "the step changed the adapter"


def test_every_option_is_in_the_table() -> None:
    listed = {
        name for row in re.findall(r"^\| (`.*?) \|", PPO, flags=re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert listed == {field.name for field in dataclasses.fields(PPOConfig)}


def test_the_points_are_numbered_without_a_gap() -> None:
    assert re.findall(r"^(\d+)\. ", PPO, flags=re.MULTILINE) == [str(i) for i in range(1, 27)]


@pytest.mark.parametrize("file", sorted({file for _, file, _ in NAMED}))
def test_every_test_that_is_named_exists(file: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert {name for _, test_file, name in NAMED if test_file == file} <= defined


def test_every_metric_that_is_named_is_logged() -> None:
    # What logged_metrics.md names is compared with real runs in test_logged_metrics.py.
    logged = set(re.findall(r"`([a-z_]+/[a-z_0-9]+)`", (ROOT / "docs" / "logged_metrics.md").read_text()))
    families = {name.split("/")[0] for name in logged}
    named = set(re.findall(rf"`((?:{'|'.join(families)})/\w+)`", PPO))
    assert {"objective/kl_k3", "policy/ratio_max", "response/truncated_rate"} <= named <= logged


def test_the_page_of_modules_is_current() -> None:
    modules_page = runpy.run_path(str(ROOT / "docs" / "make_modules.py"))["modules_page"]
    assert (ROOT / "docs" / "modules.md").read_text() == modules_page(), "make docs"
    every = {path.parent for path in (ROOT / "workbench").rglob("*.py") if path.name != "__init__.py"}
    listed = set(re.findall(r"^## (\S+)", modules_page(), flags=re.MULTILINE))
    modules_of_evaluate = {"bleu", "embedding_similarity", "rouge", "toxicity"}
    assert {str(path.relative_to(ROOT)) for path in every if path.name not in modules_of_evaluate} <= listed
