"""docs/logged_metrics.md names exactly the metrics that PPO, SFT and the reward stage log."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from small_runs import small
from trainers import e_rate, make_rows, make_trainer

from recipes import reward, sft
from workbench.run import cli

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "logged_metrics.md").read_text()


def documented(section: str) -> set[str]:
    """Return the metrics in the table of a section."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([\w/]+)`", row)}


def logged(file: Path) -> set[str]:
    """Return the metrics in a metrics.jsonl."""
    return {name for line in file.read_text().splitlines() for name in json.loads(line)} - {"step"}


class TwoTerms:
    """A reward that is a sum."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        return [sum(values) for values in zip(*self.terms(prompts, completions).values(), strict=True)]

    def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, list[float]]:
        if "log_metric" in columns:
            columns["log_metric"]("texts", len(completions))
        return {"e": e_rate(prompts, completions), "length": [float(len(text)) for text in completions]}


def test_ppo(tmp_path: Path) -> None:
    changes = {"entropy_coef": 0.01, "steps": 1, "samples_per_prompt": 2}
    texts = [row | {"response_ids": row["prompt_ids"]} for row in make_rows("gpt2", 4)]
    make_trainer(tmp_path, reward=TwoTerms(), held_out=e_rate, validation=4, texts=texts, **changes).train()
    make_trainer(tmp_path / "dpo", loss="dpo", steps=1, samples_per_prompt=2, ptx_texts=texts).train()
    terms = {"objective/term/e", "objective/term/length"}
    metrics = logged(tmp_path / "metrics.jsonl") | logged(tmp_path / "dpo" / "metrics.jsonl")
    assert terms <= metrics
    assert "reward/texts" in metrics
    by_name = {"objective/term/NAME", "reward/NAME"}
    assert metrics - terms - {"reward/texts"} | by_name | {"loss_scale"} == documented("PPO"), "loss_scale is fp16's"


EVERY_STEP = json.dumps({"logging_steps": 1})


def test_sft(in_project: Path, tmp_path: Path) -> None:
    metrics: set[str] = set()
    for name in ("quickstart", "quickstart_gpt2"):
        options = small(name, tmp_path, "--sft.max_steps", "2", "--sft.trainer_args", EVERY_STEP)
        cli.launch([sft.STAGE], "", options)
        metrics |= logged(tmp_path / name / "sft" / "metrics.jsonl")
    assert metrics == documented("SFT")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_reward(in_project: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "Tom asks.", "chosen": f"Thank you, {n}.", "rejected": f"Idiot {n}."} for n in "abcdefgh"]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(pairs), "template": "{prompt}"}
    objectives: dict[str, dict[str, Any]] = {
        "classifier": {},
        "preference": {"objective": "preference", "target_label": None, "data": source, "validation": source},
    }
    metrics: set[str] = set()
    for name, changes in objectives.items():
        train = {
            "model": "toy:gpt2",
            "data": {"path": "toy:sentences", "limit": 16},
            "validation": {"path": "toy:sentences", "split": "validation", "limit": 40},
            "target_label": "clean",
            "polarity_pair": ["a", "b"],
            "batch_size": 8,
            "epochs": 1,
            "max_tokens": 32,
            "save_every": 1,
            "early_stopping": 1,
            "trainer_args": {"logging_steps": 1},
        } | changes
        config = {
            "name": name,
            "policy": {"model": "toy:gpt2"},
            "reward": {"train": train},
            "evaluation": {"data": {"test": source}},
        }
        (tmp_path / f"{name}.yaml").write_text(json.dumps(config))
        with pytest.MonkeyPatch.context() as patch:
            # A step or two do not teach it which of two texts is the polite one.
            patch.setattr("reward_models.classifier.check_polarity_pair", lambda *arguments: None)
            cli.launch([reward.STAGE], "", ["--config", str(tmp_path / f"{name}.yaml"), "--runs", str(tmp_path)])
        metrics |= logged(tmp_path / name / "reward" / "metrics.jsonl")
    assert metrics == documented("Reward")
