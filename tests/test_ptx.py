"""Texts that the policy goes on to predict while it is aligned (PPO-ptx)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import tiny
import torch
from accelerate import Accelerator
from small_runs import small
from trainers import both, either, lines, make_trainer, trained_weights

from recipes import ppo
from workbench.models.policy import Policy
from workbench.ppo.pretraining_texts import add_text_gradients
from workbench.run import cli

Target = Literal["text", "reference"]
TEXTS = [("ab", "cde"), ("a", "f"), ("abcd", "the sea"), ("x", "zz"), ("hello", " there")]


def text_rows(architecture: str) -> list[dict[str, Any]]:
    """Return texts of different lengths, each ending in an EOS."""
    tokenizer = tiny.tokenizer(architecture)
    ends = [] if architecture == "t5" else [tokenizer.eos_token_id]  # T5's tokenizer adds it
    return [
        {"prompt_ids": tokenizer(before).input_ids, "response_ids": tokenizer(after).input_ids + ends}
        for before, after in TEXTS
    ]


def naive_logprobs(model: Any, architecture: str) -> torch.Tensor:
    """Return the log-probabilities of all tokens but the EOS, one unpadded row at a time."""
    logprobs = []
    for row in text_rows(architecture):
        prompt, response = torch.tensor(row["prompt_ids"]), torch.tensor(row["response_ids"])
        if architecture == "gpt2":
            logits = model(torch.cat((prompt, response))[None]).logits[0, len(prompt) - 1 : -1]
        else:
            logits = model(input_ids=prompt[None], labels=response[None]).logits[0]
        logprobs.append(logits.log_softmax(-1)[torch.arange(len(response)), response][:-1])
    return torch.cat(logprobs)


def naive_loss(policy: Policy, architecture: str, target: Target) -> torch.Tensor:
    """Return the mean over all tokens of their negative log-likelihood, or of half the squared log ratio."""
    with torch.no_grad(), policy.variant("reference") as model:
        reference = naive_logprobs(model, architecture)
    with policy.variant("policy") as model:
        logprobs = naive_logprobs(model, architecture)
    return (-logprobs if target == "text" else (logprobs - reference) ** 2 / 2).mean()


def move(policy: Policy) -> None:
    """Change the weights that are trained, so that the policy is not the reference."""
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight += torch.randn_like(weight) * 0.05


@both
@either
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("target", ["text", "reference"])
def test_its_gradient_is_that_of_all_tokens_together(architecture: str, lora: bool, rows: int, target: Target) -> None:
    policy, accelerator = tiny.policy(architecture, lora=lora), Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    torch.manual_seed(0)
    move(policy)
    loss = naive_loss(policy, architecture, target)
    weights = {name: p for name, p in policy.named_parameters() if p.requires_grad and "value" not in name}
    expected = torch.autograd.grad(loss * 0.7, list(weights.values()))
    measured = add_text_gradients(policy, accelerator, scaler, text_rows(architecture), target, 0.7, rows)
    assert float(measured) == pytest.approx(float(loss.detach()), rel=1e-5)
    for (name, weight), gradient in zip(weights.items(), expected, strict=True):
        assert weight.grad is not None, name
        assert torch.allclose(weight.grad, gradient, atol=1e-6), name


@both
@either
def test_the_reference_as_target_leaves_a_policy_that_is_it_alone(architecture: str, lora: bool) -> None:
    policy, scaler = tiny.policy(architecture, lora=lora), torch.amp.GradScaler("cpu", enabled=False)
    rows = text_rows(architecture)
    loss = add_text_gradients(policy, Accelerator(cpu=True), scaler, rows, "reference", 1.0, len(rows))
    assert float(loss) < 1e-10
    gradients = [weight.grad for weight in policy.parameters() if weight.grad is not None]
    assert gradients
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-5


@both
def test_the_reference_as_target_keeps_an_aligned_policy_near_it(architecture: str, tmp_path: Path) -> None:
    rows = text_rows(architecture)
    options: dict[str, Any] = {"validation": 4, "texts": rows, "steps": 6, "checkpoint_every": 6}
    make_trainer(tmp_path / "without", architecture, **options).train()
    anchor: dict[str, Any] = {"ptx_texts": rows, "ptx_coef": 5.0, "ptx_target": "reference"}
    make_trainer(tmp_path / "with", architecture, **anchor, **options).train()

    def change(name: str) -> float:
        last = lines(tmp_path / name / "metrics.jsonl")[-1]
        return abs(float(last["validation/text_nll"] - last["validation/text_nll_reference"]))

    assert change("with") < change("without") / 2


@both
def test_an_aligned_policy_still_predicts_them(architecture: str, tmp_path: Path) -> None:
    rows = text_rows(architecture)
    options: dict[str, Any] = {"validation": 4, "texts": rows, "steps": 6, "checkpoint_every": 6}
    make_trainer(tmp_path / "without", architecture, **options).train()
    make_trainer(tmp_path / "with", architecture, ptx_texts=rows, ptx_coef=2.0, **options).train()
    without, with_texts = lines(tmp_path / "without" / "metrics.jsonl"), lines(tmp_path / "with" / "metrics.jsonl")
    assert without[0] == with_texts[0]
    assert without[1]["objective/score_mean"] == with_texts[1]["objective/score_mean"], "the first rollout is the same"
    assert with_texts[-1]["validation/text_nll"] < with_texts[0]["validation/text_nll"]
    assert with_texts[-1]["validation/text_nll"] < without[-1]["validation/text_nll"]
    assert with_texts[-1]["ptx/loss"] < with_texts[1]["ptx/loss"]
    assert "ptx/loss" not in without[-1]


def test_a_stopped_run_resumes_with_the_same_texts(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", ptx_texts=text_rows("gpt2"))
    whole.train()
    first = make_trainer(tmp_path / "stopped", ptx_texts=text_rows("gpt2"), steps=4)
    for _ in range(2):
        first.update(first.rollout(first.batch(first.state.step)))
    first.save_checkpoint()
    resumed = make_trainer(tmp_path / "stopped", ptx_texts=text_rows("gpt2"))
    resumed.train()
    assert trained_weights(resumed.unwrapped) == trained_weights(whole.unwrapped)


def test_the_plan_reads_them(tmp_path: Path, in_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = small("quickstart", tmp_path)
    cli.launch([ppo.STAGE], "", [*options, "--sft", "null", "--ppo.ptx_data", "{path: toy:sentences}", "--dry_run"])
    assert "ppo.ptx_data: toy:sentences [train]: " in capsys.readouterr().out
