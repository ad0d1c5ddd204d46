"""Files of a few rows, a tokenizer of bytes, and the one line that bad input ends with."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from workbench.config.sources import DataSource
from workbench.data.context import Context
from workbench.data.encoding import closing_tokens
from workbench.data.prompts import load_prompts
from workbench.errors import UserError
from workbench.toy import rows


def byte_tokenizer(closes_input: bool = False, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte, but " T" is one token; like T5's it ends its input in EOS when `closes_input`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["</s>", "<s>", *alphabet, "ĠT"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "T")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if closes_input:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", model_max_length=20)
    fast.chat_template = chat_template
    return fast


CAUSAL = byte_tokenizer()
GOOD = [{"prompt": "abc", "response": "d", "text": "t", "label": "ok"}]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def context_of(tokenizer, length: int | None = None) -> Context:
    """The context of a model with this tokenizer: an encoder-decoder where texts end in EOS."""
    return Context(is_decoder_only=not closing_tokens(tokenizer), length=length)


def make(source: DataSource, tokenizer=CAUSAL, *, max_new_tokens=8, context_length=None, with_responses=False):
    return load_prompts(
        source,
        tokenizer,
        max_new_tokens=max_new_tokens,
        context=context_of(tokenizer, context_length),
        with_responses=with_responses,
    )


def refusal(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_chats(path: Path) -> None:
    """Write the file that README, the tutorial and the notebook name."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["chat", "note"])
        writer.writerows([row["dialogue"], row["summary"]] for row in rows("sft", "train"))
