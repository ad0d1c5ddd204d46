"""Which precision is chosen on which hardware, that it is the one that computes, and the loss scaling of fp16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from small_runs import CHAIN, small
from trainers import digest, lines, make_rows, make_trainer, step
from transformers import GPT2Config, T5Config

from workbench.errors import UserError
from workbench.models import precision
from workbench.models.policy import Policy
from workbench.models.precision import cpu_has_bf16, machine_device, precision_lines, resolve_precision
from workbench.ppo.trainer import PPOTrainer
from workbench.run import cli

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ARCHITECTURES = {"gpt2": GPT2Config(), "t5": T5Config()}


@pytest.mark.parametrize(
    ("capability", "architecture", "expected"),
    [
        ((9, 0), "t5", "bf16"),
        ((8, 0), "gpt2", "bf16"),
        ((7, 5), "gpt2", "fp16"),  # a T4
        ((7, 5), "t5", "fp32"),
        ((7, 0), "gpt2", "fp16"),
    ],
)
def test_a_gpu_gets_what_it_has_units_for(
    capability: tuple[int, int], architecture: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def emulated() -> bool:
        raise AssertionError("it is true where bf16 is emulated")

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", emulated)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", CUDA, ARCHITECTURES[architecture]) == expected
    (line,) = precision_lines("policy.precision", "auto", CUDA, ARCHITECTURES[architecture])
    assert line.startswith(f"policy.precision: auto is {expected} (compute capability {capability[0]}.{capability[1]}")


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"architecture": "aarch64", "bf16": True}, True),
        ({}, False),
    ],
)
def test_a_cpu_counts_if_it_multiplies_bf16(
    features: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert cpu_has_bf16.__wrapped__() == expected


def test_what_the_user_names_is_used_and_its_price_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "slowdown", lambda *arguments: 44.7)
    config = ARCHITECTURES["gpt2"]
    for name in ("fp32", "bf16", "fp16"):
        assert resolve_precision(name, CPU, config) == name
    assert precision_lines("policy.precision", "fp32", CPU, config) == []
    (line,) = precision_lines("policy.precision", "bf16", CPU, config)
    assert "no bf16 units: a product takes 45 times as long as in fp32; use auto" in line
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    assert precision_lines("policy.precision", "bf16", CPU, config) == []
    with pytest.raises(UserError, match="fp16 overflows in t5"):
        resolve_precision("fp16", CPU, ARCHITECTURES["t5"])


def test_the_slowdown_is_measured() -> None:
    assert 0 < precision.slowdown("bf16", CPU) < 1000
    assert machine_device().type in ("cpu", "cuda", "mps", "xpu")


@pytest.mark.parametrize("launcher", ["fp16", "bf16"])
def test_the_launcher_does_not_overrule_the_configuration(
    launcher: str, in_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    untrained = json.dumps(["You are a stupid idiot.", "Thank you, that was kind of you."])  # as two steps leave it
    options = small("quickstart", tmp_path, "--reward.model", "null", "--reward.train.polarity_pair", untrained)
    cli.launch(CHAIN, "", [*options, "--policy.precision", "fp32"])
    folder = tmp_path / "quickstart"
    for stage in ("sft", "reward", "ppo"):
        assert json.loads((folder / stage / "stage.json").read_text())["inputs"]["precision"] == "fp32", stage
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    assert results["provenance"]["machine"].endswith(", cpu, fp32")


def half_precision_trainer(folder: Path, autocast: torch.dtype | None = torch.float16) -> PPOTrainer:
    """Return a trainer of GPT-2 whose products are in half precision."""
    parts = tiny.policy("gpt2", lora=True)
    policy = Policy(parts.model, tiny.tokenizer("gpt2"), autocast=autocast)
    return make_trainer(folder, policy=policy, steps=4, checkpoint_every=1, validation=4, schedule="constant")


def test_the_loss_is_scaled_until_gradients_fit_and_unscaled_before_they_are_clipped(tmp_path: Path) -> None:
    rollout = half_precision_trainer(tmp_path / "rollout", None).rollout(make_rows("gpt2", 16))
    norms = {}
    for name, autocast in (("fp32", None), ("fp16", torch.float16)):
        run = half_precision_trainer(tmp_path / name, autocast)
        if name == "fp16":
            run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 256.0})
        norms[name] = run.update(rollout)["grad_norm"]
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.02)


def test_a_scale_that_is_too_high_skips_steps_and_falls(tmp_path: Path) -> None:
    run = half_precision_trainer(tmp_path)
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 2.0**40})
    before = digest(p for p in run.unwrapped.parameters() if p.requires_grad)
    _, metrics = step(run)
    assert metrics["skipped_steps"] == metrics["optimizer_steps"] == 4
    assert metrics["loss_scale"] == run.state.loss_scale["scale"] == 2.0**36
    assert run.state.nonfinite_updates == 0, "it is still looking for its scale"
    assert digest(p for p in run.unwrapped.parameters() if p.requires_grad) == before
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 0.25})
    for parameter in run.policy_parameters:
        parameter.register_hook(lambda gradient: gradient * torch.inf)
    step(run)
    assert run.state.nonfinite_updates == 1, "no scale helps"


def test_a_resumed_run_goes_on_with_its_scale(tmp_path: Path) -> None:
    half_precision_trainer(tmp_path / "whole").train()
    run = half_precision_trainer(tmp_path / "parts")
    run.config.steps = 2
    run.train()
    assert run.state.loss_scale
    half_precision_trainer(tmp_path / "parts").train()
    whole, parts = (lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert all(line["loss_scale"] for line in parts[1:])
    assert parts == whole


def test_another_precision_is_said_at_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = half_precision_trainer(tmp_path)
    run.config.steps = 1
    run.train()
    run = half_precision_trainer(tmp_path, autocast=None)
    run.train()
    assert "goes on in fp32 what was begun in fp16" in capsys.readouterr().out
    assert (run.state.precision, run.state.loss_scale) == ("fp32", {})
