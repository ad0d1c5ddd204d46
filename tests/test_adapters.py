"""An adapter joins only a base that has the weights it was made for."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PrefixTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from workbench.config.tuning import LoraSettings
from workbench.errors import UserError
from workbench.models.adapters import add_lora, check_adapter, load_adapter, load_adapters
from workbench.models.loading import save_model

LAYERS = {"target_modules": ["c_attn"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
def test_an_adapter_fits_the_base_it_was_trained_on_and_names_it(architecture: str, models: Path) -> None:
    base = str(models / architecture)
    assert check_adapter(base, models / f"{architecture}_adapter") == base


KINDS = {
    "rank-stabilized": {"use_rslora": True},
    "weight-decomposed": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "rank by module": {"rank_pattern": {"c_attn": 3}},
    "whole embeddings": {"modules_to_save": ["wte"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_lora_fit_and_change_nothing_but_themselves(kind: str, models: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, fan_in_fan_out=True, task_type=TaskType.CAUSAL_LM, **LAYERS | KINDS[kind])
    made = get_peft_model(tiny.model("gpt2"), config)
    for name, weight in made.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight.data, std=0.3)
    made.save_pretrained(tmp_path, save_embedding_layers=False)
    check_adapter(str(models / "gpt2"), tmp_path)
    ids = torch.arange(8)[None]
    base = load_adapters(tiny.model("gpt2"), {"sft": models / "gpt2_adapter"})
    before, alone = base(ids).logits, made.eval()(ids).logits
    joined = load_adapter(base, "further", tmp_path).eval()
    assert torch.equal(joined(ids).logits, before)
    joined.set_adapter("further")
    assert torch.allclose(joined(ids).logits, alone, atol=1e-5)
    assert (alone - before).abs().max() > 0.01


REFUSED = {
    "its init_lora_weights is 'pissa', which may change the base": LoraConfig(init_lora_weights="pissa", **LAYERS),
    "its bias is 'lora_only', which may change the base": LoraConfig(bias="lora_only", **LAYERS),
    r"its trainable_token_indices is \[1, 2\]": LoraConfig(trainable_token_indices=[1, 2], **LAYERS),
    "it is IA3, and only LoRA can share a base": IA3Config(feedforward_modules=[], **LAYERS),
    "it is ADALORA, and only LoRA can share a base": AdaLoraConfig(total_step=10, **LAYERS),
    "it is PREFIX_TUNING, and only LoRA": PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2),
}


@pytest.mark.parametrize("reason", REFUSED)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_an_adapter_that_would_change_the_base_or_cannot_share_it_is_refused(
    reason: str, models: Path, tmp_path: Path
) -> None:
    get_peft_model(tiny.model("gpt2"), REFUSED[reason]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=reason):
        check_adapter(str(models / "gpt2"), tmp_path)


def test_an_adapter_that_replicates_layers_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).save_pretrained(tmp_path / "llama")
    config = LoraConfig(target_modules=["q_proj"], layer_replication=[[0, 2], [0, 2]])
    base = LlamaForCausalLM.from_pretrained(tmp_path / "llama")
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"its layer_replication is .*, which may change the base it is loaded onto"):
        check_adapter(str(tmp_path / "llama"), tmp_path / "adapter")


def test_an_adapter_saved_with_weights_of_its_base_is_refused(models: Path, tmp_path: Path) -> None:
    config = LoraConfig(fan_in_fan_out=True, **LAYERS)
    get_peft_model(tiny.model("gpt2"), config).save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(UserError, match=r"contains .*lm_head.*, a weight of the base; save it with"):
        check_adapter(str(models / "gpt2"), tmp_path)


@pytest.mark.parametrize("config", ["[]", "null", "{}", '{"peft_type": "LORA", "r": "x"}', "{", "\udcff"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_a_broken_configuration_is_one_line(config: str, models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "gpt2_adapter", tmp_path / "adapter"))
    (folder / "adapter_config.json").write_text(config, errors="surrogateescape")
    with pytest.raises(UserError, match=r"the adapter does not fit .*gpt2") as raised:
        check_adapter(str(models / "gpt2"), folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1]), pickle.dumps(Path("x"))])
def test_broken_weights_are_one_line_and_run_nothing(content: bytes, models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "gpt2_adapter", tmp_path / "adapter"))
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"it cannot be read: \w+:") as raised:
        check_adapter(str(models / "gpt2"), folder)
    assert "\n" not in str(raised.value)


def test_a_folder_without_weights_is_never_looked_up_on_the_hub(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / "gpt2_adapter", tmp_path / "my" / "adapter")
    (tmp_path / "my" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"it has neither adapter_model\.safetensors nor adapter_model\.bin"):
        check_adapter(str(models / "gpt2"), Path("my/adapter"))


@pytest.mark.parametrize(
    ("base", "adapter", "reason"),
    [
        ("t5", "gpt2", "c_attn"),
        ("gpt2", "t5", "SelfAttention"),
        ("wide", "gpt2", r"lora_A.weight is \(4, 32\) and should be \(4, 64\)"),
        ("short", "gpt2", r"h\.1\..* is \(.*\) and should be missing"),
    ],
)
def test_another_base_is_refused_in_one_line(base: str, adapter: str, reason: str, models: Path) -> None:
    with pytest.raises(
        UserError, match=rf"the adapter does not fit .*{base} \(it was trained on .*{adapter}\): .*{reason}"
    ) as raised:
        check_adapter(str(models / base), models / f"{adapter}_adapter")
    assert "\n" not in str(raised.value)


def test_a_classifiers_adapter_is_not_one_of_a_language_model(models: Path, tmp_path: Path) -> None:
    model = GPT2ForSequenceClassification(tiny.model("gpt2").config)
    get_peft_model(model, LoraConfig(r=2, fan_in_fan_out=True, task_type=TaskType.SEQ_CLS)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the adapter does not fit .*gpt2"):
        check_adapter(str(models / "gpt2"), tmp_path)


@pytest.mark.parametrize("damage", ["torn", "no weights", "no config", "bad config", "a weight less"])
def test_half_an_adapter_is_refused_in_one_line(damage: str, models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "gpt2_adapter", tmp_path / "sft"))
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if damage == "torn":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no config":
        config.unlink()
    elif damage == "bad config":
        config.write_text(json.dumps({"peft_type": "NONE_SUCH"}))
    else:
        state = load_file(weights)
        state.pop(sorted(state)[0])
        save_file(state, weights)
    with pytest.raises(
        UserError, match=r"sft: the adapter does not fit .*gpt2( \(it was trained on .*gpt2\))?: "
    ) as raised:
        check_adapter(str(models / "gpt2"), folder)
    assert "\n" not in str(raised.value)
    if damage != "a weight less":  # peft itself fills what is missing, which is why it is checked before
        with pytest.raises(UserError, match=r"redo the stage with --force sft$"):
            load_adapters(tiny.model("gpt2"), {"sft": folder})


def test_no_weight_of_the_base_is_loaded(models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "gpt2", tmp_path / "gpt2"))
    (folder / "model.safetensors").unlink()
    check_adapter(str(folder), models / "gpt2_adapter")
    assert torch.get_default_device() == torch.device("cpu")
