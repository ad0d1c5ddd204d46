"""Top-k, top-p, beams, penalties and stop strings: what they say, with a row that depends on its seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from configs import GOOD, load
from random_results import random_examples, random_results
from small_runs import CHAIN, small
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import TopPLogitsWarper

from workbench.errors import UserError
from workbench.evaluation.generation import ComparedModel, Completion, Sampling, sample_batch
from workbench.models import policy as policy_module
from workbench.models import sampling
from workbench.models.decoding import Decoding
from workbench.models.policy import Policy
from workbench.models.sampling import Nucleus, SeededSampling
from workbench.models.stop_strings import before_texts, tokens_to_text
from workbench.report.evaluation_page import evaluation_page
from workbench.report.tables import sampling_description
from workbench.run import cli

PROMPTS = ["hello there", "a", "what is it:", "tell me more about the sea."]
both = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
DECODINGS: dict[str, tuple[Decoding, float]] = {
    "top-k": (Decoding(top_k=3), 1.0),
    "top-p": (Decoding(top_p=0.5), 1.0),
    "all": (Decoding(top_k=20, top_p=0.8, repetition_penalty=1.7, min_new_tokens=4), 0.8),
    "penalty": (Decoding(repetition_penalty=1.5), 0.0),
    "beams": (Decoding(num_beams=3, repetition_penalty=1.3), 0.0),
    "length": (Decoding(min_new_tokens=9), 1.0),
}
decodings = pytest.mark.parametrize(("decoding", "temperature"), DECODINGS.values(), ids=DECODINGS)


def generated(policy: Policy, ids: list[list[int]], seeds: list[int], **options: Any) -> list[list[int]]:
    """Responses to prompts, without padding."""
    batch = policy.generate(*policy.pad_prompts(ids), max_new_tokens=10, seeds=seeds, **options)
    rows = zip(batch.response_ids, batch.response_mask, strict=True)
    return [response[mask].tolist() for response, mask in rows]


def prompt_ids(architecture: str) -> list[list[int]]:
    """The ids of prompts of different lengths."""
    return [tiny.tokenizer(architecture)(prompt).input_ids for prompt in PROMPTS]


@both
@decodings
def test_a_row_depends_on_its_prompt_and_seed_alone(architecture: str, decoding: Decoding, temperature: float) -> None:
    policy, ids = tiny.policy(architecture, lora=True), prompt_ids(architecture)
    options = {"temperature": temperature, "decoding": decoding}
    together = generated(policy, ids, [5, 6, 7, 8], **options)
    assert [generated(policy, [row], [5 + index], **options)[0] for index, row in enumerate(ids)] == together
    reordered = generated(policy, [ids[2], ids[0]], [7, 5], **options)
    assert reordered == [together[2], together[0]]


def test_seeded_samples_follow_the_filtered_softmax() -> None:
    logits, rows = torch.tensor([2.0, 1.5, 0.5, 0.0, -1.0]), 20_000
    for decoding, left in ((Decoding(top_k=3), [0, 1, 2]), (Decoding(top_p=0.7), [0, 1]), (Decoding(top_p=1e-9), [0])):
        sampling = SeededSampling(list(range(rows)), 0.7, decoding.filters())
        draws = sampling(torch.empty(0), logits.repeat(rows, 1)).argmax(-1)
        expected = torch.zeros(5)
        expected[left] = torch.softmax(logits[left] / 0.7, 0)
        assert torch.allclose(torch.bincount(draws, minlength=5) / rows, expected, atol=0.015)


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999])
def test_a_nucleus_is_that_of_transformers_but_for_tokens_of_one_logit(
    top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over flat and steep rows, with few tokens sorted first, so that some rows need all of them."""
    monkeypatch.setattr(sampling, "TOP_TOKENS", (16, 60))
    generator, slopes = torch.Generator().manual_seed(0), torch.linspace(0.01, 6, 40)[:, None]
    logits = torch.randn(40, 300, generator=generator, dtype=torch.float64) * slopes
    inside = Nucleus(top_p)(None, logits).isfinite()
    assert torch.equal(inside, TopPLogitsWarper(top_p)(None, logits).isfinite())
    for token in range(300):
        assert torch.equal(Nucleus(top_p).contains(torch.full((40,), token), logits), inside[:, token])
    assert Nucleus(0.6)(None, torch.tensor([[1.0, 1.0, 1.0, -2.0]])).isfinite().tolist() == [[True] * 3 + [False]]


