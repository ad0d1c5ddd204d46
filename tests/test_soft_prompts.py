"""Virtual tokens stand in front of every prompt, whatever its padding and its batch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    EncoderDecoderCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from workbench.config.tuning import PREFIX_TUNING, PROMPT_TUNING, SOFT_PROMPTS, TuningMethod
from workbench.errors import UserError
from workbench.models.architecture import check_architecture
from workbench.models.decoding import PLAIN, Decoding
from workbench.models.loading import reset_generation_config, save_model
from workbench.models.policy import Policy
from workbench.models.soft_prompts import sampled_tokens
from workbench.models.tuning import add_method, load_method

VIRTUAL = 3
PROMPTS = ["who says this line: a b c", "b", "the dog: hi"]
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
both = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
either = pytest.mark.parametrize("method", SOFT_PROMPTS)


def tuned(architecture: str, method: str, *, moved: bool = True, base: PreTrainedModel | None = None) -> PeftModel:
    """Return a tiny model behind virtual tokens, moved away from where they start as training would."""
    if base is None:
        base = tiny.model(architecture)
    reset_generation_config(base)
    model = add_method(base, TuningMethod(method, virtual_tokens=VIRTUAL), seed=1).eval()
    if moved:
        torch.manual_seed(2)
        with torch.no_grad():
            weight = vectors(model)
            weight += 0.5 * torch.randn_like(weight)
    return model


def vectors(model: PeftModel) -> Tensor:
    """Return what is trained: (virtual tokens, numbers of each)."""
    return model.prompt_encoder[model.active_adapter].embedding.weight


def prompt_ids(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Return prompts of different lengths."""
    return [tokenizer(text).input_ids for text in PROMPTS]


def policy_of(model: PeftModel, architecture: str) -> Policy:
    """Return a policy of the model."""
    return Policy(model, tiny.tokenizer(architecture)).eval()


def completions(policy: Policy, prompts: list[list[int]], decoding: Decoding = PLAIN) -> list[list[int]]:
    """Return greedy responses to a batch of prompts."""
    batch = policy.generate(*policy.pad_prompts(prompts), max_new_tokens=7, temperature=0.0, decoding=decoding)
    return [ids[mask].tolist() for ids, mask in zip(batch.response_ids, batch.response_mask, strict=True)]


@both
@either
def test_a_new_model_is_the_base_that_reads_sampled_tokens_first(architecture: str, method: str) -> None:
    base, model = tiny.model(architecture), tuned(architecture, method, moved=False)
    start = sampled_tokens(base, VIRTUAL, 1)
    ids, response = torch.arange(8, 14)[None], torch.arange(5, 9)[None]
    if architecture == "gpt2":
        expected = base(input_ids=torch.cat((start, ids), dim=1)).logits[:, VIRTUAL:]
        actual = model(input_ids=ids).logits
    elif method == PROMPT_TUNING:
        expected = base(input_ids=torch.cat((start, ids), dim=1), decoder_input_ids=response).logits
        actual = model(input_ids=ids, decoder_input_ids=response).logits
    else:  # of one layer, whose keys and values do not depend on what the encoder reads
        expected = base(input_ids=ids, decoder_input_ids=torch.cat((start, response), dim=1)).logits[:, VIRTUAL:]
        actual = model(input_ids=ids, decoder_input_ids=response).logits
    assert torch.allclose(actual, expected, atol=1e-5)


@either
def test_the_start_depends_on_the_seed_alone(method: str) -> None:
    settings = TuningMethod(method, virtual_tokens=VIRTUAL)
    made = []
    for state, seed in ((0, 1), (9, 1), (0, 2)):
        base = tiny.model("gpt2")
        torch.manual_seed(state)
        made.append(vectors(add_method(base, settings, seed=seed)))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_prompt_starts_as_tokens_of_the_vocabulary() -> None:
    base = tiny.model("gpt2")
    rows = vectors(add_method(base, TuningMethod(PROMPT_TUNING, virtual_tokens=40), seed=1))
    tokens = {tuple(row.tolist()) for row in base.get_input_embeddings().weight}
    assert {tuple(row.tolist()) for row in rows} <= tokens
    assert len({tuple(row.tolist()) for row in rows}) > 15, "different ones"


