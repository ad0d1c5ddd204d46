"""The policy: alignment of log-probabilities with tokens, padding, references, sampling."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, OPTConfig, OPTForCausalLM

from workbench.config.tuning import LoraSettings
from workbench.models.adapters import adapter_name, add_lora
from workbench.models.policy import Batch, Policy
from workbench.models.sampling import is_truncated, mask_after_stop

PROMPTS = ["hello there", "a", "what is it:", "tell me more about the sea."]
both = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
either = pytest.mark.parametrize("lora", [True, False])


def sampled(policy: Policy, architecture: str, prompts: list[str] = PROMPTS) -> Batch:
    """Seeded responses to the prompts."""
    tokenizer = tiny.tokenizer(architecture)
    ids, mask = policy.pad_prompts([tokenizer(prompt).input_ids for prompt in prompts])
    seeds = list(range(len(prompts)))
    return policy.generate(ids, mask, max_new_tokens=12, temperature=1.0, seeds=seeds)


@both
def test_a_batch_of_lists_is_the_batch_that_was_sampled(architecture: str) -> None:
    policy = tiny.policy(architecture, lora=True)
    batch = sampled(policy, architecture)
    lists = [
        [row[row_mask].tolist() for row, row_mask in zip(ids, mask, strict=True)]
        for ids, mask in ((batch.prompt_ids, batch.prompt_mask), (batch.response_ids, batch.response_mask))
    ]
    made = policy.make_batch(*lists)
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(made, batch, strict=True))


@both
@either
def test_logprobs_are_those_of_a_plain_forward_pass_on_one_unpadded_row(architecture: str, lora: bool) -> None:
    policy = tiny.policy(architecture, lora=lora).eval()
    batch = sampled(policy, architecture)
    ids, mask, response, response_mask = batch
    logprobs = policy(batch, 0.7).logprobs
    for row in range(len(PROMPTS)):
        prompt, sample = ids[row][mask[row]], response[row][response_mask[row]]
        with torch.no_grad():
            if architecture == "gpt2":
                logits = policy.model(torch.cat((prompt, sample))[None]).logits[0, len(prompt) - 1 : -1]
            else:
                logits = policy.model(input_ids=prompt[None], labels=sample[None]).logits[0]
        expected = torch.log_softmax(logits / 0.7, -1)[torch.arange(len(sample)), sample]
        assert torch.allclose(logprobs[row][: len(sample)], expected, atol=1e-5)


@both
@either
def test_padding_and_batch_never_change_a_logprob_or_a_value(architecture: str, lora: bool) -> None:
    policy = tiny.policy(architecture, lora=lora).eval()
    torch.nn.init.normal_(policy.value_head.weight)
    batch = sampled(policy, architecture)
    together = policy(batch, 1.0)
    for row in range(len(PROMPTS)):
        trimmed = policy.trim(batch.rows(slice(row, row + 1)))
        length = trimmed.response_ids.shape[1]
        assert trimmed.prompt_mask.all()
        assert trimmed.response_mask.all()
        alone = policy(trimmed, 1.0)
        assert torch.allclose(alone.logprobs[0], together.logprobs[row, :length], atol=1e-5)
        assert torch.allclose(alone.values[0], together.values[row, :length], atol=1e-5)


@both
def test_a_head_with_something_after_it_is_scored_through_its_logits(architecture: str) -> None:
    policy = tiny.policy(architecture, lora=True).eval()
    batch = sampled(policy, architecture)
    expected = policy(batch, 0.7, entropy=True)
    assert policy.has_plain_head
    policy.has_plain_head = False
    through_logits = policy(batch, 0.7, entropy=True)
    for one, other in zip(through_logits, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    forward = policy.base.forward

    def capped(*arguments: object, **options: object) -> object:
        output = forward(*arguments, **options)
        output.logits = output.logits.tanh()
        return output

    policy.base.forward = capped
    assert not policy._check_plain_head()


def test_a_softcap_is_detected_although_the_padding_row_is_zero() -> None:
    config = Gemma2Config(
        vocab_size=len(tiny.tokenizer("gpt2")),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
        eos_token_id=0,
        final_logit_softcapping=0.5,
    )
    torch.manual_seed(0)
    assert not Policy(Gemma2ForCausalLM(config), tiny.tokenizer("gpt2")).has_plain_head


@both
def test_scoring_the_bare_base_leaves_every_adapter_trainable(architecture: str) -> None:
    base = tiny.model(architecture).requires_grad_(False)
    model = add_lora(base, LoraSettings(r=4, alpha=8), "policy")
    model.add_adapter("value", model.peft_config["policy"])
    model.set_adapter("policy")
    policy = Policy(model, tiny.tokenizer(architecture))
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    policy.logprobs("reference", sampled(policy, architecture), 1.0)
    assert trained == {name for name, p in policy.named_parameters() if p.requires_grad}
    assert any(".value." in name for name in trained)


@both
@either
def test_policy_starts_as_its_reference_and_the_value_head_at_zero(architecture: str, lora: bool) -> None:
    policy = tiny.policy(architecture, lora=lora).train()  # dropout would show in training mode
    batch = sampled(policy, architecture)
    scores = policy(batch, 1.0)
    assert torch.allclose(scores.logprobs, policy.logprobs("reference", batch, 1.0), atol=1e-6)
    assert not scores.values.any()


@both
def test_the_reference_is_the_sft_adapter_and_not_the_bare_base(architecture: str) -> None:
    policy = tiny.policy(architecture, lora=True)
    batch = sampled(policy, architecture)
    reference, base = policy.logprobs("reference", batch, 1.0), policy.logprobs("base", batch, 1.0)
    assert torch.equal(reference, policy.logprobs("sft", batch, 1.0))
    assert (reference - base).abs().max() > 0.01


@both
def test_switching_adapters_leaves_the_policy_trainable_and_the_rest_frozen(architecture: str) -> None:
    policy = tiny.policy(architecture, lora=True)
    batch = sampled(policy, architecture)
    for name in ("reference", "base", "policy"):
        policy.logprobs(name, batch, 1.0)
        trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
        assert trainable
        assert all(".policy." in name or name.startswith("value_head") for name in trainable)


def test_a_layer_called_value_is_no_value_adapter() -> None:
    layer = "model.base_model.model.roberta.encoder.layer.0.attention.self.value"
    assert adapter_name(f"{layer}.lora_A.policy.weight") == "policy"
    assert adapter_name(f"{layer}.lora_B.value.weight") == "value"
    assert adapter_name(f"{layer}.base_layer.weight") is None
    assert adapter_name("model.embeddings.lora_embedding_A.value") == "value"


@both
def test_gradient_reaches_every_adapter_and_the_value_head(architecture: str) -> None:
    policy = tiny.policy(architecture, lora=True)
    torch.nn.init.normal_(policy.value_head.weight)
    scores = policy(sampled(policy, architecture), 1.0)
    (scores.logprobs.sum() + scores.values.sum()).backward()
    without = [n for n, p in policy.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


@both
def test_the_response_ends_at_the_first_stop_token_and_is_pad_after_it(architecture: str) -> None:
    policy = tiny.policy(architecture, lora=True)
    _, _, response, mask = sampled(policy, architecture, PROMPTS * 8)
    stop = int(policy.stop_ids[0])
    assert (response[~mask] == policy.pad_id).all()
    assert mask[:, 0].all()
    lengths = mask.sum(dim=1)
    assert lengths.min() < lengths.max(), "the test needs responses of different lengths"
    for row, length in enumerate(lengths.tolist()):
        assert stop not in response[row, : length - 1].tolist()
        assert length == 12 or response[row, length - 1] == stop


@both
def test_a_seeded_sample_depends_only_on_its_prompt_and_seed(architecture: str) -> None:
    policy = tiny.policy(architecture, lora=True)
    tokenizer = tiny.tokenizer(architecture)
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    options = {"max_new_tokens": 10, "temperature": 1.0}
    together = policy.generate(*policy.pad_prompts(prompts), **options, seeds=[1, 2, 3, 4])
    alone = policy.generate(*policy.pad_prompts(prompts[2:3]), **options, seeds=[3])
    length = int(alone.response_mask.sum())
    assert together.response_ids[2, :length].tolist() == alone.response_ids[0, :length].tolist()
    other = policy.generate(*policy.pad_prompts(prompts[2:3]), **options, seeds=[4])
    assert other.response_ids[0].tolist() != alone.response_ids[0].tolist()


def test_seeded_sampling_follows_the_softmax() -> None:
    from workbench.models.sampling import SeededSampling

    logits = torch.tensor([2.0, 0.5, -1.0, 0.0])
    draws = SeededSampling(list(range(20_000)), temperature=0.7)(torch.empty(0), logits.repeat(20_000, 1)).argmax(-1)
    frequencies = torch.bincount(draws, minlength=4) / 20_000
    assert torch.allclose(frequencies, torch.softmax(logits / 0.7, 0), atol=0.015)


@both
def test_sampling_follows_the_distribution_that_is_scored(architecture: str) -> None:
    """The mean log-probability of samples is minus the entropy only if both are of one distribution."""
    policy = tiny.policy(architecture, lora=True).eval()
    policy.base.generation_config.top_k = 2  # neutral options must not let a model's own come back
    ids, mask = policy.pad_prompts([tiny.tokenizer(architecture)("hello").input_ids] * 4000)
    batch = policy.generate(ids, mask, max_new_tokens=1, temperature=1.5)
    logits = policy._response_logits(policy.model, batch.rows(slice(1)))
    probabilities = torch.softmax(logits[0, 0].detach() / 1.5, -1)
    frequencies = torch.bincount(batch.response_ids[:, 0], minlength=len(probabilities)) / 4000
    assert torch.allclose(frequencies, probabilities, atol=0.04)


def test_mask_keeps_the_first_stop_token_and_drops_what_follows() -> None:
    ids = torch.tensor([[5, 6, 0, 0, 0], [0, 5, 6, 7, 8], [5, 6, 7, 8, 9], [5, 1, 0, 6, 1]])
    expected = [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert mask_after_stop(ids, torch.tensor([0, 1])).long().tolist() == expected


def test_a_response_is_truncated_unless_it_sampled_a_stop_token() -> None:
    ids, stop = torch.tensor([[5, 0, 0], [5, 6, 7], [0, 0, 0]]), torch.tensor([0])
    mask = mask_after_stop(ids, stop)
    assert is_truncated(ids, mask, stop).tolist() == [False, True, False]
    # Padding with the stop token, as GPT-2 does, is no stop token that was sampled.
    assert is_truncated(torch.tensor([[5, 6, 0]]), torch.tensor([[True, True, False]]), stop).tolist() == [True]


def test_values_are_read_from_states_of_the_width_that_the_head_reads() -> None:
    """OPT may project its states down to the width of its word embeddings before the head."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_attention_heads": 2}
    tokenizer = tiny.tokenizer("gpt2")
    model = OPTForCausalLM(
        OPTConfig(vocab_size=len(tokenizer), num_hidden_layers=1, pad_token_id=0, do_layer_norm_before=False, **sizes)
    )
    policy = Policy(add_lora(model, LoraSettings(r=2, target_modules=["q_proj"]), "policy"), tokenizer).eval()
    ids, mask = policy.pad_prompts([[5, 6], [7]])
    batch = policy.generate(ids, mask, max_new_tokens=3, temperature=1.0)
    assert policy(batch, 1.0).values.shape == batch.response_ids.shape
