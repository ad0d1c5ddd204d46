"""Loading: quantized bases keep their gradients, dropout is off, context lengths, adapter folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BartConfig, FalconConfig, GPT2Config, RobertaConfig, RobertaForSequenceClassification, T5Config

from workbench.config.schema import PolicyConfig
from workbench.errors import UserError
from workbench.models import loading
from workbench.models.adapters import load_trainable
from workbench.models.loading import (
    disable_dropout,
    load_config,
    load_policy_tokenizer,
    load_tokenizer,
    resolve,
    save_model,
)
from workbench.models.policy import Policy
from workbench.models.positions import context_length

CPU = torch.device("cpu")
ignore_bitsandbytes = pytest.mark.filterwarnings("ignore::FutureWarning:bitsandbytes", "ignore::UserWarning")


def quantized(name: str) -> Policy:
    """A 4-bit toy model with adapters that are not zero."""
    settings = PolicyConfig(model=f"toy:{name}", quantization="nf4")
    model = load_trainable(settings, None, device=CPU).model
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.02)
    return Policy(model, load_policy_tokenizer(settings.model)).train()


@ignore_bitsandbytes
@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_a_rollout_leaves_the_gradients_of_a_4_bit_policy_as_they_were(name: str) -> None:
    policy = quantized(name)
    tokenizer = load_policy_tokenizer(f"toy:{name}")
    prompts = [tokenizer("Anna: hello there.").input_ids] * 2
    batch = policy.make_batch(prompts, torch.randint(5, 200, (2, 6)).tolist())

    def gradients() -> dict[str, torch.Tensor]:
        policy.zero_grad()
        policy(batch, 1.0).logprobs.sum().backward()
        return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}

    before = gradients()
    policy.generate(*policy.pad_prompts(prompts), max_new_tokens=3, temperature=1.0)
    after = gradients()
    assert len(before) > 10
    assert before.keys() == after.keys()
    for key, gradient in before.items():
        assert torch.allclose(gradient, after[key], atol=1e-5), key


@pytest.mark.parametrize("config", [BartConfig(), FalconConfig(), GPT2Config(), T5Config()], ids=lambda c: c.model_type)
def test_no_configuration_keeps_a_dropout(config: object) -> None:
    disable_dropout(config)
    assert not {k: v for k, v in config.to_dict().items() if "drop" in k and isinstance(v, float) and v > 0}


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_the_context_length_is_the_shortest_limit_of_tokenizer_and_positions(name: str) -> None:
    config, tokenizer = load_config(f"toy:{name}"), load_tokenizer(f"toy:{name}")
    for limit in (100, int(1e30)):
        tokenizer.model_max_length = limit
        learned = 256 if name == "gpt2" else int(1e30)  # T5's positions are relative
        shortest = min(limit, learned)
        assert context_length(config, tokenizer) == (None if shortest == int(1e30) else shortest)


def test_a_table_of_positions_with_a_padding_row_is_shorter_than_its_configuration_says() -> None:
    config = RobertaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    assert context_length(config, load_tokenizer("toy:gpt2"), RobertaForSequenceClassification(config)) == 18


def test_the_old_prefix_of_the_toy_models_names_the_new_one() -> None:
    with pytest.raises(UserError, match=r"^embedded:t5: no such file or folder; did you mean toy:t5\?$"):
        resolve("embedded:t5")


@pytest.mark.parametrize(
    "name", ["./models/x", "models/x", "{absolute}/models/x", "~/nowhere/x", "a/b/c", "models/flam"]
)
def test_a_missing_folder_is_called_missing_whatever_the_hub_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "flan").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "hub_is_reachable", lambda name, kind: False)
    name = name.format(absolute=tmp_path)
    with pytest.raises(UserError) as caught:
        load_config(name)
    message = str(caught.value)
    assert message.startswith(f"{name}: no such file or folder")
    assert "connect" not in message
    is_hub_id = name.startswith("models/")
    assert ("as a hub id: the hub cannot be reached and this model is not cached" in message) == is_hub_id
    assert ("did you mean" in message) == (name == "models/flam")


def test_a_hub_id_outside_the_hub_names_no_file_of_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "hub_is_reachable", lambda name, kind: False)
    with pytest.raises(UserError) as caught:
        load_config("nobody/flan")
    assert str(caught.value).startswith("nobody/flan: no such file or folder; as a hub id: the hub cannot be reached")


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_an_adapter_folder_holds_the_adapter_alone(name: str, tmp_path: Path) -> None:
    model = load_trainable(PolicyConfig(model=f"toy:{name}"), None, device=CPU).model
    save_model(model, tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert names
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
