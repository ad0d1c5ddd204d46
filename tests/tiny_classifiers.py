"""Tiny random classifiers of six architectures over bytes, and texts that a reward must be able to score."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

SPECIAL = ["<|endoftext|>", "[PAD]", "[CLS]", "[SEP]", "[UNK]", "</s>"]
LABELS = {0: "hate", 1: "nothate", 2: "spam"}
TEXTS = [
    "",
    "Thank you.",
    "You are a stupid idiot, and rude words are all you know, you moron.",
    " \n\t",
    "\u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439 \u4f60\u597d \U0001f642",
    "A sentence. " * 834,  # 10,000 characters
    "Thank you.<|endoftext|>",
    "Thank you.</s></s>",
    "<|endoftext|>",
    "[PAD] [SEP]",
    "a b c d e f g h",
]


def byte_tokenizer(**options) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the 256 bytes, with the special tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *SPECIAL])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = options.pop("template", None)
    if template:
        marks = [(token, vocabulary[token]) for token in template.split() if token in vocabulary]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=SPECIAL, **options)


def build(kind: str, labels: dict[int, str] | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A tiny random classifier whose scores differ from text to text, and its tokenizer."""
    torch.manual_seed(0)
    common = {"vocab_size": 256 + len(SPECIAL), "id2label": labels or LABELS, "initializer_range": 0.3}
    common["label2id"] = {name: index for index, name in common["id2label"].items()}
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ends = {"eos_token": "<|endoftext|>"}
    if kind == "bert":
        tokenizer = byte_tokenizer(pad_token="[PAD]", template="[CLS] $A [SEP]")
        return BertForSequenceClassification(BertConfig(**common, **small, max_position_embeddings=64)), tokenizer
    if kind == "distilbert":
        tokenizer = byte_tokenizer(pad_token="[PAD]", template="[CLS] $A [SEP]")
        options = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64}
        return DistilBertForSequenceClassification(DistilBertConfig(**common, **options)), tokenizer
    if kind == "bart":
        tokenizer = byte_tokenizer(pad_token="[PAD]", eos_token="</s>", template="$A </s>", model_max_length=64)
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": 256}
        sides = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
        options = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, **sides}
        config = BartConfig(**common, **options, **ids, decoder_start_token_id=ids["eos_token_id"], init_std=0.3)
        return BartForSequenceClassification(config), tokenizer
    if kind == "roberta":
        tokenizer = byte_tokenizer(pad_token="[PAD]", template="[CLS] $A [SEP]")
        options = {"max_position_embeddings": 65 + tokenizer.pad_token_id, "pad_token_id": tokenizer.pad_token_id}
        return RobertaForSequenceClassification(RobertaConfig(**common, **small, **options)), tokenizer
    if kind == "t5":
        tokenizer = byte_tokenizer(pad_token="[PAD]", eos_token="</s>", template="$A </s>", model_max_length=64)
        options = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "initializer_factor": 2.0}
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        return T5ForSequenceClassification(T5Config(**common, **options, **ids, decoder_start_token_id=0)), tokenizer
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 256, "eos_token_id": 256}
    return GPT2ForSequenceClassification(GPT2Config(**common, **size)), byte_tokenizer(**ends)


def save(folder: Path, kind: str, labels: dict[int, str] | None = None) -> str:
    """The folder as a string, with a classifier and its tokenizer in it."""
    model, tokenizer = build(kind, labels)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


KINDS = ["bert", "roberta", "gpt2", "t5", "distilbert", "bart"]
