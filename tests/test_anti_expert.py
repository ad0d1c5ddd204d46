"""A model steered away from an anti-expert: caches and parts against whole sequences, read anew for every token."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator
from torch import Tensor
from trainers import both, make_rows

from workbench.evaluation.generation import ComparedModel, Completion, Sampling, sample_completions
from workbench.models.anti_expert import AntiExpert, CachedLogits, steered_logprobs
from workbench.models.decoding import Decoding
from workbench.models.noise import make_streams, sample_softmax
from workbench.models.policy import Policy
from workbench.ppo.sampler import derive_seed

ALPHA = 1.5
SAMPLING = Sampling(batch_size=4, max_new_tokens=7, temperature=0.8, seeds=(3,))


@pytest.fixture(params=[True, False], ids=["plain head", "other head"])
def has_plain_head(request: pytest.FixtureRequest) -> bool:
    return request.param


def toxic_policy(architecture: str) -> Policy:
    """Return a policy with an adapter called toxic that is neither the base nor the SFT adapter."""
    policy = tiny.policy(architecture, lora=True)
    policy.model.add_adapter("toxic", policy.model.peft_config["sft"])
    torch.manual_seed(5)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if ".toxic." in name:
                weight.copy_(torch.randn_like(weight) * 0.2)
    return policy


def sampled(policy: Policy, variant: str, sampling: Sampling, alpha: float | None, rows: int = 6) -> list[Completion]:
    """Return a completion of each row of this architecture by the variant, steered unless alpha is None."""
    architecture = "t5" if policy.is_encoder_decoder else "gpt2"
    steering = None if alpha is None else AntiExpert("toxic", alpha)
    model = ComparedModel("x", policy, variant, tiny.tokenizer(architecture), policy, True, anti_expert=steering)
    by_row = sample_completions(
        model, make_rows(architecture, rows), sampling, accelerator=Accelerator(cpu=True), label="test"
    )
    return [completion for (completion,) in by_row]


@torch.no_grad()
def naive_logits(policy: Policy, variant: str, prompt: list[int], response: list[int]) -> Tensor:
    """Return the logits (V,) after one unpadded sequence, read as a whole by transformers alone."""
    with policy.variant(variant) as model:
        if policy.is_encoder_decoder:
            ids = torch.tensor([[policy.start_id, *response]])
            return model(input_ids=torch.tensor([prompt]), decoder_input_ids=ids, use_cache=False).logits[0, -1]
        return model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, -1]


def naive_steered(policy: Policy, variant: str, prompt: list[int], response: list[int]) -> Tensor:
    """Return equation 1 of DExperts with the base as expert."""
    model, base, toxic = (naive_logits(policy, name, prompt, response) for name in (variant, "base", "toxic"))
    return model + ALPHA * (base - toxic)


def naive_completion(policy: Policy, variant: str, index: int, prompt: list[int]) -> tuple[list[int], float]:
    """Return the sampled tokens of one row, and the log-ratio of all of them to the reference."""
    streams = make_streams([derive_seed(SAMPLING.seeds[0], index)], torch.device("cpu"))
    response: list[int] = []
    kl = 0.0
    for step in range(SAMPLING.max_new_tokens):
        scores = naive_steered(policy, variant, prompt, response) / SAMPLING.temperature
        token = int(sample_softmax(scores.unsqueeze(0), streams.at(step), prune=True))
        reference = naive_logits(policy, "sft", prompt, response) / SAMPLING.temperature
        kl += float(scores.log_softmax(dim=0)[token] - reference.log_softmax(dim=0)[token])
        response.append(token)
        if token in policy.stop_ids.tolist():
            break
    return response, kl


@both
@pytest.mark.parametrize("variant", ["base", "sft"])
def test_it_samples_and_scores_what_equation_1_says(architecture: str, variant: str, has_plain_head: bool) -> None:
    policy = toxic_policy(architecture)
    assert policy.has_plain_head
    policy.has_plain_head = has_plain_head
    completions = sampled(policy, variant, SAMPLING, ALPHA)
    assert completions != sampled(policy, variant, SAMPLING, None)
    for index, (row, completion) in enumerate(zip(make_rows(architecture, 6), completions, strict=True)):
        tokens, kl = naive_completion(policy, variant, index, row["prompt_ids"])
        assert completion.ids == tokens
        assert completion.kl == pytest.approx(kl, abs=1e-4)
        ratios = [value for _, value in completion.token_log_ratios]
        assert sum(ratios) == pytest.approx(kl, abs=1e-3 * len(tokens))


@both
@pytest.mark.parametrize("variant", ["base", "sft"])
@pytest.mark.parametrize("decoding", [Decoding(), Decoding(top_k=9, top_p=0.8, min_new_tokens=4)])
def test_alpha_0_is_the_model_itself(architecture: str, variant: str, decoding: Decoding) -> None:
    sampling = Sampling(4, 7, 0.8, (3,), decoding)
    policy = toxic_policy(architecture)
    assert sampled(policy, variant, sampling, 0.0) == sampled(policy, variant, sampling, None)


@both
def test_a_row_depends_on_its_seed_alone(architecture: str) -> None:
    policy = toxic_policy(architecture)
    decoding = Decoding(top_p=0.9, repetition_penalty=1.2, min_new_tokens=2)
    results: list[list[Completion]] = [
        sampled(policy, "sft", Sampling(size, 7, 0.8, (3,), decoding), ALPHA) for size in (1, 3, 6)
    ]
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one.ids == two.ids
            assert one.kl == pytest.approx(two.kl, abs=1e-4)


@both
def test_tokens_come_from_the_nucleus_of_the_model_before_it_is_steered(architecture: str) -> None:
    """Steered as hard as here, most tokens would come from elsewhere."""
    policy = toxic_policy(architecture)
    outside = {}
    for decoding in (Decoding(top_k=3), Decoding()):
        completions = sampled(policy, "sft", Sampling(4, 7, 0.8, (3,), decoding), 5.0)
        outside[decoding] = 0
        for row, completion in zip(make_rows(architecture, 6), completions, strict=True):
            for step, token in enumerate(completion.ids):
                logits = naive_logits(policy, "sft", row["prompt_ids"], completion.ids[:step])
                outside[decoding] += token not in logits.topk(3).indices.tolist()
    assert outside[Decoding(top_k=3)] == 0
    assert outside[Decoding()] > 5


@both
def test_greedy_decoding_takes_the_most_likely_token_of_both(architecture: str) -> None:
    policy = toxic_policy(architecture)
    completions = sampled(policy, "base", Sampling(4, 5, 0.0, (3,)), ALPHA)
    for row, completion in zip(make_rows(architecture, 6), completions, strict=True):
        for step, token in enumerate(completion.ids):
            assert token == int(naive_steered(policy, "base", row["prompt_ids"], completion.ids[:step]).argmax())


@both
def test_every_variant_reads_each_token_once(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, read = toxic_policy(architecture), []
    forward = type(policy.base).forward

    def counting(self: Any, *arguments: Any, **inputs: Any) -> Any:
        ids = inputs["decoder_input_ids"] if policy.is_encoder_decoder else inputs["input_ids"]
        read.append((ids.shape[1], inputs["input_ids"] is not None))
        return forward(self, *arguments, **inputs)

    prompt_ids, mask = policy.pad_prompts([row["prompt_ids"] for row in make_rows(architecture, 3)])
    monkeypatch.setattr(type(policy.base), "forward", counting)
    logits = CachedLogits(policy, "toxic", prompt_ids, mask)
    ids = torch.full_like(prompt_ids[:, :1], policy.start_id) if policy.is_encoder_decoder else prompt_ids
    for token in (7, 8, 9):
        logits.next(ids)
        ids = torch.cat((ids, torch.full_like(ids[:, :1], token)), dim=1)
    first = 1 if policy.is_encoder_decoder else prompt_ids.shape[1]
    assert [length for length, _ in read] == [first, 1, 1]
    if policy.is_encoder_decoder:
        assert [has_prompt for _, has_prompt in read] == [True, False, False], "the encoder reads a prompt once"


@both
@pytest.mark.parametrize("name", ["toxic", "sft", "base"])
def test_variants_may_stand_within_each_other(architecture: str, name: str) -> None:
    policy = toxic_policy(architecture)
    batch = policy.make_batch([[4, 5, 6]], [[7, 8]])
    alone = policy.logprobs(name, batch, 1.0)
    for outer in ("base", "sft", "policy"):
        before = policy.logprobs(outer, batch, 1.0)
        with policy.variant(outer):
            assert torch.equal(policy.logprobs(name, batch, 1.0), alone)
            assert torch.equal(policy.logprobs(outer, batch, 1.0), before)
        assert torch.equal(policy.logprobs("policy", batch, 1.0), policy.logprobs("sft", batch, 1.0))


def test_a_plain_head_gives_the_log_probabilities_of_the_logits() -> None:
    policy = toxic_policy("gpt2")
    batch = policy.make_batch([[4, 5, 6], [9]], [[7, 8], [3, 4, 5]])
    anti_expert = AntiExpert("toxic", ALPHA)
    fast = steered_logprobs(policy, "sft", anti_expert, batch, 0.7)
    policy.has_plain_head = False
    assert torch.allclose(fast, steered_logprobs(policy, "sft", anti_expert, batch, 0.7), atol=1e-5)
