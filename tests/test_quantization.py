"""QLoRA: SFT, PPO and evaluation run for real on a base in 4 or 8 bits, and one base serves every variant."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import load_file
from small_runs import CHAIN, drop, evaluation_source, small
from trainers import lines

from recipes import ppo, sft
from workbench.config.schema import PolicyConfig
from workbench.errors import UserError
from workbench.models import precision
from workbench.models.adapters import load_adapters, load_trainable
from workbench.models.loading import load_model, load_policy_tokenizer
from workbench.models.optimizer import use_paged_optimizer
from workbench.models.policy import Policy
from workbench.run import cli

CPU = torch.device("cpu")
SFT_OPTIONS = ("--sft.max_steps", "--sft.batch_size", "--sft.data.limit")
KINDS = {"nf4": Linear4bit, "int8": Linear8bitLt}
both = pytest.mark.parametrize("name", ["t5", "gpt2"])
either = pytest.mark.parametrize("quantization", KINDS)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:bitsandbytes", "ignore::UserWarning")


def settings(name: str, quantization: str) -> PolicyConfig:
    """A toy model as QLoRA holds it."""
    return PolicyConfig(model=f"toy:{name}", quantization=quantization, precision="bf16")


@pytest.mark.parametrize("config", ["quickstart", "quickstart_gpt2"])
@either
def test_the_chain_runs_on_a_quantized_base(config: str, quantization: str, in_project: Path, tmp_path: Path) -> None:
    options = ["--policy.quantization", quantization, "--policy.precision", "bf16", "--reward.model", "length"]
    # A forward pass of quantized weights is slow on a CPU.
    options += [
        "--sft.max_steps",
        "1",
        "--ppo.batch_size",
        "4",
        "--ppo.minibatch_size",
        "2",
        "--ppo.max_new_tokens",
        "4",
    ]
    options += ["--evaluation.data", json.dumps({"test dialogues": evaluation_source(4)})]
    cli.launch(CHAIN, "", small(config, tmp_path, *options))
    run = tmp_path / config
    steps = lines(run / "ppo" / "metrics.jsonl")
    assert len(steps) == 2
    assert all(step["skipped_steps"] == 0 and step["grad_norm"] > 0 for step in steps)
    assert abs(steps[0]["objective/kl_k3"]) < 1e-2
    assert (run / "evaluation" / "report.md").is_file()


@both
@either
def test_every_linear_layer_of_the_base_is_quantized_but_t5s_wo_and_the_head(name: str, quantization: str) -> None:
    model = load_model(settings(name, quantization), device=CPU)
    plain = {key.split(".")[-1] for key, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert plain == ({"lm_head", "wo"} if name == "t5" else {"lm_head"})
    # transformers does not quantize T5's wo, which overflows in fp16 and not in bf16.
    assert all(module.weight.dtype == torch.bfloat16 for key, module in model.named_modules() if key.endswith(".wo"))
    quantized = [module for module in model.modules() if isinstance(module, KINDS[quantization])]
    assert len(quantized) > 10
    if quantization == "nf4":
        for layer in quantized:
            assert layer.weight.quant_state.nested, "double quantization"
            assert layer.weight.quant_type == "nf4"
            assert layer.compute_dtype == torch.bfloat16


@both
@either
def test_base_sft_reference_and_policy_are_one_base_in_memory(name: str, quantization: str, tmp_path: Path) -> None:
    config = settings(name, quantization)
    start = load_trainable(config, None, device=CPU).model
    for key, parameter in start.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.05)
    start.save_pretrained(tmp_path, selected_adapters=["policy"], save_embedding_layers=False)
    models = load_trainable(config, tmp_path / "policy", device=CPU)
    assert models.reference is None
    tokenizer = load_policy_tokenizer(config.model)
    policy = Policy(models.model, tokenizer, autocast=torch.bfloat16).eval()
    weights = {id(m.weight) for m in policy.modules() if isinstance(m, KINDS[quantization])}
    assert len(weights) == len([m for m in start.modules() if isinstance(m, KINDS[quantization])])
    prompts = [tokenizer("Anna: hello there.").input_ids] * 2
    batch = policy.make_batch(prompts, torch.randint(5, 200, (2, 6)).tolist())
    logprobs = {variant: policy.logprobs(variant, batch, 1.0) for variant in ("base", "sft", "reference", "policy")}
    assert torch.equal(logprobs["sft"], logprobs["reference"])
    assert torch.allclose(logprobs["policy"], logprobs["sft"], atol=1e-2)
    assert (logprobs["base"] - logprobs["sft"]).abs().max() > 0.05
    alone = Policy(load_adapters(load_model(config, device=CPU), {"sft": tmp_path / "policy"}), tokenizer)
    alone.autocast_dtype = torch.bfloat16
    assert torch.allclose(alone.eval().logprobs("sft", batch, 1.0), logprobs["sft"], atol=1e-2)


class OnGPU(NamedTuple):
    """A parameter on a GPU that is not there."""

    count: int
    requires_grad: bool = True
    device: torch.device = torch.device("cuda", 0)

    def numel(self) -> int:
        """Return the number of elements."""
        return self.count


def test_the_optimizer_is_paged_where_its_state_would_fill_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=16 * 2**30))
    assert use_paged_optimizer([OnGPU(130_000_000), OnGPU(10_000_000)])  # type: ignore[list-item]
    assert not use_paged_optimizer([OnGPU(10_000_000), OnGPU(10**9, requires_grad=False)])  # type: ignore[list-item]
    assert not use_paged_optimizer([OnGPU(10**9, device=CPU)])  # type: ignore[list-item]
    assert not use_paged_optimizer([])


@both
@either
def test_only_norms_and_biases_are_kept_in_fp32(name: str, quantization: str) -> None:
    model = load_model(settings(name, quantization), device=CPU)
    for key, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert parameter.dtype == torch.float32, key
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert module.weight.dtype == torch.bfloat16, "autocast would convert it at every token"


def test_sft_trains_and_saves_its_adapter_in_fp32(in_project: Path, tmp_path: Path) -> None:
    options = ["--policy.quantization", "nf4", "--policy.precision", "bf16", "--sft.max_steps", "1"]
    cli.launch([sft.STAGE], "", small("quickstart_gpt2", tmp_path, *options))
    weights = load_file(tmp_path / "quickstart_gpt2" / "sft" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_fp16_is_refused_for_t5_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"policy.precision: fp16 overflows in t5 \(loss 0.0 or NaN\); use auto, bf16"):
        load_model(PolicyConfig(model="toy:t5", quantization="nf4", precision="fp16"), device=CPU)


@both
@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_four_bits_compute_in_what_auto_chooses(
    name: str, has_bf16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_bf16)
    model = load_model(PolicyConfig(model=f"toy:{name}", quantization="nf4"), device=CPU)
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert {layer.compute_dtype for layer in layers} == {dtype}
    assert model.get_output_embeddings().weight.dtype == dtype


def test_four_bits_of_gpt2_train_in_fp16(tmp_path: Path) -> None:
    """As on a T4, for which auto chooses it: the loss scale falls until gradients fit."""
    options = ["--policy.quantization", "nf4", "--policy.precision", "fp16", "--reward.model", "length"]
    options += ["--sft", "null", "--ppo.steps", "3", "--ppo.max_new_tokens", "4"]
    cli.launch([ppo.STAGE], "", drop(small("quickstart_gpt2", tmp_path, *options), *SFT_OPTIONS))
    steps = lines(tmp_path / "quickstart_gpt2" / "ppo" / "metrics.jsonl")
    assert all(step["loss_scale"] > 0 for step in steps)
    assert steps[-1]["skipped_steps"] < steps[-1]["optimizer_steps"]
    assert steps[-1]["grad_norm"] > 0
