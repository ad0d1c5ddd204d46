"""A static cache samples what the dynamic one samples, and is used where transformers compiles the decoding."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
import tiny
import torch
from cuda_scenarios import make_policy
from trainers import make_rows
from transformers import StaticCache

from workbench.models import decoding
from workbench.models.policy import Batch, Policy


def sample(sampler: Policy, architecture: str, cache: str | None, temperature: float) -> tuple[Batch, torch.Tensor]:
    """Return responses with a cache, and the logits of every step."""
    rows = make_rows("t5" if architecture == "t5" else "gpt2", 5)
    steps: list[torch.Tensor] = []
    with mock.patch.object(decoding, "cache_implementation", return_value=cache):
        batch = sampler.generate(
            *sampler.pad_prompts([row["prompt_ids"] for row in rows]),
            max_new_tokens=9,
            temperature=temperature,
            seeds=[1, 2, 3, 4, 5] if temperature else None,
            observe=steps.append,
        )
    return batch, torch.stack(steps)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("training", ["lora", "full"])
@pytest.mark.parametrize("architecture", ["gpt2", "t5", "llama"])
def test_a_static_cache_samples_what_the_dynamic_one_does(
    architecture: str, training: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = make_policy(architecture, training, None)
    made: list[int] = []
    start = StaticCache.__init__
    monkeypatch.setattr(StaticCache, "__init__", lambda self, **options: made.append(1) or start(self, **options))
    dynamic, logits = sample(sampler, architecture, None, temperature)
    assert not made
    static, static_logits = sample(sampler, architecture, "static", temperature)
    assert made
    assert torch.equal(static.response_ids, dynamic.response_ids)
    assert torch.equal(static.response_mask, dynamic.response_mask)
    mask = dynamic.response_mask.T
    assert torch.allclose(static_logits[mask], logits[mask], atol=1e-5)


def test_the_cache_is_static_only_where_decoding_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny.model("gpt2")
    monkeypatch.setattr(decoding, "can_compile", lambda: True)
    assert decoding.cache_implementation(plain, 16) is None, "a CPU"

    def on_gpu(**changes: object) -> object:
        parts = {"modules": plain.modules, "parameters": plain.parameters}
        attributes = {"device": torch.device("cuda"), "_can_compile_fullgraph": True} | parts
        return SimpleNamespace(**attributes | changes)

    assert decoding.cache_implementation(on_gpu(), 16) == "static"
    assert decoding.cache_implementation(on_gpu(), 15) is None
    assert decoding.cache_implementation(on_gpu(_can_compile_fullgraph=False), 16) is None
    assert decoding.cache_implementation(on_gpu(hf_quantizer=object()), 16) is None
    monkeypatch.setattr(decoding, "can_compile", lambda: False)
    assert decoding.cache_implementation(on_gpu(), 16) is None


@pytest.mark.parametrize(
    ("triton", "compilers", "expected"),
    [(True, ("gcc",), True), (True, ("mine",), True), (False, ("gcc",), False), (True, (), False)],
)
def test_compiling_takes_triton_and_a_compiler(
    triton: bool, compilers: tuple[str, ...], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "mine")
    monkeypatch.setattr(decoding, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(decoding.shutil, "which", lambda name: name if name in compilers else None)
    assert decoding.can_compile() == expected
