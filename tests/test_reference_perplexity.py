"""The references' perplexity is the base's own loss on them, and a collapsed policy lies outside of its limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from typed_results import make_difference, make_results, make_set

from workbench.config.schema import PolicyConfig
from workbench.config.sources import PromptSet
from workbench.data.context import Context
from workbench.data.prompts import encode_responses, load_prompts
from workbench.evaluation.generation import (
    ComparedModel,
    Sampling,
    perplexity,
    reference_perplexity,
    sample_completions,
)
from workbench.evaluation.guards import check_guards
from workbench.evaluation.results import PERPLEXITY, Guard, Metric
from workbench.models.loading import load_model, load_policy_tokenizer
from workbench.models.policy import Policy
from workbench.models.positions import model_context

SOURCE = PromptSet(
    "toy:summaries",
    split="validation",
    template="Summarize the dialogue.\n\n{dialogue}\n\nSummary:\n",
    columns={"reference": "summary"},
    limit=40,
)


@dataclass(frozen=True)
class Base:
    """A toy base with 40 prompts and their references."""

    policy: Policy
    tokenizer: object
    rows: list[dict]
    references: list[str]

    def perplexity(self, texts: list[str], batch_size: int = 16) -> float:
        """Return the perplexity of one text per prompt, as that of references is measured."""
        context = model_context(self.policy.base.config, self.tokenizer)
        ids = encode_responses(self.rows[: len(texts)], texts, SOURCE, self.tokenizer, context)
        pairs = [(row["prompt_ids"], text) for row, text in zip(self.rows, ids, strict=False)]
        value = reference_perplexity(self.policy, pairs, batch_size, accelerator=Accelerator(cpu=True))
        assert value is not None
        return value


@pytest.fixture(scope="module", params=["toy:t5", "toy:gpt2"])
def base(request: pytest.FixtureRequest) -> Base:
    tokenizer = load_policy_tokenizer(request.param)
    context = Context(is_decoder_only=request.param == "toy:gpt2")
    rows, _ = load_prompts(SOURCE, tokenizer, max_new_tokens=40, context=context)
    policy = Policy(load_model(PolicyConfig(request.param), device=torch.device("cpu")), tokenizer)
    return Base(policy, tokenizer, rows, [row["summary"] for row in rows])


def guard(before: float, after: float, references: float) -> Guard:
    """Return the perplexity guard of a significant change."""
    interval = (after - before - 1e-9, after - before + 1e-9)
    changed = make_difference(Metric(PERPLEXITY, pooled=True), before, after, interval=interval)
    guards = check_guards(make_results([make_set("s", [changed], reference_perplexity=references)], judges=[]))
    (only,) = [made for made in guards if made.name == "perplexity"]
    return only


def test_it_is_the_models_own_loss_with_the_closing_eos(base: Base) -> None:
    nats, tokens = 0.0, 0
    for row, reference in zip(base.rows[:5], base.references, strict=False):
        prompt, ids = row["prompt_ids"], base.tokenizer(reference, add_special_tokens=False)["input_ids"]
        ids = [*ids, base.tokenizer.eos_token_id]
        model = base.policy.base
        if base.policy.is_encoder_decoder:
            loss = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([ids])).loss
        else:
            labels = torch.tensor([[-100] * len(prompt) + ids])
            loss = model(input_ids=torch.tensor([prompt + ids]), labels=labels).loss
        nats, tokens = nats + float(loss) * len(ids), tokens + len(ids)
    few = Base(base.policy, base.tokenizer, base.rows[:5], base.references[:5])
    for batch_size in (1, 3, 16):
        assert few.perplexity(few.references, batch_size) == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_without_references_there_is_none(base: Base) -> None:
    assert reference_perplexity(base.policy, [], 8, accelerator=Accelerator(cpu=True)) is None


@pytest.mark.parametrize("factor", [1.0, 2.4])  # an SFT policy as good as the references, and one of few steps
def test_a_sound_policy_passes_and_a_collapsed_one_does_not(base: Base, factor: float) -> None:
    references = base.perplexity(base.references)
    before = factor * references
    assert guard(before, 1.1 * references, references).passed, "it comes down to the references"
    one_sentence = base.perplexity(base.references[:1] * len(base.rows))
    repeated_word = base.perplexity(["the " * 20] * len(base.rows))
    for collapsed in (one_sentence, repeated_word):
        assert not guard(before, collapsed, references).passed, collapsed / references


def test_text_that_the_base_expects_is_too_flat(base: Base) -> None:
    references = base.perplexity(base.references)
    model = ComparedModel("base", base.policy, "base", base.tokenizer, base.policy, with_token_log_ratios=False)
    greedy = Sampling(batch_size=20, max_new_tokens=40, temperature=0.0, seeds=(0,))
    rows = sample_completions(model, base.rows, greedy, accelerator=Accelerator(cpu=True), label="test")
    flat = perplexity(sum(c.base_nll or 0.0 for (c,) in rows), sum(c.tokens for (c,) in rows))
    failed = guard(2.4 * references, flat, references)
    assert not failed.passed
    assert f"at least 0.6 times the references' own perplexity, {references:.3g}" in failed.text
