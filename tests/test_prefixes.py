"""Prompts with a text in front: what the model reads, and whose KL is measured."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator
from trainers import both, either, make_rows

from workbench.config.schema import PolicyConfig
from workbench.config.sources import DataSource
from workbench.data.context import Context
from workbench.data.prefixes import check_prefixed_lengths, prefix_warnings, prefixed_rows
from workbench.data.templates import PROMPT_MESSAGES
from workbench.errors import UserError
from workbench.evaluation.cache import completions_key
from workbench.evaluation.generation import ComparedModel, Sampling, sample_completions
from workbench.evaluation.models import ModelSpec

DECODER = Context(is_decoder_only=True, length=40)
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
SOURCE = DataSource("rows.jsonl")


def ids_of(architecture: str, texts: list[str]) -> list[dict[str, Any]]:
    """Return rows as they are loaded."""
    tokenizer = tiny.tokenizer(architecture)
    return [{"prompt": text, "prompt_ids": tokenizer(text).input_ids} for text in texts]


@both
def test_the_prefix_and_the_prompt_are_one_text(architecture: str) -> None:
    tokenizer = tiny.tokenizer(architecture)
    rows = ids_of(architecture, ["ab", "c d"])
    context = Context(is_decoder_only=architecture == "gpt2")
    prefixed = prefixed_rows(rows, "{x} be kind: ", SOURCE, tokenizer, context)
    texts = ["{x} be kind: ab", "{x} be kind: c d"]
    assert [row["prompt"] for row in prefixed] == texts, "no column is filled into a prefix"
    assert [row["prompt_ids"] for row in prefixed] == tokenizer(texts).input_ids
    assert rows == ids_of(architecture, ["ab", "c d"]), "the rows of the other models are as they were"


def test_in_a_chat_it_begins_the_first_turn_of_the_user() -> None:
    tokenizer = tiny.tokenizer("gpt2")
    tokenizer.chat_template = CHAT
    talk = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
    ]
    rows = [{"prompt": "", "prompt_ids": [], PROMPT_MESSAGES: messages} for messages in (talk, talk[3:])]
    before = copy.deepcopy(rows)
    prefixed = prefixed_rows(rows, "be kind. ", DataSource("rows.jsonl", chat=True), tokenizer, DECODER)
    assert prefixed[0]["prompt"] == "<system>s<user>be kind. u<assistant>a<user>v<assistant>"
    assert prefixed[1]["prompt"] == "<user>be kind. v<assistant>"
    for row in prefixed:
        assert row["prompt_ids"] == tokenizer(row["prompt"], add_special_tokens=False).input_ids
    assert rows == before
    rows = [{"prompt": "", "prompt_ids": [], PROMPT_MESSAGES: talk[:1]}]
    with pytest.raises(UserError, match=r"rows.jsonl: a row of messages has no turn of the user"):
        prefixed_rows(rows, "be kind. ", DataSource("rows.jsonl", chat=True), tokenizer, DECODER)


def test_a_prompt_that_no_longer_fits_is_refused_with_the_limit_that_helps() -> None:
    rows = ids_of("gpt2", ["a" * 10, "a" * 25, "a" * 30])
    prefixed = prefixed_rows(rows, "be kind: ", SOURCE, tiny.tokenizer("gpt2"), DECODER)
    check_prefixed_lengths(rows, prefixed, "test", 1, DECODER)  # 30 + 9 + 1 tokens are exactly what fits
    with pytest.raises(UserError) as error:
        check_prefixed_lengths(rows, prefixed, "test", 10, DECODER)
    assert str(error.value) == (
        "with it, 2 of 3 prompts of test are longer than the 30 tokens that fit (up to 39); shorten it, or set "
        "evaluation.data.test.max_prompt_tokens to 21"
    )
    check_prefixed_lengths(rows, prefixed, "test", 10, Context(is_decoder_only=False, length=39))
    check_prefixed_lengths(rows, prefixed, "test", 10, Context(is_decoder_only=True))
    with pytest.raises(UserError, match=r"\(up to 39\); shorten it$"):
        check_prefixed_lengths(rows, prefixed, "test", 32, DECODER)


def test_what_the_model_will_not_read_as_it_is_written_is_said() -> None:
    tokenizer = tiny.tokenizer("t5")
    context = Context(is_decoder_only=False)
    assert prefix_warnings("be kind: ", tokenizer, context) == []
    (warning,) = prefix_warnings("be kind:", tokenizer, context)
    assert "runs into the prompt" in warning


@both
@either
def test_the_kl_is_that_of_the_prompted_policy_to_the_reference_without_the_prefix(
    architecture: str, lora: bool
) -> None:
    policy, tokenizer = tiny.policy(architecture, lora=lora), tiny.tokenizer(architecture)
    rows = make_rows(architecture, 6)
    prefixed = prefixed_rows(rows, "be kind: ", SOURCE, tokenizer, Context(is_decoder_only=architecture == "gpt2"))
    model = ComparedModel("x", policy, "policy", tokenizer, policy, with_token_log_ratios=True)
    sampling = Sampling(batch_size=4, max_new_tokens=7, temperature=0.8, seeds=(3,))
    runs = [
        sample_completions(model, read, sampling, accelerator=Accelerator(cpu=True), label="test", plain_rows=plain)
        for read, plain in ((prefixed, rows), (prefixed, None))
    ]
    for row, longer, (completion,), (unmeasured,) in zip(rows, prefixed, *runs, strict=True):
        assert completion.ids == unmeasured.ids, "what is sampled is up to the prefixed prompt alone"
        with torch.no_grad():
            asked, plain = (policy.make_batch([each["prompt_ids"]], [completion.ids]) for each in (longer, row))
            kl = float((policy.logprobs("policy", asked, 0.8) - policy.logprobs("reference", plain, 0.8)).sum())
            base_nll = -float(policy.logprobs("base", plain, 1.0).sum())
        assert completion.kl == pytest.approx(kl, abs=1e-4)
        assert completion.base_nll == pytest.approx(base_nll, abs=1e-4)
        assert abs(kl) > 1e-3
        ratios = sum(nats for _, nats in completion.token_log_ratios)
        assert ratios == pytest.approx(kl, abs=1e-3 * completion.tokens)


def test_completions_are_cached_for_what_the_reference_reads_too() -> None:
    """The same text may be a longer prefix of a shorter prompt."""
    spec, sampling = ModelSpec("sft", "toy:t5", [], False), Sampling(4, 7, 0.8, (3,))
    keys = {
        completions_key(spec, [], prompt_ids, sampling, PolicyConfig("toy:t5"), Accelerator(cpu=True))
        for prompt_ids in ([[[1, 2, 3]], [[2, 3]]], [[[1, 2, 3]], [[3]]], [[[1, 2, 3]], [[2, 3]]])
    }
    assert len(keys) == 2
