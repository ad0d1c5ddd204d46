"""Tiny models in folders, in the shapes that users bring, and with tokenizers trained on a few sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

SENTENCES = ["Tom: hello, how are you?", "Ann: I am fine, thank you.", "Summary: Tom asks how Ann is."] * 4
LABELS = {"id2label": {0: "toxic", 1: "clean"}, "label2id": {"toxic": 0, "clean": 1}}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BART_SIZES = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
}


def prefix_tokenizer(template: str = "<s> $A", **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a space in front of every text, as Llama 2's does."""
    special = ["<unk>", "<s>", "</s>"]
    inner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=160, special_tokens=special, initial_alphabet=["\n", "\u2581"], show_progress=False
    )
    inner.train_from_iterator([*SENTENCES, "\n"], trainer)
    marks = [(token, special.index(token)) for token in special if token in template]
    inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names | options)


def byte_tokenizer(special: list[str], template: str = "$A", **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes behind the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *alphabet])}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    marks = [(token, special.index(token)) for token in special if token in template.split()]
    inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **options)


def bart_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer with Bart's special tokens."""
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
    return byte_tokenizer(list(names.values()), "<s> $A </s>", **names | options)


def t5_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer with T5's special tokens."""
    names = {"pad_token": "<pad>", "eos_token": "</s>"}
    return byte_tokenizer(list(names.values()), "$A </s>", **names | options)


def t5(**options: Any) -> T5ForConditionalGeneration:
    """A T5 for `t5_tokenizer`."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**{"vocab_size": 258, "decoder_start_token_id": 0} | sizes | options))


def bart(*, classifier: bool = False) -> PreTrainedModel:
    """A Bart of 64 positions for `bart_tokenizer`."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    sizes = BART_SIZES | {"vocab_size": 259, "d_model": 16, "max_position_embeddings": 64}
    config = BartConfig(**ids, **sizes, **LABELS)
    return BartForSequenceClassification(config) if classifier else BartForConditionalGeneration(config)


def opt_classifier() -> OPTForSequenceClassification:
    """An OPT of 64 positions for `bart_tokenizer`."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32}
    ids = {"vocab_size": 259, "word_embed_proj_dim": 16, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
    return OPTForSequenceClassification(OPTConfig(**sizes, **ids, **LABELS, max_position_embeddings=64))


def llama(vocabulary: int, *, classifier: bool = False, positions: int = 128) -> PreTrainedModel:
    """A Llama for `prefix_tokenizer`."""
    torch.manual_seed(0)
    ids = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(**SIZES, **ids, **LABELS, max_position_embeddings=positions, initializer_range=0.2)
    return LlamaForSequenceClassification(config) if classifier else LlamaForCausalLM(config)


def saved(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """The folder as a string, with a model and its tokenizer in it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
