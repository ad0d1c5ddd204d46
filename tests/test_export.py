"""What is exported loads without this project and computes what was trained."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import AUTO, SECOND_STOP, altered, exported, plain, section
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

TEXTS = ["Summarize the dialogue.\n\nAnna: hello, you fool!\nTom: bye.\n\nSummary:\n", "Tom: hi"]
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}


@torch.no_grad()
def logits(model: Any, tokenizer: Any, architecture: str) -> torch.Tensor:
    """Return logits on the first text, or of a few decoder tokens after it for an encoder-decoder."""
    batch = tokenizer(TEXTS[0], return_tensors="pt")
    extra = {"decoder_input_ids": torch.tensor([[0, 5, 9, 12]])} if architecture == "t5" else {}
    return model(**batch, **extra).logits


def greedy(model: Any, tokenizer: Any) -> list[list[int]]:
    """Return greedy completions of 20 tokens, one text at a time."""
    batches = [tokenizer(text, return_tensors="pt") for text in TEXTS]
    return [model.generate(**batch, max_new_tokens=20)[0].tolist() for batch in batches]


@pytest.mark.parametrize("architecture", AUTO)
@pytest.mark.parametrize("stage", ["ppo", "sft"])
def test_a_merged_model_is_base_and_adapter_for_plain_transformers(
    architecture: str, stage: str, workspace: Path, tmp_path: Path
) -> None:
    folder = exported(tmp_path / "out", "--merge", "--stage", stage, run=f"runs/{architecture}")
    assert {file.name for file in folder.iterdir()} == TOKENIZER | {
        *("README.md", "config.json", "generation_config.json", "model.safetensors")
    }
    merged, tokenizer = plain(architecture, folder), AutoTokenizer.from_pretrained(folder)
    base = plain(architecture, f"base_{architecture}")
    without = logits(base, tokenizer, architecture)
    adapted = plain(architecture, f"base_{architecture}", f"runs/{architecture}/{stage}")
    expected = logits(adapted, tokenizer, architecture)
    assert (expected - without).abs().max() > 0.1, "the adapter must change something for this test to show anything"
    torch.testing.assert_close(logits(merged, tokenizer, architecture), expected, atol=1e-4, rtol=0)
    assert greedy(merged, tokenizer) == greedy(adapted, tokenizer)
    assert tokenizer(TEXTS)["input_ids"] == AutoTokenizer.from_pretrained(f"base_{architecture}")(TEXTS)["input_ids"]


def test_stop_ids_are_those_of_training_and_the_base_s_sampling_settings_are_dropped(
    workspace: Path, tmp_path: Path
) -> None:
    for number, arguments in enumerate((["--merge"], [])):
        folder = exported(tmp_path / str(number), *arguments, run="runs/gpt2")
        stops = GenerationConfig.from_pretrained(folder)
        assert stops.eos_token_id == [0, SECOND_STOP]
        assert stops.pad_token_id == 0
        assert not stops.do_sample
        assert stops.repetition_penalty in (None, 1.0)


@pytest.mark.parametrize("architecture", AUTO)
def test_an_adapter_is_exported_unchanged_for_plain_peft(
    architecture: str, workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(tmp_path / "out", run=f"runs/{architecture}")
    assert {file.name for file in folder.iterdir()} == TOKENIZER | {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "generation_config.json")
    }
    weights, stage = "adapter_model.safetensors", Path(f"runs/{architecture}/ppo")
    assert (folder / weights).read_bytes() == (stage / weights).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded, trained = (plain(architecture, f"base_{architecture}", path) for path in (folder, stage))
    torch.testing.assert_close(
        logits(loaded, tokenizer, architecture), logits(trained, tokenizer, architecture), atol=1e-4, rtol=0
    )
    lines = capsys.readouterr().out.splitlines()
    (command,) = [line.partition(": ")[2] for line in lines if line.startswith("to measure")]
    assert lm_eval_arguments(command) == {
        "pretrained": f"base_{architecture}",
        "peft": str(folder),
        "tokenizer": str(folder),
        "dtype": "float32",
        **({"backend": "seq2seq"} if architecture == "t5" else {}),
    }
    (note,) = [line for line in lines if line.startswith("note")]
    assert f"base_{architecture}" in note
    assert "--merge" in note


def lm_eval_arguments(command: str) -> dict[str, str]:
    """Return the model arguments of a command, split as lm_eval splits them."""
    program, *options = shlex.split(command)
    assert (program, *options[:3:2], *options[4:]) == ("lm_eval", "--model", "--model_args", "--tasks", "hellaswag")
    assert options[1] == "hf"
    return dict(argument.split("=", 1) for argument in options[3].split(","))


def test_a_fully_trained_model_is_exported_without_its_value_head(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, arguments in enumerate(([], ["--merge"])):
        folder = exported(tmp_path / str(number), *arguments, run="runs/full")
        command = capsys.readouterr().out.splitlines()[-1].partition(": ")[2]
        assert lm_eval_arguments(command) == {"pretrained": str(folder), "tokenizer": str(folder), "dtype": "float32"}
        assert {file.name for file in folder.iterdir()} == TOKENIZER | {
            *("README.md", "config.json", "generation_config.json", "model.safetensors")
        }
        tokenizer = AutoTokenizer.from_pretrained(folder)
        loaded, trained, base = (plain("gpt2", path) for path in (folder, "runs/full/ppo", "base_gpt2"))
        torch.testing.assert_close(logits(loaded, tokenizer, "gpt2"), logits(trained, tokenizer, "gpt2"))
        assert (logits(loaded, tokenizer, "gpt2") - logits(base, tokenizer, "gpt2")).abs().max() > 0.1


def test_a_merge_is_into_unquantized_weights_and_rounds_once(workspace: Path, tmp_path: Path) -> None:
    merged = load_file(exported(tmp_path / "fp32", "--merge") / "model.safetensors")
    run = altered("t5", tmp_path / "nf4", quantization="nf4")
    folder = exported(tmp_path / "from_nf4", "--merge", run=run)
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.equal(weight, merged[name])
    assert "nf4" in section(folder, "Limitations")
    run = altered("t5", tmp_path / "bf16", precision="bf16")
    for name, weight in load_file(exported(tmp_path / "from_bf16", "--merge", run=run) / "model.safetensors").items():
        assert torch.equal(weight, merged[name].bfloat16())


def test_the_reward_model_is_exported_with_its_report_and_calibration(workspace: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", "--stage", "reward")
    assert {file.name for file in folder.iterdir()} == TOKENIZER | {
        *("README.md", "config.json", "model.safetensors", "report.json", "report.html", "calibration.json")
    }
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.id2label == {0: "clean", 1: "rude"}
    metrics = json.loads(Path("runs/t5/reward/stage.json").read_text())["metrics"]
    assert f"| auroc | {metrics['auroc']:.4g} |" in section(folder, "Evaluation")
    assert "target_label | clean" in section(folder, "Training settings")
    card = ModelCard.load(folder / "README.md").data
    assert (card.pipeline_tag, card.library_name) == ("text-classification", "transformers")
