"""Tiny models with random weights and a tokenizer of letters, built in memory."""

from __future__ import annotations

import torch
from peft import PeftModel
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from workbench.config.tuning import LoraSettings
from workbench.models.adapters import add_lora
from workbench.models.loading import disable_dropout, reset_generation_config
from workbench.models.policy import Policy

LETTERS = "abcdefghijklmnopqrstuvwxyz .:?"
ARCHITECTURES = ("gpt2", "t5")


def tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """One token a character; GPT-2's pads with its end of text, T5's ends every text with </s>."""
    special = ["<end>"] if architecture == "gpt2" else ["<pad>", "</s>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *LETTERS, "#"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="#"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    if architecture == "gpt2":
        return PreTrainedTokenizerFast(
            tokenizer_object=inner, eos_token="<end>", pad_token="<end>", model_max_length=64
        )
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=64
    )


def model(architecture: str, seed: int = 0) -> PreTrainedModel:
    """About 20,000 random weights, made as `load_model` does: the configurations' own dropout is taken out."""
    torch.manual_seed(seed)
    vocabulary = len(tokenizer(architecture))
    if architecture == "gpt2":
        config = GPT2Config(
            vocab_size=vocabulary,
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.2,  # with the usual 0.02, adapters alone can hardly move so narrow a model
        )
        disable_dropout(config)
        return GPT2LMHeadModel(config)
    config = T5Config(
        vocab_size=vocabulary, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    disable_dropout(config)
    return T5ForConditionalGeneration(config)


def policy(architecture: str, *, lora: bool, seed: int = 0, separate: bool = False, with_values: bool = True) -> Policy:
    """A policy on a tiny model; its adapter starts away from zero, as one that SFT has trained would.

    With `separate`, its values come from an adapter, or a copy, of their own.
    """
    base = model(architecture, seed)
    reset_generation_config(base)
    if not lora:
        reference = model(architecture, seed).requires_grad_(False)
        value_model = model(architecture, seed) if separate else None
        models = {"reference": reference, "value_model": value_model}
        return Policy(base, tokenizer(architecture), **models, with_values=with_values)
    base.requires_grad_(False)
    peft: PeftModel = add_lora(base, LoraSettings(r=4, alpha=8), "sft")
    trained = ["policy", "value"] if separate else ["policy"]
    for name in trained:
        peft.add_adapter(name, peft.peft_config["sft"])
    weights = dict(peft.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            if ".sft." in name:
                weight.copy_(torch.randn_like(weight) * 0.1)
                for copy in trained:
                    weights[name.replace(".sft.", f".{copy}.")].copy_(weight)
    peft.set_adapter("policy")
    return Policy(peft, tokenizer(architecture), with_values=with_values)
