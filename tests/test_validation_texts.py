"""The likelihood of fixed texts under the policy and its reference, along training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from plain_references import plain_logprobs
from small_runs import small
from trainers import both, lines, make_rows, make_trainer

from recipes import ppo
from workbench.errors import UserError
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
    assert "validation/text_nll" not in logged[0]
    assert logged[1]["validation/text_nll"] == pytest.approx(-float(logprobs.mean()), rel=1e-4)
    assert logged[1]["validation/text_nll_reference"] != pytest.approx(logged[1]["validation/text_nll"], abs=1e-4)


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