def naive_logprobs(model: PeftModel, method: str, prompt: list[int], response: list[int]) -> list[float]:
    """Return the log-probability of each token of a response, computed token by token with the base alone."""
    base, weight = model.get_base_model(), vectors(model)
    heads, layers = 2, base.config.num_hidden_layers
    logprobs = []
    for length, token in enumerate(response):
        cache = DynamicCache()
        if method == PREFIX_TUNING:
            for layer in range(layers):
                key, value = (weight.chunk(2 * layers, dim=1)[2 * layer + part] for part in range(2))
                cache.update(*(part.view(1, VIRTUAL, heads, -1).transpose(1, 2) for part in (key, value)), layer)
        if not base.config.is_encoder_decoder:
            embeddings = base.get_input_embeddings()(torch.tensor([prompt + response[:length]]))
            if method == PROMPT_TUNING:
                embeddings = torch.cat((weight[None], embeddings), dim=1)
            logits = base(inputs_embeds=embeddings, past_key_values=cache).logits
        else:
            embeddings = base.get_input_embeddings()(torch.tensor([prompt]))
            if method == PROMPT_TUNING:
                embeddings = torch.cat((weight[None], embeddings), dim=1)
            decoder_ids = torch.tensor([[base.config.decoder_start_token_id, *response[:length]]])
            both = EncoderDecoderCache(cache, DynamicCache())
            logits = base(inputs_embeds=embeddings, decoder_input_ids=decoder_ids, past_key_values=both).logits
        logprobs.append(float(logits[0, -1].log_softmax(dim=0)[token]))
    return logprobs


@both
@either
@torch.no_grad()
def test_a_response_has_the_log_probabilities_of_a_naive_loop(architecture: str, method: str) -> None:
    model = tuned(architecture, method)
    policy, prompts = policy_of(model, architecture), prompt_ids(tiny.tokenizer(architecture))
    responses = [[5, 9, 7, 12], [8, 20], [30, 6, 6]]
    batch = policy.make_batch(prompts, responses)
    scored = policy.logprobs("default", batch, 1.0)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        expected = naive_logprobs(model, method, prompt, response)
        assert scored[row, : len(response)].tolist() == pytest.approx(expected, abs=1e-4)
    assert (scored - tuned_base_logprobs(architecture, batch)).abs().max() > 0.05, "the virtual tokens matter"


def tuned_base_logprobs(architecture: str, batch) -> Tensor:
    """Return the log-probabilities under the base without virtual tokens."""
    return Policy(tiny.model(architecture), tiny.tokenizer(architecture)).eval().logprobs("policy", batch, 1.0)


@either
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_positions_follow_the_padding_mask(method: str, side: str) -> None:
    model = tuned("gpt2", method)
    alone, padding = torch.arange(8, 14), torch.zeros(4, dtype=torch.long)
    parts = (padding, alone) if side == "left" else (alone, padding)
    text = slice(4, None) if side == "left" else slice(0, 6)
    ids, mask = torch.cat(parts)[None], torch.cat([torch.ones_like(part) * int(part is alone) for part in parts])[None]
    expected = model(input_ids=alone[None]).logits
    assert torch.allclose(model(input_ids=ids, attention_mask=mask).logits[:, text], expected, atol=1e-5)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, text.start] = -100  # as in every prompt; padding in front of it would predict it
    loss, expected_loss = (
        model(input_ids=rows, attention_mask=ones, labels=targets).loss
        for rows, ones, targets in ((ids, mask, labels), (alone[None], torch.ones(1, 6), labels[:, text]))
    )
    assert torch.allclose(loss, expected_loss, atol=1e-5)
    last = model(input_ids=ids, attention_mask=mask, logits_to_keep=3).logits
    assert torch.allclose(last, model(input_ids=ids, attention_mask=mask).logits[:, -3:], atol=1e-5)


@both
@either
def test_the_sampler_draws_from_what_is_scored(architecture: str, method: str) -> None:
    check_architecture(policy_of(tuned(architecture, method), architecture), "default")


DECODINGS = {
    "greedy": PLAIN,
    "beams": Decoding(num_beams=3),
    "repetition": Decoding(repetition_penalty=3.0),
    "at least": Decoding(min_new_tokens=5),
}


@both
@either
@pytest.mark.parametrize("decoding", DECODINGS)
def test_a_completion_does_not_depend_on_its_batch(architecture: str, method: str, decoding: str) -> None:
    policy = policy_of(tuned(architecture, method), architecture)
    prompts, how = prompt_ids(tiny.tokenizer(architecture)), DECODINGS[decoding]
    together = completions(policy, prompts, how)
    assert together == [completions(policy, [prompt], how)[0] for prompt in prompts]
    assert all(1 <= len(response) <= 7 for response in together)
    if decoding == "at least":
        assert all(len(response) >= 5 for response in together)
    if decoding == "repetition":
        assert together != completions(policy, prompts)


