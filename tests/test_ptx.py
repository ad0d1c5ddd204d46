"""Texts that the policy goes on to predict while it is aligned (PPO-ptx)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

TEXTS = [("ab", "cde"), ("a", "f"), ("abcd", "the sea"), ("x", "zz"), ("hello", " there")]


def text_rows(architecture: str) -> list[dict[str, Any]]:
    """Return texts of different lengths, each ending in an EOS."""
    tokenizer = tiny.tokenizer(architecture)
    ends = [] if architecture == "t5" else [tokenizer.eos_token_id]  # T5's tokenizer adds it
    return [
        {"prompt_ids": tokenizer(before).input_ids, "response_ids": tokenizer(after).input_ids + ends}
        for before, after in TEXTS
    ]


def naive_loss(policy: Policy, architecture: str) -> torch.Tensor:
    """Return the mean negative log-likelihood of all tokens but the EOS, one unpadded row at a time."""
    nats = []
    for row in text_rows(architecture):
        prompt, response = torch.tensor(row["prompt_ids"]), torch.tensor(row["response_ids"])
        if architecture == "gpt2":
            logits = policy.model(torch.cat((prompt, response))[None]).logits[0, len(prompt) - 1 : -1]
        else:
            logits = policy.model(input_ids=prompt[None], labels=response[None]).logits[0]
        nats.append(-logits.log_softmax(-1)[torch.arange(len(response)), response][:-1])
    return torch.cat(nats).mean()


@both
@either
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_its_gradient_is_that_of_all_tokens_together(architecture: str, lora: bool, rows: int) -> None:
    policy, accelerator = tiny.policy(architecture, lora=lora), Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with policy.variant("policy"):
        loss = naive_loss(policy, architecture)
        weights = {name: p for name, p in policy.named_parameters() if p.requires_grad and "value" not in name}
        expected = torch.autograd.grad(loss * 0.7, list(weights.values()))
    measured = add_text_gradients(policy, accelerator, scaler, text_rows(architecture), 0.7, rows)
    assert float(measured) == pytest.approx(float(loss.detach()), rel=1e-5)
    for (name, weight), gradient in zip(weights.items(), expected, strict=True):
        assert weight.grad is not None, name
        assert torch.allclose(weight.grad, gradient, atol=1e-6), name


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
