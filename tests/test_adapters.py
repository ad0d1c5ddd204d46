"""An adapter joins only a base that has the weights it was made for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from workbench.adapters import add_lora, check_adapter, load_adapters
from workbench.config import LoraSettings
from workbench.errors import UserError
from workbench.models import save_model


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tiny models, and beside each the folder of an adapter on it."""
    folder = tmp_path_factory.mktemp("models")
    for name in tiny.ARCHITECTURES:
        base = tiny.model(name)
        base.save_pretrained(folder / name)
        base.name_or_path = str(folder / name)
        save_model(add_lora(base, LoraSettings(r=4, alpha=8), "default"), folder / f"{name}_adapter")
    wide = GPT2LMHeadModel(GPT2Config(**tiny.model("gpt2").config.to_diff_dict() | {"n_embd": 64}))
    wide.save_pretrained(folder / "wide")
    short = GPT2LMHeadModel(GPT2Config(**tiny.model("gpt2").config.to_diff_dict() | {"n_layer": 1}))
    short.save_pretrained(folder / "short")
    return folder


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_an_adapter_fits_the_base_it_was_trained_on_and_names_it(architecture: str, places: Path) -> None:
    base = str(places / architecture)
    assert check_adapter(base, places / f"{architecture}_adapter") == base


def test_another_kind_of_adapter_fits_as_well(places: Path, tmp_path: Path) -> None:
    config = LoraConfig(
        r=2,
        use_dora=True,
        fan_in_fan_out=True,
        target_modules=["c_attn"],
        modules_to_save=["wte"],
        task_type=TaskType.CAUSAL_LM,
    )
    get_peft_model(tiny.model("gpt2"), config).save_pretrained(tmp_path, save_embedding_layers=False)
    check_adapter(str(places / "gpt2"), tmp_path)


@pytest.mark.parametrize(
    ("base", "adapter", "reason"),
    [
        ("t5", "gpt2", "c_attn"),
        ("gpt2", "t5", "SelfAttention"),
        ("wide", "gpt2", r"lora_A.weight is \(4, 32\) and should be \(4, 64\)"),
        ("short", "gpt2", r"h\.1\..* is \(.*\) and should be missing"),
    ],
)
def test_another_base_is_refused_in_one_line(base: str, adapter: str, reason: str, places: Path) -> None:
    with pytest.raises(UserError, match=rf"no adapter for .*{base}, but for .*{adapter}: .*{reason}") as found:
        check_adapter(str(places / base), places / f"{adapter}_adapter")
    assert "\n" not in str(found.value)


def test_a_classifiers_adapter_is_none_of_a_language_model(places: Path, tmp_path: Path) -> None:
    model = GPT2ForSequenceClassification(tiny.model("gpt2").config)
    get_peft_model(model, LoraConfig(r=2, fan_in_fan_out=True, task_type=TaskType.SEQ_CLS)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no adapter for .*gpt2"):
        check_adapter(str(places / "gpt2"), tmp_path)


@pytest.mark.parametrize("harm", ["torn", "no weights", "no config", "bad config", "a weight less"])
def test_half_an_adapter_is_refused_in_one_line(harm: str, places: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(places / "gpt2_adapter", tmp_path / "sft"))
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if harm == "torn":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif harm == "no weights":
        weights.unlink()
    elif harm == "no config":
        config.unlink()
    elif harm == "bad config":
        config.write_text(json.dumps({"peft_type": "NONE_SUCH"}))
    else:
        kept = load_file(weights)
        kept.pop(sorted(kept)[0])
        save_file(kept, weights)
    with pytest.raises(UserError, match=r"sft: no adapter for .*gpt2(, but for .*gpt2)?: ") as found:
        check_adapter(str(places / "gpt2"), folder)
    assert "\n" not in str(found.value)
    if harm != "a weight less":  # peft itself fills what is missing, which is why it is checked before
        with pytest.raises(UserError, match=r"redo the stage with --force sft$"):
            load_adapters(tiny.model("gpt2"), {"sft": folder})


def test_no_weight_of_the_base_is_loaded(places: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(places / "gpt2", tmp_path / "gpt2"))
    (folder / "model.safetensors").unlink()
    check_adapter(str(folder), places / "gpt2_adapter")
    assert torch.get_default_device() == torch.device("cpu")