@both
@either
def test_the_base_is_unchanged_without_its_virtual_tokens(architecture: str, method: str) -> None:
    model = tuned(architecture, method)
    policy, prompts = policy_of(model, architecture), prompt_ids(tiny.tokenizer(architecture))
    base = Policy(tiny.model(architecture), tiny.tokenizer(architecture)).eval()
    reset_generation_config(base.base)
    with policy.variant("base"):
        assert completions(policy, prompts) == completions(base, prompts)
    batch = policy.make_batch(prompts, [[5, 9, 7]] * 3)
    with policy.variant("base"):
        assert torch.equal(policy.logprobs("base", batch, 1.0), base.logprobs("policy", batch, 1.0))
    assert (policy.logprobs("default", batch, 1.0) - base.logprobs("policy", batch, 1.0)).abs().max() > 0.05


def other_models() -> dict[str, PreTrainedModel]:
    """Return models with grouped keys, with biases by distance, and with unequal halves or heads."""
    torch.manual_seed(0)
    tokens = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    start = {"decoder_start_token_id": 0}
    t5 = {"d_model": 32, "d_kv": 12, "d_ff": 48, "num_heads": 3, "num_layers": 3, "num_decoder_layers": 2}
    bart = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
    bart |= {"encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 4}
    return {
        "llama": LlamaForCausalLM(LlamaConfig(**tokens, **SIZES, num_key_value_heads=2)),
        "bloom": BloomForCausalLM(BloomConfig(**tokens, hidden_size=32, n_layer=2, n_head=4)),
        "t5": T5ForConditionalGeneration(T5Config(**tokens, **start, **t5, dropout_rate=0.0)),
        "bart": BartForConditionalGeneration(
            BartConfig(**tokens, **start, **bart, dropout=0.0, forced_eos_token_id=None)
        ),
    }


@either
@pytest.mark.parametrize("name", ["llama", "bloom", "t5", "bart"])
def test_other_architectures_score_what_they_sample(name: str, method: str) -> None:
    model = tuned(name, method, base=other_models()[name])
    tokenizer = tiny.tokenizer("t5" if model.config.is_encoder_decoder else "gpt2")
    check_architecture(Policy(model, tokenizer), "default")


@both
@either
@torch.no_grad()
def test_what_is_saved_loads_as_it_was(architecture: str, method: str, tmp_path: Path) -> None:
    model, prompts = tuned(architecture, method), prompt_ids(tiny.tokenizer(architecture))
    save_model(model, tmp_path)
    loaded = load_method(tiny.model(architecture), tmp_path, "tuned")
    assert torch.equal(vectors(loaded), vectors(model))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    reset_generation_config(loaded.get_base_model())
    before, after = policy_of(model, architecture), policy_of(loaded, architecture)
    assert completions(after, prompts) == completions(before, prompts)


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@torch.no_grad()
def test_peft_reads_the_files_of_a_decoder_and_fails_on_a_prefix_of_an_encoder_decoder(tmp_path: Path) -> None:
    ids = torch.arange(8, 14)[None]
    for method in SOFT_PROMPTS:
        model = tuned("gpt2", method)
        save_model(model, tmp_path / method)
        plain = PeftModel.from_pretrained(tiny.model("gpt2"), str(tmp_path / method))
        assert torch.allclose(plain(input_ids=ids).logits[:, -6:], model(input_ids=ids).logits, atol=1e-5)
    save_model(tuned("t5", PREFIX_TUNING), tmp_path / "t5")
    plain = PeftModel.from_pretrained(tiny.model("t5"), str(tmp_path / "t5"))
    with pytest.raises(AttributeError):
        plain(input_ids=ids, decoder_input_ids=ids)


@both
@either
def test_files_that_do_not_fit_are_refused_in_one_line(
    architecture: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tuned(architecture, method), tmp_path)
    base = other_models()["t5"]
    base.resize_token_embeddings(50)
    if method == PROMPT_TUNING:
        base = T5ForConditionalGeneration(T5Config(**base.config.to_diff_dict() | {"d_model": 16}))
    with pytest.raises(
        UserError, match=r"the virtual tokens do not fit t5: their numbers are \(3, .*use the base"
    ) as no:
        load_method(base, tmp_path)
    assert "\n" not in str(no.value)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"the virtual tokens cannot be loaded: SafetensorError: ") as no:
        load_method(tiny.model(architecture), tmp_path)
    assert "\n" not in str(no.value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    shutil.copytree(tmp_path, "my/prompt", ignore=shutil.ignore_patterns("*.safetensors", "my"))
    with pytest.raises(UserError, match=r"^my/prompt: the folder has no adapter_model\.safetensors$"):
        load_method(tiny.model(architecture), Path("my/prompt"))
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"the adapter's configuration cannot be read: "):
        load_method(tiny.model(architecture), tmp_path)
