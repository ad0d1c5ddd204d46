"""The likelihood of fixed texts under the policy and its reference, along training."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from plain_references import plain_logprobs
from small_runs import small
from trainers import both, e_rate, lines, make_rows, make_trainer

from recipes import ppo
from workbench.errors import RewardError, UserError
from workbench.run import cli


def texts(architecture: str) -> list[dict[str, Any]]:
    """Return prompts with responses of different lengths, each ending in an EOS."""
    tokenizer = tiny.tokenizer(architecture)
    responses = [tokenizer("ab" * length).input_ids for length in (1, 4, 2, 3, 1)]
    ends = [] if architecture == "t5" else [tokenizer.eos_token_id]  # T5's tokenizer adds it
    rows = make_rows(architecture, 5)
    return [row | {"response_ids": response + ends} for row, response in zip(rows, responses, strict=True)]


@both
def test_they_are_all_tokens_but_the_eos_together(architecture: str, tmp_path: Path) -> None:
    rows = texts(architecture)
    run = make_trainer(tmp_path, architecture, validation=4, texts=rows, steps=2, checkpoint_every=2)
    run.train()
    policy = run.unwrapped
    batch = policy.make_batch([row["prompt_ids"] for row in rows], [row["response_ids"] for row in rows])
    with policy.variant("policy") as model:
        logprobs = torch.cat([plain_logprobs(model, architecture, batch, row)[:-1] for row in range(5)])
    logged = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in logged] == [0, 1, 2]
    assert "validation/text_nll" not in logged[1]
    reference = logged[0]["validation/text_nll"]
    assert logged[0]["validation/text_nll_reference"] == pytest.approx(reference, abs=1e-6)
    assert logged[0]["validation/kl"] == pytest.approx(0, abs=1e-5), "at step 0 the policy is its reference"
    assert logged[2]["validation/text_nll"] == pytest.approx(-float(logprobs.mean()), rel=1e-4)
    assert logged[2]["validation/text_nll_reference"] == pytest.approx(reference, abs=1e-6)
    assert logged[2]["validation/text_nll"] != pytest.approx(reference, abs=1e-4)


def test_step_0_is_validated_once_also_where_the_first_rollout_failed(tmp_path: Path) -> None:
    calls = itertools.count(1)

    def failing(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        if next(calls) == 2:  # the first call is of the validation
            raise TimeoutError("the scorer did not answer")
        return e_rate(prompts, completions)

    with pytest.raises(RewardError, match="the scorer did not answer"):
        make_trainer(tmp_path / "stopped", validation=4, reward=failing).train()
    make_trainer(tmp_path / "stopped", validation=4).train()
    make_trainer(tmp_path / "whole", validation=4).train()
    assert lines(tmp_path / "stopped" / "metrics.jsonl") == lines(tmp_path / "whole" / "metrics.jsonl")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "toy:sentences", "split": "validation", "limit": 5}, "5 texts"),
        (
            {
                "path": "toy:summaries",
                "split": "validation",
                "columns": {"response": "summary"},
                "template": "{dialogue}",
                "limit": 5,
            },
            "5 texts",
        ),
    ],
)
def test_a_row_is_a_text_or_a_prompt_with_a_response(
    source: dict[str, Any], message: str, in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validation: dict[str, Any] = {"path": "toy:summaries", "split": "validation", "template": "{dialogue}", "limit": 4}
    validation["columns"] = {"reference": "summary"}
    options = small("quickstart", tmp_path, "--reward.model", "length")
    options += ["--ppo.validation", json.dumps(validation), "--ppo.validation_texts", json.dumps(source), "--dry_run"]
    cli.launch([ppo.STAGE], "", options)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("ppo.validation_texts"))
    assert message in line


def test_they_need_validation_prompts(in_project: Path, tmp_path: Path) -> None:
    options = small("quickstart", tmp_path, "--reward.model", "length")
    with pytest.raises(
        UserError, match=r"^ppo\.validation_texts: measured along with ppo\.validation, which is missing"
    ):
        cli.launch([ppo.STAGE], "", [*options, "--ppo.validation_texts", json.dumps({"path": "toy:sentences"})])