def test_a_sample_is_that_of_the_sorted_nucleus_with_the_same_noise() -> None:
    logits = torch.randn(500, 700, generator=torch.Generator().manual_seed(1)) * 2
    seeds = list(range(500))
    drawn = SeededSampling(seeds, 1.0, [Nucleus(0.6)])(torch.empty(0), logits.clone()).argmax(-1)
    cut = Nucleus(0.6)(None, logits)
    assert torch.equal(drawn, SeededSampling(seeds, 1.0)(torch.empty(0), cut.clone()).argmax(-1))
    whole = SeededSampling(seeds, 1.0)(torch.empty(0), logits.clone()).argmax(-1)
    assert 0.5 < float((drawn == whole).float().mean()) < 0.8, "both ways were taken"


def test_prompts_that_rows_share_are_read_once_and_complete_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, ids = tiny.policy("gpt2", lora=True), [ids for ids in prompt_ids("gpt2") for _ in range(3)]
    read: list[int] = []
    policy.base.register_forward_pre_hook(
        lambda module, inputs, options: read.append(options["input_ids"].numel()), with_kwargs=True
    )
    seeds = list(range(len(ids)))
    together = generated(policy, ids, seeds, temperature=1.0)
    tokens_read = sum(read)
    read.clear()
    assert together == [generated(policy, [row], [seed], temperature=1.0)[0] for seed, row in enumerate(ids)]
    monkeypatch.setattr(policy_module, "shared_prompt_cache", lambda *arguments: None)
    read.clear()
    assert generated(policy, ids, seeds, temperature=1.0) == together
    longest = max(map(len, ids))
    assert sum(read) - tokens_read == 8 * (longest - 1), "8 of 12 prompts were not read"


@both
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4},
        {"repetition_penalty": 1.4},
        {"min_new_tokens": 7},
        {"num_beams": 2, "repetition_penalty": 1.4, "min_new_tokens": 5},
    ],
    ids=str,
)
def test_a_row_alone_is_what_transformers_generates(architecture: str, options: dict[str, Any]) -> None:
    """Without padding, the library's own processors say the same."""
    policy = tiny.policy(architecture, lora=True).eval()
    for ids in prompt_ids(architecture):
        config = GenerationConfig(
            max_new_tokens=10, pad_token_id=policy.pad_id, eos_token_id=policy.stop_ids.tolist(), **options
        )
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        output = policy.model.generate(**inputs, generation_config=config, logits_processor=LogitsProcessorList())[0]
        expected = output[1 if policy.is_encoder_decoder else len(ids) :].tolist()
        (response,) = generated(policy, [ids], [0], temperature=0.0, decoding=Decoding(**options))
        stop = policy.stop_ids.tolist()
        while len(expected) > len(response):
            assert expected.pop() in (policy.pad_id, *stop)
        assert response == expected


def completions(policy: Policy, architecture: str, rows: slice = slice(None), **fields: Any) -> list[Completion]:
    """Completions of the prompts, or of some of them."""
    tokenizer = tiny.tokenizer(architecture)
    model = ComparedModel("policy", policy, "policy", tokenizer, policy, with_token_log_ratios=False)
    sampling = Sampling(**{"batch_size": 4, "max_new_tokens": 12, "temperature": 1.0, "seeds": (0,)} | fields)
    ids, seeds = prompt_ids(architecture)[rows], [1, 2, 3, 4][rows]
    return sample_batch(model, ids, sampling, seeds=seeds, with_token_log_ratios=[False] * len(ids))


