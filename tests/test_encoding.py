"""A prompt and its response have the tokens of the text together, and what a tokenizer does not know is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoints import SENTENCES, byte_tokenizer, prefix_tokenizer, t5_tokenizer
from tiny_data import refusal, write
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workbench.config.sources import DataSource
from workbench.data.context import Context
from workbench.data.prompts import encode_responses, load_prompts

DECODER, ENCODER_DECODER = Context(is_decoder_only=True), Context(is_decoder_only=False)
ROWS = [
    {"prompt": "Tom: hello, how are you?\n\nSummary:\n", "response": "Tom asks how Ann is."},
    {"prompt": "Ann: I am fine.\n\nSummary: ", "response": "Ann"},
    {"prompt": "Summary:", "response": "Tom"},
    {"prompt": "Summary:", "response": "\nTom"},
]


def make(path: Path, tokenizer, rows=ROWS, context: Context = DECODER, **options):
    source = DataSource(write(path / "rows.jsonl", rows), **options)
    return load_prompts(source, tokenizer, max_new_tokens=4, context=context, with_responses=True)


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>", "$A"])
def test_a_decoder_reads_the_tokens_of_the_text_together(tmp_path: Path, template: str) -> None:
    tokenizer = prefix_tokenizer(template)
    start = [tokenizer.bos_token_id] if "<s>" in template else []
    rows, report = make(tmp_path, tokenizer)
    for row in rows:
        together = tokenizer.encode(row["prompt"] + row["response"], add_special_tokens=False)
        assert row["prompt_ids"] + row["response_ids"] == [*start, *together, tokenizer.eos_token_id]
        assert row["prompt_ids"] == [*start, *tokenizer.encode(row["prompt"], add_special_tokens=False)]
        assert tokenizer.eos_token_id not in row["prompt_ids"]
    assert report.merged_responses == 0
    assert "apart" not in str(report)


def test_a_prompt_without_its_response_has_the_same_tokens(tmp_path: Path) -> None:
    tokenizer = prefix_tokenizer("<s> $A </s>")
    source = DataSource(write(tmp_path / "rows.jsonl", ROWS))
    alone, _ = load_prompts(source, tokenizer, max_new_tokens=4, context=DECODER)
    trained, _ = make(tmp_path, tokenizer)
    assert [row["prompt_ids"] for row in alone] == [row["prompt_ids"] for row in trained]


def test_a_reference_has_the_tokens_that_a_response_has(tmp_path: Path) -> None:
    tokenizer = prefix_tokenizer()
    rows, _ = make(tmp_path, tokenizer)
    responses = [row["response"] for row in rows]
    encoded = encode_responses(rows, responses, DataSource("x", template="{prompt}"), tokenizer, DECODER)
    assert encoded == [row["response_ids"] for row in rows]


def test_a_response_that_merges_with_its_prompt_is_counted_and_gets_no_space(tmp_path: Path) -> None:
    tokenizer = prefix_tokenizer()
    rows, report = make(tmp_path, tokenizer, [{"prompt": "Tom: hel", "response": "lo, how are you?"}])
    assert report.merged_responses == 1
    assert str(report).endswith("; 1 responses tokenized apart: a token would cross the end of the prompt")
    assert tokenizer.decode(rows[0]["prompt_ids"] + rows[0]["response_ids"], skip_special_tokens=True) == (
        "Tom: hello, how are you?"
    )


def test_an_encoder_decoder_is_one_whatever_its_tokenizer_appends(tmp_path: Path) -> None:
    for template in ("$A </s>", "$A"):
        tokenizer = byte_tokenizer(["<pad>", "</s>"], template, pad_token="<pad>", eos_token="</s>")
        rows, _ = make(tmp_path, tokenizer, [{"prompt": "Who? ", "response": "Tom"}], ENCODER_DECODER)
        (row,) = rows
        assert row["prompt_ids"] == tokenizer.encode("Who?")
        assert row["response_ids"] == [*tokenizer.encode("Tom", add_special_tokens=False), 1]


def test_a_response_longer_than_the_decoders_positions_is_dropped(tmp_path: Path) -> None:
    context = Context(is_decoder_only=False, length=64, response_length=8)
    rows = [{"prompt": "a", "response": "b" * length} for length in (7, 8)]  # and EOS
    fitting, report = make(tmp_path, t5_tokenizer(), rows, context)
    assert [len(row["response"]) for row in fitting] == [7]
    assert report.dropped["response_too_long"] == 1
    source = DataSource(write(tmp_path / "rows.jsonl", rows))
    message = refusal(lambda: load_prompts(source, t5_tokenizer(), max_new_tokens=9, context=context))
    assert "max_new_tokens: 9 is above 8, the most tokens that the model's decoder reads" in message


def test_a_token_without_an_embedding_is_refused_only_where_it_occurs(tmp_path: Path) -> None:
    tokenizer = prefix_tokenizer()
    size = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    context = Context(is_decoder_only=True, vocabulary=size)
    assert len(make(tmp_path, tokenizer, ROWS, context)[0]) == len(ROWS)
    rows = [*ROWS, {"prompt": "<|tool|> hello", "response": "Tom"}]
    message = refusal(lambda: make(tmp_path, tokenizer, rows, context))
    assert f"1 of 5 rows contain token {size}, but the model has embeddings for {size} tokens" in message


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of a few letters that reads a line break as a space, as T5's does."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz "])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Replace("\n", " ")
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def test_what_the_tokenizer_does_not_know_is_counted_with_its_characters(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a long enough prompt", "response": "fine"},
        {"prompt": "map {x} to {y}", "response": "use {y}"},
        {"prompt": "one\ntwo", "response": "both"},
    ]
    _, report = make(tmp_path, spaced_tokenizer(), rows, ENCODER_DECODER)
    assert report.unknown is not None
    assert report.unknown.rows == 2
    assert report.unknown.tokens == {"prompts": 4, "responses": 2}
    assert report.unknown.characters == {"{": 3, "}": 3, "\n": 1}
    assert str(report).endswith(
        "; warning: the tokenizer has no token for some text of 2 rows (4 in prompts and 2 in responses read as "
        r"unknown): '{', '}', '\n'"
    )


def test_text_that_is_mostly_unknown_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "\u4f60\u597d\uff0c\u4e16\u754c a", "response": "\u4f60\u597d"}]
    message = refusal(lambda: make(tmp_path, spaced_tokenizer(), rows, ENCODER_DECODER))
    assert "rows.jsonl: the tokenizer has no token for 88% of the characters ('\u4f60', '\u597d', " in message
    assert message.endswith("use a model that was trained on such text")


def test_a_tokenizer_of_bytes_knows_everything(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(["</s>"], eos_token="</s>", unk_token="</s>", bos_token="</s>")
    rows = [{"prompt": f"{SENTENCES[0]}\n\u4f60\u597d {{x}}", "response": "\u4f60\n"}]
    _, report = make(tmp_path, tokenizer, rows)
    assert report.unknown is not None
    assert report.unknown.rows == 0
    assert "unknown" not in str(report)
