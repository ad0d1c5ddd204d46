"""Every architecture is sampled and scored alike, or refused in one line before it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from trainers import make_trainer, step
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    FSMTConfig,
    FSMTForConditionalGeneration,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    T5ForConditionalGeneration,
)

from workbench.errors import UserError
from workbench.models.architecture import check_architecture, checked_policy
from workbench.models.loading import disable_dropout, reset_generation_config
from workbench.models.policy import Policy

VOCABULARY = len(tiny.tokenizer("t5"))


def policy_of(model: PreTrainedModel, architecture: str) -> Policy:
    """Return a policy as `load_model` makes it."""
    reset_generation_config(model)
    return Policy(model.eval(), tiny.tokenizer(architecture))


def bart(**options: Any) -> BartForConditionalGeneration:
    """Return a tiny Bart with random weights."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")
    }
    sizes |= {f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")}
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 1, "decoder_start_token_id": 1}
    config = BartConfig(
        vocab_size=VOCABULARY, d_model=16, max_position_embeddings=64, init_std=0.3, **sizes | ids | options
    )
    disable_dropout(config)
    return BartForConditionalGeneration(config)


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_bart_adds_a_bias_after_its_head_and_is_scored_with_it(bias: float) -> None:
    model = bart()
    model.final_logits_bias += bias * torch.arange(VOCABULARY)
    policy = policy_of(model, "t5")
    assert not policy.has_plain_head
    check_architecture(policy)


def test_bart_is_trained(tmp_path: Path) -> None:
    policy = Policy(bart(), tiny.tokenizer("t5"), reference=bart().requires_grad_(False))
    reset_generation_config(policy.base)
    _, metrics = step(make_trainer(tmp_path, "t5", policy=policy))
    assert metrics["skipped_steps"] == 0 < metrics["grad_norm"]
    assert abs(metrics["objective/kl"]) < 1e-4, "the self-checks passed"


def test_a_response_starts_with_the_id_that_generate_starts_with() -> None:
    model = tiny.model("t5")
    model.config.decoder_start_token_id = 5
    model.generation_config.decoder_start_token_id = 7
    policy = policy_of(model, "t5")
    assert policy.start_id == 7
    check_architecture(policy)
    policy.start_id = 5
    with pytest.raises(UserError, match="t5 samples from another distribution than it scores"):
        check_architecture(policy)


def roberta() -> RobertaForCausalLM:
    """Return a tiny RoBERTa, which counts positions from its padding token's id."""
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = RobertaConfig(vocab_size=VOCABULARY, is_decoder=True, pad_token_id=0, initializer_range=0.3, **sizes)
    disable_dropout(config)
    return RobertaForCausalLM(config)


def rwkv() -> RwkvForCausalLM:
    """Return a tiny RWKV, which has no attention and no mask."""
    config = RwkvConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16)
    return RwkvForCausalLM(config)


@pytest.mark.parametrize("build", [roberta, rwkv])
def test_an_architecture_that_padding_changes_is_refused(build: Any) -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match=r"(roberta|rwkv) gives a padded row other log-probabilities \([\d.]+ nats"):
        check_architecture(policy_of(build(), "t5"))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("lora", [True, False])
def test_the_usual_ones_pass_and_stay_as_they_were(architecture: str, lora: bool) -> None:
    policy = tiny.policy(architecture, lora=lora).train()
    check_architecture(policy)
    assert policy.training
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_a_padding_token_without_an_embedding_is_refused() -> None:
    tokenizer = tiny.tokenizer("gpt2")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    policy = Policy(tiny.model("gpt2"), tokenizer)
    with pytest.raises(UserError, match=rf"pads with token {VOCABULARY - 2}, but the model has embeddings for"):
        check_architecture(policy)


def test_a_model_that_was_made_for_another_use_is_refused() -> None:
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = FSMTConfig(src_vocab_size=VOCABULARY, tgt_vocab_size=VOCABULARY, d_model=16, **sizes)
    with pytest.raises(UserError, match=r"^fsmt cannot be sampled and scored: AttributeError: .*; use another model$"):
        checked_policy(FSMTForConditionalGeneration(config), tiny.tokenizer("t5"))


def test_a_model_that_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any, **options: Any) -> None:
        raise ValueError("a message\nof two lines")

    for model_class in (GPT2LMHeadModel, T5ForConditionalGeneration):
        monkeypatch.setattr(model_class, "generate", failing)
    for architecture in tiny.ARCHITECTURES:
        with pytest.raises(UserError, match=rf"{architecture} cannot be sampled and scored: .*a message.*two lines"):
            check_architecture(tiny.policy(architecture, lora=False))
