"""The code in a model card runs as it stands and generates what the trained model generates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from exports import altered, exported, plain, section
from small_runs import record_files
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from workbench.rewards.registry import load_reward


def run_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the card's code prints; the working directory holds the exported folder."""
    (code,) = re.findall("```python\n(.*?)```", section(folder, "Usage"), re.DOTALL)
    capsys.readouterr()
    exec(code, {})
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "arguments"), [("t5", []), ("gpt2", []), ("t5", ["--merge"]), ("gpt2", ["--merge"]), ("full", [])]
)
def test_the_code_of_the_card_generates_as_the_policy(
    run: str, arguments: list[str], workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(f"out_{run}_{len(arguments)}", *arguments, run=f"runs/{run}")
    printed = run_code(folder, capsys)
    architecture = "t5" if run == "t5" else "gpt2"
    tokenizer = AutoTokenizer.from_pretrained(f"runs/{run}/ppo")
    model = (
        plain("gpt2", "runs/full/ppo")
        if run == "full"
        else plain(architecture, f"base_{architecture}", f"runs/{run}/ppo")
    )
    batch = tokenizer("Summarize the dialogue.\n\n{dialogue}\n\nSummary:\n", return_tensors="pt")
    output = model.generate(**batch, max_new_tokens=6)[0]
    start = 0 if architecture == "t5" else batch["input_ids"].shape[1]
    assert printed == tokenizer.decode(output[start:], skip_special_tokens=True) + "\n"


def test_chat_prompts_use_the_exported_chat_template(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = altered("gpt2", tmp_path / "run")
    file = Path(run) / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["ppo"]["data"]["chat"] = True
    file.write_text(yaml.safe_dump(config))
    template = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}Summary: "
    (Path(run) / "ppo" / "chat_template.jinja").write_text(template)
    folder = exported(tmp_path / "out", "--merge", run=run)
    assert (folder / "chat_template.jinja").read_text() == template
    monkeypatch.chdir(tmp_path)
    printed = run_code(folder, capsys)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), plain("gpt2", folder)
    text = "<Summarize the dialogue.\n\n{dialogue}\n\nSummary:\n>Summary: "
    batch = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    completion = model.generate(**batch, max_new_tokens=6)[0, batch["input_ids"].shape[1] :]
    assert printed == tokenizer.decode(completion, skip_special_tokens=True) + "\n"


def with_reward(name: str, labels: list[str], **train: Any) -> tuple[str, Path]:
    """Copy the run t5 with a reward of these labels and random weights; return the run and the reward's folder."""
    run = Path(altered("t5", Path("runs") / name))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["reward"]["train"] |= train
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(
        "base_gpt2", id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)}
    ).save_pretrained(run / "reward")
    return str(run), run / "reward"


def test_the_code_of_a_classifier_s_card_gives_its_toxicity(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, stage = with_reward("classifier", ["vile", "clean", "rude"])
    record_files(stage)
    folder = exported("out_classifier", "--stage", "reward", run=run)
    expected = load_reward(str(stage), target_label="clean", polarity_pair=None).judge()(["the text"])
    assert float(run_code(folder, capsys)) == pytest.approx(expected[0], abs=1e-4)


def test_the_code_of_a_preference_model_s_card_gives_its_score(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, stage = with_reward(
        "preference",
        ["score"],
        objective="preference",
        target_label=None,
        clean_data=[],
        clean_validation=None,
        perturbation_rate=0.0,
    )
    (stage / "calibration.json").unlink()
    record_files(stage)
    folder = exported("out_preference", "--stage", "reward", run=run)
    assert not (folder / "calibration.json").exists()
    expected = load_reward("preference", model=str(stage), polarity_pair=None)(["the prompt"], ["the completion"])
    assert float(run_code(folder, capsys)) == pytest.approx(expected[0], abs=1e-4)
