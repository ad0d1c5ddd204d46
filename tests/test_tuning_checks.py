"""What a tuning method, an architecture or a machine cannot do is one line in the plan; and memory is measured."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, Gemma2Config, GPT2Config, MambaConfig, PretrainedConfig

from workbench.config.range_checks import check_ranges
from workbench.config.schema import PolicyConfig
from workbench.config.tuning import (
    FULL,
    IA3,
    LORA,
    PREFIX_TUNING,
    PROMPT_TUNING,
    SETTINGS,
    ZERO_SHOT,
    TuningMethod,
    check_method_settings,
    tuning_rate,
)
from workbench.config.yaml_check import check_option
from workbench.data.context import Context
from workbench.errors import UserError
from workbench.models import tuning
from workbench.models.loading import meta_model
from workbench.models.soft_prompts import cache_shape
from workbench.models.tuning import check_method, tuned_context, tuned_policy
from workbench.run import peak_memory as measuring
from workbench.run.peak_memory import peak_memory

KEY = "tuning.methods.x"
MIB = 2**20
CPU = torch.device("cpu")
BART_SIZES = {"encoder_attention_heads": 2, "decoder_attention_heads": 4, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}


def refusal(method: TuningMethod, policy: PolicyConfig | str = "toy:gpt2") -> str:
    """Return the line with which the plan refuses a method."""
    policy = PolicyConfig(model=policy) if isinstance(policy, str) else policy
    with pytest.raises(UserError) as refused:
        check_method(policy, method, KEY)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(KEY)
    return message


SETTINGS_REFUSED = {
    "x.r: only for method lora; method is prompt_tuning; remove r": TuningMethod(PROMPT_TUNING, r=4),
    "x.alpha: only for method lora; method is ia3; remove alpha": TuningMethod(IA3, alpha=4),
    "x.target_modules: only for method lora; method is full": TuningMethod(FULL, target_modules=["c_attn"]),
    "x.virtual_tokens: only for method prompt_tuning or prefix_tuning; method is lora": TuningMethod(
        LORA, virtual_tokens=4
    ),
    "x.learning_rate: only for method full or lora or prompt_tuning or prefix_tuning or ia3; method is zero-shot": (
        TuningMethod(ZERO_SHOT, learning_rate=0.1)
    ),
    "x.quantization: nf4 with method full: quantized weights cannot be trained; train an adapter on them": TuningMethod(
        FULL, quantization="nf4"
    ),
    "x.quantization: int8 with method prompt_tuning: virtual tokens are trained on weights that are not": TuningMethod(
        PROMPT_TUNING, quantization="int8"
    ),
    "x.quantization: nf4 with method prefix_tuning: virtual tokens are trained on weights that are not": TuningMethod(
        PREFIX_TUNING, quantization="nf4"
    ),
}


@pytest.mark.parametrize("message", SETTINGS_REFUSED)
def test_a_setting_that_the_method_does_not_take_is_refused(message: str) -> None:
    assert message in refusal(SETTINGS_REFUSED[message])


def test_a_misspelled_method_is_answered_with_the_one_meant() -> None:
    unknown: Any = "prompt-tuning"
    with pytest.raises(UserError, match=r"^x\.method: unknown method 'prompt-tuning'; did you mean prompt_tuning\?$"):
        check_method_settings(TuningMethod(unknown), "x")
    with pytest.raises(UserError, match=r"^--x\.method: must be one of zero-shot, .* did you mean prompt_tuning\?$"):
        check_option("x", "{method: prompt-tuning}", TuningMethod)
    with pytest.raises(UserError, match=r"^--x\.virtual_token: unknown key; did you mean virtual_tokens\?$"):
        check_option("x", "{method: prompt_tuning, virtual_token: 3}", TuningMethod)
    with pytest.raises(UserError, match=r"^x\.virtual_tokens: 0 must be between 1 and 4096$"):
        check_ranges(TuningMethod(PROMPT_TUNING, virtual_tokens=0), TuningMethod, "x")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with the configurations of small models."""
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    configs: dict[str, PretrainedConfig] = {
        "mamba": MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1),
        "gemma2": Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=2),
        "bart": BartConfig(vocab_size=32, d_model=16, encoder_layers=1, decoder_layers=2, **BART_SIZES),
        "gpt2": GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0),
    }
    folder = tmp_path_factory.mktemp("models")
    for name, config in configs.items():
        config.save_pretrained(folder / name)
    return folder


