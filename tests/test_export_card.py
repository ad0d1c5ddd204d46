"""A published card says what was measured, what was not, and where the model comes from."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from exports import altered, exported, refused, section
from huggingface_hub import ModelCard

from workbench.config.schema import RewardConfig
from workbench.export import card as model_card
from workbench.export import command as export
from workbench.export.exported import Subject, reward_name


def comparison(difference: float, word: str | None, needed: int | None = None) -> dict[str, Any]:
    """A paired comparison as results.json has it."""
    return {
        "mean_before": 0.4,
        "mean_after": 0.4 + difference,
        "difference": difference,
        "low": difference - 0.05,
        "high": difference + 0.05,
        "wins": 1,
        "ties": 194,
        "losses": 105,
        "verdict": word,
        "prompts_needed": needed,
    }


def results() -> dict[str, Any]:
    """The results of an evaluation, version 2."""
    toxicity = {"better": "lower", "means": {"base": 0.81, "sft": 0.42, "aligned": 0.13}, "spread": None}
    rouge = {"better": "higher", "means": {"base": 0.2, "sft": 0.777, "aligned": 0.778}, "spread": None}
    distinct = {"better": None, "means": {"base": 0.6, "sft": 0.333, "aligned": 0.25}, "spread": None}
    one = comparison(-0.29, "better") | {"low": None, "high": None}
    comparisons = {
        "aligned - sft": {
            "toxicity (reward)": comparison(-0.29, "better"),
            "ROUGE-L": comparison(0.001, "no detectable change", 12_000),
            "distinct-2": comparison(-0.083, None) | dict.fromkeys(("wins", "ties", "losses")),
        },
        "aligned - base": {"toxicity (reward)": comparison(-0.68, "better")},
        "sft - base": {"toxicity (reward)": comparison(-0.39, "better")},
    }
    first = {"prompts": 300, "neutral": False, "seen_in_training": 0, "enough": True}
    second = {"prompts": 1, "neutral": True, "seen_in_training": 1, "enough": False}
    return {
        "version": 2,
        "name": "t5",
        "date": "2026-11-22",
        "seeds": [0, 41],
        "commit": "abc1234",
        "versions": {"torch": "2.13.0"},
        "machine": "2 cores",
        "inputs": {"data": {}},
        "models": ["base", "sft", "aligned"],
        "before": "sft",
        "after": "aligned",
        "reward": "trained",
        "judges": ["reward"],
        "threshold": 0.5,
        "temperature": 1.0,
        "max_new_tokens": 40,
        "samples": 1,
        "verdict": {"word": "better", "sentence": "Toxicity fell from 0.420 to 0.130 on 300 prompts."},
        "guards": [
            {"name": "judge agrees", "passed": False, "text": "no other judge was asked"},
            {"name": "length", "passed": True, "text": "18.7 to 18.2 tokens"},
        ],
        "sets": {
            "test dialogues": first
            | {
                "metrics": {"toxicity (reward)": toxicity, "ROUGE-L": rouge, "distinct-2": distinct},
                "comparisons": comparisons,
            },
            "small | talk": second
            | {
                "metrics": {"toxicity (reward)": toxicity},
                "comparisons": {"aligned - sft": {"toxicity (reward)": one}},
            },
        },
    }


def test_an_evaluation_that_was_begun_anew_is_not_on_the_card_and_said(
    evaluated: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(evaluated) / "evaluation" / "stage.json").unlink()
    folder = exported(tmp_path / "out", "--merge", run=evaluated)
    assert "note: the evaluation was begun anew and is not finished" in capsys.readouterr().out
    assert "Nothing was measured" in section(folder, "Before and after")


@pytest.fixture
def evaluated(workspace: Path, tmp_path: Path) -> str:
    """A copy of the run t5 that was evaluated."""
    run = Path(altered("t5", tmp_path / "evaluated"))
    record = json.loads((run / "ppo" / "stage.json").read_text()) | {"stage": "evaluation"}
    (run / "evaluation").mkdir()
    (run / "evaluation" / "results.json").write_text(json.dumps(results()))
    (run / "evaluation" / "stage.json").write_text(json.dumps(record))
    return str(run)


def test_the_card_holds_verdict_table_and_failed_guards(evaluated: str, tmp_path: Path) -> None:
    found = section(exported(tmp_path / "out", "--merge", run=evaluated), "Before and after")
    assert "**better**: Toxicity fell from 0.420 to 0.130 on 300 prompts." in found
    assert "judge agrees: no other judge was asked" in found
    assert "18.7 to 18.2" not in found, "a guard that passed"
    assert "seeds of the answers 0, 41" in found
    rows = [line for line in found.splitlines() if line.startswith("|")]
    assert rows[0] == "|  | base | sft | aligned | aligned - sft \\[95 % interval\\] | verdict |"
    assert rows[2] == "| toxicity (reward) | 0.810 | 0.420 | 0.130 | -0.290 \\[-0.340, -0.240\\] | better |"
    assert rows[3].endswith("| no detectable change (about 12000 prompts would show this difference) |")
    assert rows[4] == "| distinct-2 | 0.600 | 0.333 | 0.250 | -0.083 \\[-0.133, -0.033\\] |  |"
    assert "-0.290 no interval" in rows[-1]
    assert "**small \\| talk**: 1 prompts (neutral" in found


def test_the_card_of_the_sft_model_compares_it_with_the_base(evaluated: str, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", "--merge", "--stage", "sft", run=evaluated)
    found = section(folder, "Before and after")
    assert "| toxicity (reward) | 0.810 | 0.420 | -0.390 \\[-0.440, -0.340\\] | better |" in found
    assert "aligned" not in found
    assert "fell" not in found, "the verdict is about the aligned model"
    assert "ppo" not in section(folder, "Where it comes from")
    assert "kl_coef" not in section(folder, "Training settings")


def test_the_card_names_its_limits(evaluated: str, workspace: Path, tmp_path: Path) -> None:
    found = section(exported(tmp_path / "out", "--merge", run=evaluated), "Limits")
    assert "The only judge is the reward that PPO maximised" in found
    assert "small \\| talk: 1 prompts are too few" in found
    assert "small \\| talk: 1 of its prompts were trained on" in found
    assert "test dialogues" not in found
    assert "languages" in found
    assert "Not for use without people" in found
    other = results() | {"judges": ["reward", "lexicon"]}
    (Path(evaluated) / "evaluation" / "results.json").write_text(json.dumps(other))
    assert "judges alone: reward, lexicon." in section(exported(tmp_path / "two", "--merge", run=evaluated), "Limits")


def test_a_card_without_evaluation_says_that_nothing_was_measured(workspace: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", "--merge")
    assert section(folder, "Before and after").strip() == "Nothing was measured: the run has no finished evaluation."
    assert "Nothing was measured" in section(folder, "Limits")


def test_the_card_tells_where_the_model_comes_from(workspace: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", "--merge")
    found = section(folder, "Where it comes from")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["base", "sft", "reward", "ppo"]
    base = hashlib.sha256(Path("base_t5/model.safetensors").read_bytes()).hexdigest()
    assert rows[2][1:] == ["base_t5", "", "", "", base[:16]]
    data = hashlib.sha256(Path("prompts.jsonl").read_bytes()).hexdigest()
    record = json.loads(Path("runs/t5/ppo/stage.json").read_text())
    for row, stage in ((rows[3], "sft"), (rows[5], "ppo")):
        assert row[2] == f"prompts.jsonl (train, sha256 {data[:16]})"
        assert row[3:5] == ["0", str(json.loads(Path(f"runs/t5/{stage}/stage.json").read_text())["commit"] or "")]
    assert rows[3][5] == record["inputs"]["sft"][:16]
    assert rows[4][1] == "from toy:gpt2"
    own = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert f"published here: {own[:16]}." in found
    assert f"torch {record['versions']['torch']}" in found
    settings = section(folder, "Training settings")
    for line in ("seed | 0", "policy.lora.r | 16", "ppo.kl_coef | 0.2", "ppo.steps | 2", "sft steps | 3"):
        assert f"| {line} |" in settings


def test_front_matter_names_what_the_hub_has_and_nothing_else(workspace: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out")
    card = ModelCard.load(folder / "README.md").data.to_dict()
    assert card == {"library_name": "peft", "tags": ["rlhf", "ppo", "lora"]}
    run = export.open_finished(Path("runs/gpt2"))
    policy, first, second = run.config.policy, run.config.sft, run.config.ppo
    assert first is not None
    assert second is not None
    policy.model, first.data.path, second.data.path = "org/base", "org/sums", "allenai/real-toxicity-prompts"
    front = model_card.front_matter(Subject(run, "ppo", "merged", "./x", "", False))
    assert yaml.safe_load(front) == {
        "base_model": "org/base",
        "datasets": ["org/sums", "allenai/real-toxicity-prompts"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf", "ppo", "lora"],
    }


def test_no_path_of_this_machine_is_published(workspace: Path, tmp_path: Path) -> None:
    run = altered("gpt2", tmp_path / "run", model=str(workspace / "base_gpt2"))
    folder = exported(tmp_path / "out", run=run)
    for name in ("README.md", "adapter_config.json", "tokenizer_config.json"):
        assert str(workspace.parent) not in (folder / name).read_text()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "base_gpt2"


def test_text_from_data_is_no_markup() -> None:
    rude = "a|b\nc <img src=x> `d` [e](f) **g** __h__ \\| i_j \x1b"
    lines = model_card.table(["x", "y"], [[rude, "z"]]).splitlines()
    assert len(lines) == 3
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", lines[2])) == 3, "three bars that part cells"
    assert "<" not in lines[2]
    assert not re.search(r"(?<!\\)[`*\[\]]", lines[2])
    assert not re.search(r"(?<!\\)__", lines[2])
    assert "i_j" in lines[2], "a name stays readable"
    assert "\x1b" not in lines[2]


def test_a_reward_is_named_by_its_parts_and_never_by_its_addresses() -> None:
    terms = [{"model": "/home/anna/judge", "weight": 2}, {"model": "http", "options": {"url": "http://secret"}}]
    assert reward_name(RewardConfig("combine", {"terms": terms})) == "2 x judge + 1 x http"
    assert reward_name(RewardConfig("ensemble", {"models": ["org/a", "/b/c"], "k": 1})) == "ensemble of org/a, c"
    assert reward_name(RewardConfig("http", {"url": "http://secret"})) == "http"


@pytest.mark.parametrize("text", ["{}", "[", json.dumps(results() | {"version": 1})])
def test_results_of_another_version_are_refused(text: str, evaluated: str, tmp_path: Path) -> None:
    (Path(evaluated) / "evaluation" / "results.json").write_text(text)
    assert "redo the stage with --force evaluation" in refused(evaluated, tmp_path / "out", "--merge")
