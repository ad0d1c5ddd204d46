"""Fine-tuning takes the same step however its rows are divided."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from small_runs import small
from transformers.trainer_pt_utils import LabelSmoother

from recipes import sft
from workbench.run import cli
from workbench.sft.trainer import IGNORED_LABEL, decoder_inputs, token_loss


def fine_tuned(recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, torch.Tensor]:
    """Return the weights after three steps of 12 rows by plain gradient descent."""
    plain = ("--sft.trainer_args", "{optim: sgd}", "--sft.learning_rate", "0.1", "--policy.lora", "null")
    command = [*small(recipe, folder, *plain), "--sft.batch_size", "12", *options]
    monkeypatch.setattr(sys, "argv", ["recipes/sft.py", *command])
    with pytest.raises(SystemExit) as leaving:
        cli.main([sft.STAGE], "")
    assert leaving.value.code == 0
    return load_file(folder / recipe / "sft" / "model.safetensors")


@pytest.mark.parametrize("recipe", ["quickstart", "quickstart_gpt2"])
def test_a_step_is_the_mean_over_its_tokens_whatever_the_micro_batch(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fine_tuned(recipe, tmp_path / "whole", monkeypatch)
    start = fine_tuned(recipe, tmp_path / "start", monkeypatch, "--sft.learning_rate", "1e-12")
    assert max((whole[name] - start[name]).abs().max() for name in whole) > 1e-3, "it learned"
    for key in ("sft", "policy"):
        # Of the policy's default, as many rows as divide the 12 are taken: four.
        size = "5" if key == "policy" else "4"
        parts = fine_tuned(recipe, tmp_path / key, monkeypatch, f"--{key}.micro_batch_size", size)
        for name, weight in whole.items():
            assert torch.allclose(weight, parts[name], rtol=0, atol=1e-5), name


def test_the_decoder_reads_the_labels_one_later() -> None:
    model = tiny.model("t5")
    labels = torch.tensor([[5, 6, 1], [7, 1, IGNORED_LABEL]])
    batch = decoder_inputs(dict, 0, 0)({"labels": labels})
    assert torch.equal(batch["decoder_input_ids"], model.prepare_decoder_input_ids_from_labels(labels))
    assert torch.equal(decoder_inputs(dict, 9, 0)({"labels": labels})["decoder_input_ids"][:, 0], torch.tensor([9, 9]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_that_of_the_trainer(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    labels[0, 3:] = IGNORED_LABEL
    outputs = {"logits": logits}
    expected = LabelSmoother(epsilon=smoothing, ignore_index=IGNORED_LABEL)(outputs, labels.clone())
    loss = token_loss(type("Outputs", (), outputs), labels, label_smoothing=smoothing)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_the_trainer_gets_its_label_smoothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fine_tuned("quickstart", tmp_path / "plain", monkeypatch)
    options = ("--sft.trainer_args", "{optim: sgd, label_smoothing_factor: 0.5}")
    smooth = fine_tuned("quickstart", tmp_path / "smooth", monkeypatch, *options)
    assert max((plain[name] - smooth[name]).abs().max() for name in plain) > 1e-3


def test_the_loss_of_an_encoder_decoder_is_that_of_its_tokens() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    labels[0, 3:] = labels[2, 1:] = IGNORED_LABEL
    outputs = type("Outputs", (), {"logits": logits})
    counted = [(row, token) for row in range(3) for token in range(5) if labels[row, token] != IGNORED_LABEL]
    total = -sum(logits[row, token].log_softmax(0)[labels[row, token]] for row, token in counted)
    assert float(token_loss(outputs, labels)) == pytest.approx(float(total) / len(counted), rel=1e-5)
    assert float(token_loss(outputs, labels, 100)) == pytest.approx(float(total) / 100, rel=1e-5)