ARCHITECTURES_REFUSED = {
    "x.method: prefix_tuning: mamba has no cache of keys and values to put a prefix in; use prompt_tuning or lora": (
        TuningMethod(PREFIX_TUNING),
        "mamba",
    ),
    "x.method: prefix_tuning: gemma2 would lose its prefix from DynamicSlidingWindowLayer; use prompt_tuning or lora": (
        TuningMethod(PREFIX_TUNING),
        "gemma2",
    ),
    "x.method: ia3: the layers that it scales are not known for mamba; use lora": (TuningMethod(IA3), "mamba"),
    "x.target_modules: lm_head shares its weight with the embeddings, which would change too": (
        TuningMethod(LORA, target_modules=["lm_head"]),
        "gpt2",
    ),
    "x.target_modules: 'q_proj' is not the name of a layer; use all-linear, or names among c_attn, c_fc, c_proj": (
        TuningMethod(LORA, target_modules=["q_proj"]),
        "gpt2",
    ),
    "x.r: 17 is above 16, the rank of the largest weight of": (TuningMethod(LORA, r=17), "gpt2"),
}


@pytest.mark.parametrize("message", ARCHITECTURES_REFUSED)
def test_what_an_architecture_cannot_take_is_refused(message: str, folders: Path) -> None:
    method, name = ARCHITECTURES_REFUSED[message]
    assert message in refusal(method, str(folders / name))


def test_what_this_launch_or_machine_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointing = PolicyConfig(model="toy:gpt2", gradient_checkpointing=True)
    assert "prefix_tuning does not work with policy.gradient_checkpointing" in refusal(
        TuningMethod(PREFIX_TUNING), checkpointing
    )
    check_method(checkpointing, TuningMethod(PROMPT_TUNING), KEY)
    monkeypatch.setattr(tuning, "find_spec", lambda name: None)
    assert "x.quantization: nf4 needs bitsandbytes, which is not installed; pip install" in refusal(
        TuningMethod(LORA, quantization="nf4")
    )
    monkeypatch.setattr(tuning, "is_sharded_launch", lambda: True)
    for method in (LORA, PROMPT_TUNING, PREFIX_TUNING, IA3):
        assert f"x.method: {method} does not work under FSDP" in refusal(TuningMethod(method))
    for method in (FULL, ZERO_SHOT):
        check_method(PolicyConfig(model="toy:gpt2"), TuningMethod(method), KEY)


@pytest.mark.parametrize("model", ["toy:gpt2", "toy:t5", "bart"])
@pytest.mark.parametrize("method", SETTINGS)
def test_every_method_fits_common_models(model: str, method: Any, folders: Path) -> None:
    model = str(folders / model) if model == "bart" else model
    check_method(PolicyConfig(model=model), TuningMethod(method), KEY)


def test_the_cache_of_a_model_without_values_is_that_of_the_model(folders: Path) -> None:
    """Its decoder has other layers than its encoder."""
    assert cache_shape(meta_model(str(folders / "bart"))) == (2, 4, 4)


def test_the_base_is_loaded_as_the_method_needs_it() -> None:
    policy = PolicyConfig(model="toy:gpt2", quantization="nf4")
    full = tuned_policy(policy, TuningMethod(FULL))
    assert (full.lora, full.quantization) == (None, None)
    adapted = tuned_policy(policy, TuningMethod(LORA, r=4, quantization="int8"))
    assert adapted.quantization == "int8"
    assert adapted.lora is not None
    assert (adapted.lora.r, adapted.lora.alpha) == (4, 8), "alpha is twice the rank"
    assert tuned_policy(policy, TuningMethod(ZERO_SHOT)).lora is not None, "frozen"


