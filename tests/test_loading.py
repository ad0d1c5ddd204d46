"""Loading: quantized bases keep their gradients, dropout is out, adapters hold adapters only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BartConfig, FalconConfig, GPT2Config, T5Config

from workbench.config.schema import PolicyConfig
from workbench.models.adapters import load_trainable
from workbench.models.loading import disable_dropout, load_policy_tokenizer, save_model
from workbench.models.policy import Batch, Policy

CPU = torch.device("cpu")
ignore_bitsandbytes = pytest.mark.filterwarnings("ignore::FutureWarning:bitsandbytes", "ignore::UserWarning")


def quantized(name: str) -> Policy:
    """A 4-bit embedded model whose adapters are away from zero."""
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
    ids, mask = policy.pad_prompts([tokenizer("Anna: hello there.").input_ids] * 2)
    response, response_mask = torch.randint(5, 200, (2, 6)), torch.ones(2, 6, dtype=torch.bool)

    def gradients() -> dict[str, torch.Tensor]:
        policy.zero_grad()
        policy(Batch(ids, mask, response, response_mask), 1.0).logprobs.sum().backward()
        return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}

    before = gradients()
    policy.generate(ids, mask, max_new_tokens=3, temperature=1.0)
    after = gradients()
    assert len(before) > 10
    assert before.keys() == after.keys()
    for key, gradient in before.items():
        assert torch.allclose(gradient, after[key], atol=1e-5), key


@pytest.mark.parametrize("config", [BartConfig(), FalconConfig(), GPT2Config(), T5Config()], ids=lambda c: c.model_type)
def test_no_configuration_keeps_a_dropout(config: object) -> None:
    disable_dropout(config)
    kept = {k: v for k, v in config.to_dict().items() if "drop" in k and isinstance(v, float) and v > 0}
    assert kept == {}


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_an_adapter_folder_holds_the_adapter_alone(name: str, tmp_path: Path) -> None:
    model = load_trainable(PolicyConfig(model=f"toy:{name}"), None, device=CPU).model
    save_model(model, tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert names
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