@both
def test_a_completion_ends_before_the_first_stop_string(architecture: str) -> None:
    policy = tiny.policy(architecture, lora=True)
    plain = completions(policy, architecture)
    stop = max((text for completion in plain for text in completion.text), key=str.isalpha)
    stopped = completions(policy, architecture, stop_strings=(stop, "never there"))
    assert any(before.text != after.text for before, after in zip(plain, stopped, strict=True))
    for row, (before, after) in enumerate(zip(plain, stopped, strict=True)):
        (alone,) = completions(policy, architecture, slice(row, row + 1), stop_strings=(stop, "never there"))
        assert (alone.text, alone.tokens, alone.truncated) == (after.text, after.tokens, after.truncated)
        assert stop not in after.text
        assert after.text == before.text.split(stop)[0].strip()
        if stop in before.text:
            assert not after.truncated
            assert after.tokens <= before.tokens
        else:
            assert after == before


def test_tokens_are_counted_up_to_the_one_that_completes_a_stop_string() -> None:
    tokenizer = tiny.tokenizer("gpt2")
    ids = tokenizer("one two three").input_ids
    for text in ("two", "e t", "three"):
        length = tokens_to_text(tokenizer, ids, ["never", text])
        assert length is not None
        assert text in tokenizer.decode(ids[:length])
        assert text not in tokenizer.decode(ids[: length - 1])
    assert tokens_to_text(tokenizer, ids, ["four"]) is None
    assert before_texts("one two three", ["three", "two"]) == "one "
    assert before_texts("one", []) == "one"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "evaluation.num_beams: 4 beams search .* temperature 1; set evaluation.temperature to 0"),
        ({"temperature": 0, "top_k": 5}, "evaluation.top_k: 5 .* temperature 0 does not sample; remove top_k"),
        ({"temperature": 0, "top_p": 0.5}, "evaluation.top_p: 0.5 .* temperature 0 does not sample; remove top_p"),
        ({"top_p": 0}, r"evaluation.top_p: 0.0 must be above 0"),
        ({"top_p": 1.5}, r"evaluation.top_p: 1.5 must be"),
        ({"top_k": 0}, r"evaluation.top_k: 0 must be at least 1"),
        ({"max_new_tokens": 0}, r"evaluation.max_new_tokens: 0 must be between 1 and"),
        ({"max_new_tokens": 4, "min_new_tokens": 5}, "min_new_tokens: 5 is more than the limit of 4 tokens"),
        (
            {"min_new_tokens": 33},
            "min_new_tokens: 33 is more than the limit of 32 tokens; lower it, or raise",
        ),
        ({"repetition_penalty": 0}, r"evaluation.repetition_penalty: 0.0 must be between 1e-06"),
        ({"stop_strings": [""]}, r"evaluation.stop_strings\[0\]: is empty; use a string"),
        ({"num_beams": 0}, r"evaluation.num_beams: 0 must be between 1 and 1000"),
    ],
    ids=str,
)
def test_settings_that_exclude_each_other_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments = [f"--evaluation.{name}={yaml.safe_dump(value)}" for name, value in options.items()]
    with pytest.raises(UserError, match=message):
        load(tmp_path, GOOD, *arguments)


def test_a_special_token_is_no_stop_string(tmp_path: Path) -> None:
    options = ["--evaluation.stop_strings", "['\\n', '</s>']", "--dry_run"]
    with pytest.raises(UserError, match=r"evaluation\.stop_strings: '</s>' is a special token, which is no part"):
        cli.launch(CHAIN, "", small("quickstart", tmp_path, *options))


def test_ppo_samples_from_the_plain_softmax(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ppo.top_p: no such option: .* the log-probabilities in PPO must be those"):
        load(tmp_path, GOOD.replace("kl_coef: 3e-2", "top_p: 0.9"))


def test_the_report_says_how_completions_were_generated() -> None:
    results = random_results(random_examples(1), top_k=5, top_p=0.9, repetition_penalty=1.2, stop_strings=["\n"])
    described = "at temperature 1, top-k 5, top-p 0.9, repetition penalty 1.2, stopped at '\\n', the same seeds"
    assert described in sampling_description(results.settings)
    greedy = random_results(random_examples(1), temperature=0.0, num_beams=4, min_new_tokens=3).settings
    assert sampling_description(greedy) == "beam search with 4 beams, at least 3 tokens"
    assert "repetition penalty 1.2" in evaluation_page(results, random_examples(1))
