"""The runs that the tests export, and helpers to export and load them."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from recipes import ppo, reward, sft
from workbench import toy
from workbench.errors import UserError
from workbench.export import command
from workbench.run import cli

ROOT = Path(__file__).resolve().parent.parent
AUTO = {"t5": AutoModelForSeq2SeqLM, "gpt2": AutoModelForCausalLM}
SECOND_STOP = 7


def options(architecture: str) -> list[str]:
    """Return the options of a run of a few steps, large enough to move every trained weight."""
    template = "Summarize the dialogue.\n\n{dialogue}\n\nSummary:\n"
    source = {"path": "prompts.jsonl", "template": template}
    name = {"t5": "quickstart", "gpt2": "quickstart_gpt2"}[architecture]
    return [
        *("--config", str(ROOT / "recipes" / "configs" / f"{name}.yaml"), "--policy.model", f"base_{architecture}"),
        *("--sft.data", json.dumps(source | {"columns": {"response": "summary"}}), "--sft.max_steps", "3"),
        *("--sft.batch_size", "8", "--sft.learning_rate", "0.03", "--ppo.data", json.dumps(source)),
        *("--ppo.steps", "2", "--ppo.batch_size", "8", "--ppo.minibatch_size", "4", "--ppo.epochs", "1"),
        *("--ppo.max_new_tokens", "6"),
    ]


def make_runs(folder: Path) -> None:
    """Make the runs t5 (with its reward model), gpt2 and full in a folder, on base models beside them."""
    with chdir(folder):
        rows = toy.rows("sft", "train")[:64]
        Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for architecture in AUTO:
            shutil.copytree(toy.model_folder(architecture), f"base_{architecture}")
        # A base with a second stop id and sampling settings of its own, as chat models have.
        file = Path("base_gpt2/generation_config.json")
        settings = {"eos_token_id": [0, SECOND_STOP], "do_sample": True, "repetition_penalty": 5.0}
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        lexicon = ["--reward.model", "toy_lexicon"]
        cli.launch([sft.STAGE, ppo.STAGE], "", [*options("gpt2"), "--name", "gpt2", *lexicon])
        cli.launch([sft.STAGE, ppo.STAGE], "", [*options("gpt2"), "--name", "full", *lexicon, "--policy.lora", "null"])
        small = ["--reward.train.data.limit", "640", "--reward.train.validation.limit", "40"]
        small += ["--reward.train.epochs", "1", "--reward.train.clean_data", "[]"]
        cli.launch([sft.STAGE, reward.STAGE, ppo.STAGE], "", [*options("t5"), "--name", "t5", *small])


def exported(to: str | Path, *arguments: str, run: str = "runs/t5") -> Path:
    """Export a run and return the folder."""
    command.main(["--run", run, "--to", str(to), *arguments])
    return Path(to)


def altered(name: str, to: Path, **policy: Any) -> str:
    """Copy a run with other settings of the policy and return its path."""
    shutil.copytree(f"runs/{name}", to)
    config = yaml.safe_load((to / "config.yaml").read_text())
    config["policy"] |= policy
    (to / "config.yaml").write_text(yaml.safe_dump(config))
    return str(to)


def refused(run: str, to: Path, *arguments: str) -> str:
    """Return the one line with which an export is refused."""
    with pytest.raises(UserError) as raised:
        exported(to, *arguments, run=run)
    assert "\n" not in str(raised.value)
    assert not to.exists()
    return str(raised.value)


def section(folder: Path, title: str) -> str:
    """Return the text of one section of the card."""
    text = (folder / "README.md").read_text()
    return re.split(r"^## ", text.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def plain(architecture: str, path: str | Path, adapter: str | Path | None = None) -> Any:
    """Load a model with plain transformers, or base and adapter with plain peft and the stop ids of training."""
    model = AUTO[architecture].from_pretrained(path, dtype=torch.float32)
    if adapter is not None:
        stops = [1] if architecture == "t5" else [0, SECOND_STOP]
        model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=0, decoder_start_token_id=0)
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()
