"""The padding and truncation sides in a tokenizer's file change nothing: training and scoring set their own."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import small
from tiny_checkpoints import saved
from tiny_classifiers import build

from recipes import reward, sft
from reward_models.network import load_network
from workbench.models.batching import encode
from workbench.models.loading import load_tokenizer
from workbench.run import cli
from workbench.toy import model_folder

SIDES = ("right", "left")


def with_side(folder: Path, side: str) -> str:
    """The folder, whose tokenizer's file says on which side it pads and truncates."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"padding_side": side, "truncation_side": side}), encoding="utf-8")
    return str(folder)


def toy(name: str, folder: Path, side: str) -> str:
    """A copy of a toy model."""
    shutil.copytree(model_folder(name), folder)
    return with_side(folder, side)


def trained(stage: cli.Stage, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, torch.Tensor]:
    """The weights that a stage saves."""
    monkeypatch.setattr(sys, "argv", ["recipe", *small("quickstart", folder, *options)])
    with pytest.raises(SystemExit) as leaving:
        cli.main([stage], "")
    assert leaving.value.code == 0
    return load_file(next((folder / "quickstart" / stage.name).glob("*model.safetensors")))


def test_sft_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, left = (
        trained(
            sft.STAGE,
            tmp_path / f"run {side}",
            monkeypatch,
            *("--policy.model", toy("t5", tmp_path / side, side), "--sft.data.limit", "16", "--sft.max_steps", "2"),
        )
        for side in SIDES
    )
    assert right.keys() == left.keys()
    assert all(torch.equal(right[name], left[name]) for name in right)


def test_a_classifier_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, left = (
        trained(
            reward.STAGE,
            tmp_path / f"run {side}",
            monkeypatch,
            *("--reward.model", "null", "--reward.train.model", toy("gpt2", tmp_path / side, side)),
            *("--reward.train.data.limit", "32", "--reward.train.validation.limit", "20"),
            *("--reward.options", "{polarity_pair: null}"),
        )
        for side in SIDES
    )
    assert all(torch.equal(right[name], left[name]) for name in right)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "t5"])
def test_a_classifier_scores_the_same(kind: str, tmp_path: Path) -> None:
    texts = ["Thank you.", "a", "word " * 40]
    logits = []
    for side in SIDES:
        network = load_network(
            with_side(Path(saved(tmp_path / side, *build(kind))), side), batch_size=4, max_tokens=16, device=None
        )
        logits.append(network.logits(encode(network.tokenizer, texts, 16)))
    assert torch.equal(*logits)


def test_a_loaded_tokenizer_pads_and_truncates_on_the_right(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(toy("t5", tmp_path / "t5", "left"))
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("right", "right")
