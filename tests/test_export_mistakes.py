"""A mistake is one line, and nothing is written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exports import ROOT, altered, exported, refused, section
from peft import LoraConfig, get_peft_model
from small_runs import record_files
from transformers import AutoModelForCausalLM

from workbench.errors import UserError
from workbench.export import card as model_card
from workbench.export import command
from workbench.models.loading import save_model


@pytest.mark.filterwarnings("ignore::UserWarning")  # from peft, about the same
def test_a_merge_that_changes_the_function_is_refused(workspace: Path, tmp_path: Path) -> None:
    run = altered("gpt2", tmp_path / "run")
    head = LoraConfig(r=2, lora_alpha=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("base_gpt2"), head)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    save_model(model, Path(run) / "ppo")
    record_files(Path(run) / "ppo")
    line = refused(run, tmp_path / "out", "--merge")
    assert "tied embeddings" in line
    assert line.endswith("export the adapter without --merge")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "runs/t6"], "--run runs/t6: not a run folder: no such folder; did you mean runs/t5?"),
        (["--run", "runs/t5/ppo"], "--run runs/t5/ppo: not a run folder: no config.yaml in it; did you mean runs/t5?"),
        (
            ["--run", "runs/gpt2", "--stage", "reward"],
            "--stage reward: runs/gpt2 has no such stage; available: ppo, sft",
        ),
        (["--run", "runs/t5", "--to", "base_t5"], "--to base_t5: the folder is not empty"),
        (["--run", "runs/t5", "--to", "prompts.jsonl"], "--to prompts.jsonl: a file with this name exists"),
        (["--run", "runs/t5", "--push_to_hub", "name"], "--push_to_hub name: the owner is missing; use OWNER/NAME"),
        (["--run", "runs/t5", "--push_to_hub", "a/b/c"], "--push_to_hub a/b/c: "),
        (["--run", "runs/t5", "--push_to_hub", "me/a b"], "--push_to_hub me/a b: "),
        (["--run", "runs/t5", "--private"], "--private: needs --push_to_hub"),
        (["--run", "runs/t5", "--stage", "evaluation"], "invalid choice: 'evaluation'"),
        (["--run", "runs/t5", "--marge"], "--marge"),
        ([], "run"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(arguments: list[str], message: str, workspace: Path) -> None:
    before = sorted(workspace.rglob("*"))
    to = [] if "--to" in arguments else ["--to", "never"]
    with pytest.raises(UserError) as raised:
        command.main([*arguments, *to])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert sorted(workspace.rglob("*")) == before


def test_stages_that_are_unfinished_or_damaged_are_named(workspace: Path, tmp_path: Path) -> None:
    run = altered("gpt2", tmp_path / "run")
    (tmp_path / "run" / "ppo" / "adapter_model.safetensors").write_bytes(b"torn")
    assert "ppo" in (line := refused(run, tmp_path / "out"))
    assert line.endswith("restore it, or redo the stage with --force ppo")
    assert "adapter_model.safetensors: its contents have changed" in line
    assert "redo the stage with --force ppo" in refused(run, tmp_path / "out", "--merge")
    (tmp_path / "run" / "ppo" / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors: missing; restore it" in refused(run, tmp_path / "out")
    (tmp_path / "run" / "ppo" / "stage.json").unlink()
    assert "stage ppo is not finished; run it first" in refused(run, tmp_path / "out")
    exported(tmp_path / "out", "--stage", "sft", run=run)
    (tmp_path / "run" / "sft" / "tokenizer.json").unlink()
    (tmp_path / "run" / "sft" / "tokenizer_config.json").unlink()
    assert "tokenizer.json: missing; restore it" in refused(run, tmp_path / "again", "--stage", "sft")


def test_an_adapter_on_a_base_that_only_this_project_has_is_refused(workspace: Path, tmp_path: Path) -> None:
    run = altered("t5", tmp_path / "run", model="toy:t5")
    line = refused(run, tmp_path / "out")
    assert line.startswith("--merge: required for toy:t5: the base exists only in this project")
    folder = exported(tmp_path / "out", "--merge", run=run)
    assert "toy" in section(folder, "Limitations")


def test_a_base_that_is_stored_quantized_takes_no_merge(workspace: Path, tmp_path: Path) -> None:
    shutil.copytree("base_gpt2", tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}})
    )
    run = altered("gpt2", tmp_path / "run", model=str(tmp_path / "base"))
    assert "is stored quantized" in refused(run, tmp_path / "out", "--merge")


def test_an_export_that_fails_leaves_nothing_behind(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> str:
        raise KeyError("a bug in the card")

    monkeypatch.setattr(model_card, "card", fail)
    with pytest.raises(KeyError):
        exported(tmp_path / "out", "--merge")
    assert list(tmp_path.iterdir()) == []


def test_help_does_not_load_torch_and_a_mistake_exits_with_2(workspace: Path) -> None:
    code = (
        "import sys, runpy; sys.argv = ['export', '--help']\n"
        "try: runpy.run_module('workbench.export', run_name='__main__')\n"
        "finally: assert not {'torch', 'transformers', 'datasets', 'huggingface_hub'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert "--push_to_hub" in result.stdout
    arguments = [sys.executable, "-m", "workbench.export", "--run", "nowhere", "--to", "out"]
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2
    assert re.fullmatch("error: --run nowhere: not a run folder: .*\n", result.stderr)