def test_each_method_has_its_learning_rate() -> None:
    for method in (FULL, LORA, PROMPT_TUNING, PREFIX_TUNING, IA3):
        rates = [tuning_rate(TuningMethod(method), is_encoder_decoder) for is_encoder_decoder in (True, False)]
        assert all(1e-5 <= rate <= 0.3 for rate in rates)
    assert tuning_rate(TuningMethod(PROMPT_TUNING), True) == 0.3
    assert tuning_rate(TuningMethod(PROMPT_TUNING, learning_rate=0.0), True) == 0.0, "a setting, not the default"


@pytest.mark.parametrize(
    ("method", "is_decoder_only", "length", "response_length"),
    [
        (PROMPT_TUNING, True, 90, None),
        (PREFIX_TUNING, True, 90, None),
        (PROMPT_TUNING, False, 90, 60),
        (PREFIX_TUNING, False, 100, 50),
        (LORA, True, 100, None),
    ],
)
def test_virtual_tokens_take_room(method: Any, is_decoder_only: bool, length: int, response_length: int | None) -> None:
    context = Context(is_decoder_only, 100, None if is_decoder_only else 60)
    tokens = None if method == LORA else 10
    changed = tuned_context(context, TuningMethod(method, virtual_tokens=tokens), KEY)
    assert (changed.length, changed.response_length) == (length, response_length)


def test_virtual_tokens_that_leave_no_room_are_refused() -> None:
    with pytest.raises(UserError, match=r"x\.virtual_tokens: 100 leave no room in the context length of 100 tokens"):
        tuned_context(Context(True, 100), TuningMethod(PROMPT_TUNING, virtual_tokens=100), KEY)
    assert tuned_context(Context(True), TuningMethod(PROMPT_TUNING), KEY).length is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_the_peak_is_what_the_block_held_at_once() -> None:
    def hold(size: int) -> None:
        torch.ones(size * MIB // 4).sum()

    with peak_memory(CPU) as earlier:
        hold(256)
    with peak_memory(CPU) as peak:
        hold(32)
        hold(128)
    gc.collect()
    with peak_memory(CPU) as nothing:
        pass
    assert earlier.measure() is not None
    assert peak.measure() is not None
    assert nothing.measure() is not None
    assert 250 * MIB < earlier.measure() < 300 * MIB
    assert 120 * MIB < peak.measure() < 165 * MIB, "not the sum, and not the peak before it"
    assert nothing.measure() < 16 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_what_was_freed_before_the_block_is_counted_again() -> None:
    def small_tensors() -> list[torch.Tensor]:
        return [torch.ones(16 * 1024) for _ in range(1000)]  # of 64 KiB, which the allocator keeps when they are freed

    freed, pinned = small_tensors(), torch.ones(16 * 1024)  # the last one keeps the heap from shrinking
    del freed
    with peak_memory(CPU) as peak:
        small_tensors()
    assert pinned.numel() == 16 * 1024
    assert peak.measure() is not None
    assert 50 * MIB < peak.measure() < 90 * MIB


def test_other_systems_have_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring.sys, "platform", "darwin")
    with peak_memory(CPU) as peak:
        pass
    assert peak.measure() is None


def test_a_kernel_that_refuses_has_no_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measuring, "CLEAR", tmp_path / "missing" / "clear_refs")
    with peak_memory(CPU) as peak:
        pass
    assert peak.measure() is None


def test_a_gpu_tells_its_own_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the device that trains, whatever else the machine has."""
    calls: list[torch.device] = []
    monkeypatch.setattr(measuring.torch.cuda, "reset_peak_memory_stats", calls.append)
    monkeypatch.setattr(measuring.torch.cuda, "max_memory_allocated", lambda device: 1000 * calls.count(device))
    with peak_memory(torch.device("cuda", 1)) as peak:
        pass
    calls.append(torch.device("cuda", 1))
    assert peak.measure() == 1000, "what came after the block is no part of it"
    monkeypatch.setattr(measuring.torch.cuda, "is_available", lambda: True)
    with peak_memory(CPU):
        assert len(calls) == 2
