"""What only a CUDA device can show; skipped with the reason elsewhere (docs/gpu.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from small_runs import CHAIN, small
from trainers import both, lines, make_trainer
from transformers import GPT2Config, GPT2LMHeadModel

from workbench.config.schema import PolicyConfig
from workbench.models.adapters import load_trainable
from workbench.models.loading import load_policy_tokenizer
from workbench.models.optimizer import make_optimizer
from workbench.models.policy import Batch, Policy
from workbench.run import cli

CUDA = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (docs/gpu.md)"),
]


@both
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logprobs_on_the_device_are_those_of_the_cpu(architecture: str, precision: str) -> None:
    tokenizer = load_policy_tokenizer(f"toy:{architecture}")
    logprobs = []
    for device in (torch.device("cpu"), CUDA):
        settings = PolicyConfig(model=f"toy:{architecture}", precision=precision)
        torch.manual_seed(0)
        model = load_trainable(settings, None, device=device).model
        policy = Policy(model, tokenizer, autocast=None if precision == "fp32" else torch.bfloat16)
        ids, mask = policy.pad_prompts([tokenizer(text).input_ids for text in ("Anna: hello there.", "Tom: no.")])
        response = torch.arange(5, 17, device=device).view(2, 6)
        batch = Batch(ids, mask, response, torch.ones_like(response, dtype=torch.bool))
        logprobs.append(policy(batch, 1.0, entropy=True).logprobs.detach().cpu())
    assert torch.allclose(*logprobs, atol=1e-3 if precision == "fp32" else 0.2)


@both
@pytest.mark.parametrize("quantization", ["null", "nf4", "int8"])
def test_the_chain_runs_on_the_device(architecture: str, quantization: str, in_project: Path, tmp_path: Path) -> None:
    config = "quickstart" if architecture == "t5" else "quickstart_gpt2"
    options = ["--policy.quantization", quantization, "--policy.precision", "bf16", "--reward.model", "length"]
    cli.launch(CHAIN, "", small(config, tmp_path, *options))
    steps = lines(tmp_path / config / "ppo" / "metrics.jsonl")
    assert all(step["skipped_steps"] == 0 for step in steps)
    assert abs(steps[0]["objective/kl_k3"]) < 0.05


def test_the_paged_optimizer_takes_the_step_of_adamw() -> None:
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 8192, device=CUDA)) for _ in range(2)]
    for weight, paged in zip(weights, (True, False), strict=True):
        optimizer = make_optimizer([{"params": [weight], "lr": 1e-2}], paged=paged)
        for _ in range(3):
            weight.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.allclose(*weights, atol=1e-5)


def test_four_bits_take_less_memory_than_sixteen(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=512, n_layer=8, n_head=8)).save_pretrained(tmp_path)
    allocated = {}
    for quantization in ("nf4", None):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        settings = PolicyConfig(model=str(tmp_path), quantization=quantization, precision="bf16")
        model = load_trainable(settings, None, device=CUDA).model
        allocated[quantization] = torch.cuda.memory_allocated() - before
        del model
    assert allocated["nf4"] < 0.6 * allocated[None]


@both
def test_a_run_on_the_device_learns(architecture: str, tmp_path: Path) -> None:
    policy = tiny.policy(architecture, lora=True).to(CUDA)
    policy.stop_ids = policy.stop_ids.to(CUDA)
    changes = {"steps": 14, "batch_size": 32, "epochs": 4, "learning_rate": 3e-2}
    make_trainer(tmp_path, architecture, policy=policy, cpu=False, **changes).train()
    scores = [line["objective/score_mean"] for line in lines(tmp_path / "metrics.jsonl")]
    assert sum(scores[-3:]) / 3 > scores[0] + 0.2, scores
