"""Reading rows, making prompts, and the one line a user gets for bad input."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from workbench.config import DataSource
from workbench.data import TEMPLATES, identities, labelled_texts, prompts, read_rows
from workbench.errors import UserError

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


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
ENCODER_DECODER = byte_tokenizer(closes_input=True)
CHATTY = byte_tokenizer(chat_template=CHAT)


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def make(source: DataSource, tokenizer=CAUSAL, *, max_new_tokens=8, window=None, response=False):
    return prompts(source, tokenizer, max_new_tokens=max_new_tokens, window=window, response=response)


# Reading


ROWS = [{"prompt": "one, two", "summary": 'a "b"'}, {"prompt": "line\nbreak\u2028é", "summary": "NA"}]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    table = datasets.Dataset.from_list(ROWS)
    if suffix == ".json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    else:
        getattr(table, f"to_{suffix[1:].replace('jsonl', 'json')}")(path)
    assert read_rows(DataSource(str(path))) == ROWS


def test_a_changed_file_is_read_anew_and_nothing_is_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "rows.jsonl"
    table = tmp_path / "rows.parquet"
    for text in "ab":  # same length, and within the resolution of many file systems' clocks
        write(path, [{"prompt": text}])
        datasets.Dataset.from_list([{"prompt": text}]).to_parquet(table)
        assert read_rows(DataSource(str(path))) == read_rows(DataSource(str(table))) == [{"prompt": text}]
    assert not (tmp_path / "cache").exists()


def test_values_keep_their_types_when_rows_disagree(tmp_path):
    rows = [
        {"prompt": "2020-01-01", "id": 7, "meta": {"x": 1}},
        {"prompt": "2021-01-01", "id": "t1", "meta": {"y": [2]}},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    assert read_rows(DataSource(path)) == rows
    Path(path).write_text(json.dumps(rows))
    assert read_rows(DataSource(path)) == rows
    write(Path(path), [*rows, {"late": 1}])
    assert read_rows(DataSource(path))[-1] == {"prompt": None, "id": None, "meta": None, "late": 1}


def test_a_csv_cell_is_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfprompt,label\nNone,007\n\n1e3,\n")
    rows = read_rows(DataSource(str(tmp_path / "a.csv")))
    assert rows == [{"prompt": "None", "label": "007"}, {"prompt": "1e3", "label": ""}]


def test_columns_map_keeps_the_rest_and_can_swap(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"a": "1", "b": "2", "c": "3"}])
    assert read_rows(DataSource(path, columns={"response": "b", "reference": "b"})) == [
        {"a": "1", "b": "2", "c": "3", "response": "2", "reference": "2"}
    ]
    assert read_rows(DataSource(path, columns={"a": "b", "b": "a"})) == [{"a": "2", "b": "1", "c": "3"}]


def test_a_folder_has_the_splits_its_file_names_say(tmp_path):
    for name in ("train-00000", "train-00001", "pairs_dev", "test"):
        write(tmp_path / f"{name}.jsonl", [{"prompt": name}])
    (tmp_path / "README.md").write_text("notes")

    def names(split):
        return [row["prompt"] for row in read_rows(DataSource(str(tmp_path), split=split))]

    assert names("train") == ["train-00000", "train-00001"]
    assert names("validation") == names("dev") == ["pairs_dev"]
    assert names("test") == ["test"]
    assert read_rows(DataSource(str(tmp_path / "pairs_dev.jsonl"), split="validation")) == [{"prompt": "pairs_dev"}]


def test_a_folder_without_split_names_is_all_train(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", [{"prompt": name}])
    assert [row["prompt"] for row in read_rows(DataSource(str(tmp_path)))] == ["a", "b"]


def test_a_saved_data_set_gives_label_names(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["ok", "bad"])})
    table = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features)
    datasets.DatasetDict({"train": table, "validation": table.select([1])}).save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "a.parquet")
    for path in ("saved", "a.parquet"):
        assert labelled_texts(DataSource(str(tmp_path / path)), ["ok", "bad"]) == (["x", "y"], ["bad", "ok"])
    validation = DataSource(str(tmp_path / "saved"), split="validation")
    assert labelled_texts(validation, None) == (["y"], ["ok"])


def test_embedded_rows_come_from_the_package(monkeypatch):
    embedded = pytest.importorskip("workbench.embedded")
    monkeypatch.setattr(embedded, "rows", lambda name, split: [{"prompt": f"{name} {split}"}])
    assert read_rows(DataSource("embedded:news", split="validation")) == [{"prompt": "news validation"}]


# Splits by hash


FRACTIONS = {"train": 0.7, "validation": 0.2, "test": 0.1}


def split(path: str, name: str, fractions: dict[str, float] = FRACTIONS, **options) -> list[str]:
    source = DataSource(path, split=name, fractions=fractions, **options)
    return [row["prompt"] for row in read_rows(source)]


def test_fractions_cut_by_text_alone(tmp_path):
    texts = [f"text {number}" for number in range(1000)]
    path = write(tmp_path / "a.jsonl", [{"prompt": text} for text in texts])
    parts = {name: split(path, name) for name in FRACTIONS}
    assert sorted(text for part in parts.values() for text in part) == sorted(texts)
    for name, share in FRACTIONS.items():
        assert abs(len(parts[name]) / 1000 - share) < 0.04

    random.Random(0).shuffle(texts)
    more = [{"prompt": text, "other": 1} for text in [*texts, "text  7", "TEXT 7 ", *(f"new {n}" for n in range(99))]]
    longer = write(tmp_path / "b.jsonl", more)
    turned = dict(reversed(FRACTIONS.items()))
    for name, part in parts.items():
        now = split(longer, name, turned)
        assert set(part) <= set(now)
        assert ("text 7" in part) == ("text  7" in now) == ("TEXT 7 " in now)


def test_a_split_does_not_depend_on_wording_or_column_name(tmp_path):
    texts = [f"text {number}" for number in range(50)]
    plain = write(tmp_path / "a.jsonl", [{"prompt": text} for text in texts])
    renamed = write(tmp_path / "b.jsonl", [{"prompt": text, "dialogue": text} for text in texts])
    labelled = write(tmp_path / "c.jsonl", [{"text": text} for text in texts])
    expected = split(plain, "test")
    assert split(renamed, "test", template="dialogue_summary") == expected
    source = DataSource(labelled, split="test", fractions=FRACTIONS)
    assert [row["text"] for row in read_rows(source)] == expected


def test_the_hash_is_pinned(tmp_path):
    """Runs years apart must agree on who was held out: sha256 of these letters starts below 0x80."""
    path = write(tmp_path / "a.jsonl", [{"prompt": text} for text in "abcdefghij"])
    assert split(path, "train", {"train": 0.5, "validation": 0.5}) == list("bcdefj")


# Prompts


def test_ids_are_the_texts_tokens(tmp_path):
    rows = [{"prompt": "Who? ", "response": "Tom", "id": 3}]
    source = DataSource(write(tmp_path / "a.jsonl", rows))
    for tokenizer, answer in ((CAUSAL, " Tom"), (ENCODER_DECODER, "Tom")):
        [row], report = make(source, tokenizer, response=True)
        assert (row["prompt"], row["response"], row["id"]) == ("Who?", answer, 3)
        assert row["prompt_ids"] == tokenizer("Who?")["input_ids"]
        assert row["response_ids"] == [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
        [prompt_only], _ = make(source, tokenizer)
        assert prompt_only["prompt_ids"] == row["prompt_ids"]
        assert prompt_only["response"] == "Tom"
        assert "response_ids" not in prompt_only
        assert report.rows_kept == 1
    assert make(source, ENCODER_DECODER)[0][0]["prompt_ids"][-1] == ENCODER_DECODER.eos_token_id


def test_prompt_and_response_join_to_the_tokens_of_the_whole_text(tmp_path):
    for prompt, answer in (("Who? ", "Tom"), ("Who?", " Tom"), ("Who?\n", "Tom"), ("Who? ", " Tom")):
        [row], _ = make(
            DataSource(write(tmp_path / "a.jsonl", [{"prompt": prompt, "response": answer}])), response=True
        )
        text = row["prompt"] + row["response"]
        assert row["prompt_ids"] + row["response_ids"] == [*CAUSAL.encode(text), CAUSAL.eos_token_id]
        assert text == "Who?\nTom" or text == "Who? Tom"


def test_a_response_never_has_two_eos(tmp_path):
    source = DataSource(write(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b</s>"}]))
    assert make(source, response=True)[0][0]["response_ids"].count(CAUSAL.eos_token_id) == 1


def test_what_does_not_fit_is_dropped_and_counted(tmp_path, caplog):
    rows = [{"prompt": "p" * n, "response": "r" * m} for n, m in ((3, 3), (12, 3), (13, 3), (3, 16), (3, 17), (12, 8))]
    path = write(tmp_path / "a.jsonl", rows)
    kept, report = make(DataSource(path), window=20, response=True)  # EOS counts; 20 - 8 leaves 12
    assert [(len(row["prompt"]), len(row["response"])) for row in kept] == [(3, 3), (12, 3), (3, 16)]
    assert report.dropped == {"prompt_too_long": 1, "response_too_long": 2}
    assert (report.rows_read, report.rows_kept, report.prompt_tokens_max, report.prompt_tokens_median) == (6, 3, 12, 3)
    assert all(part in str(report) for part in ("3 of 6 rows kept", "1 prompt too long", "2 response too long"))

    kept, _ = make(DataSource(path, max_prompt_tokens=3, max_response_tokens=4, limit=1), response=True)
    assert [(len(row["prompt"]), len(row["response"])) for row in kept] == [(3, 3)]
    _, report = make(DataSource(path, max_prompt_tokens=3, limit=2))
    assert (report.rows_kept, report.dropped["prompt_too_long"], report.duplicate_prompts) == (
        2,
        2,
        1,
    )  # read no further
    # An encoder has the window to itself, and its decoder another.
    kept, _ = make(DataSource(path), ENCODER_DECODER, window=13, response=True)
    assert len(kept) == 5
    assert "longer than the specified maximum" not in caplog.text


def test_named_templates(tmp_path):
    rows = [{"instruction": "Add.", "input": "1 {dialogue}"}, {"instruction": "Sing.", "input": ""}]
    kept, _ = make(DataSource(write(tmp_path / "a.jsonl", rows), template="instruction"))
    assert "### Input:\n1 {dialogue}\n" in kept[0]["prompt"]
    assert "Input" not in kept[1]["prompt"]
    assert kept[1]["prompt"].endswith("### Instruction:\nSing.\n\n### Response:\n")
    source = DataSource(write(tmp_path / "b.jsonl", [{"dialogue": "A: hi"}]), template="dialogue_summary")
    assert make(source)[0][0]["prompt"] == "Summarize the following conversation.\n\nA: hi\n\nSummary:"
    source.template, source.columns = 'Q {"x"}: {question}?', {"question": "dialogue"}
    assert make(source)[0][0]["prompt"] == 'Q {"x"}: A: hi?'
    assert {"dialogue_summary", "instruction", "continuation"} <= set(TEMPLATES)


def test_chat_wraps_the_prompt_and_adds_no_token_of_its_own(tmp_path):
    closing = byte_tokenizer(closes_input=True, chat_template=CHAT)
    source = DataSource(write(tmp_path / "a.jsonl", [{"prompt": "hi ", "response": "Tom"}]), chat=True)
    for tokenizer in (CHATTY, closing):
        [row], _ = make(source, tokenizer, response=True)
        assert row["prompt"] == "<s>user: hi </s><s>assistant: "
        assert row["prompt_ids"] == tokenizer.encode(row["prompt"], add_special_tokens=False)
        assert (row["response"], row["response_ids"][-1]) == ("Tom", tokenizer.eos_token_id)


def test_messages_split_at_the_last_assistant_turn(tmp_path):
    talk = [
        {"role": "system", "content": "s", "name": "x"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
    ]
    whole = [*talk, {"role": "assistant", "content": "b"}]
    seen = "<s>system: s</s><s>user: u</s><s>assistant: a</s><s>user: v</s><s>assistant: "
    path = write(tmp_path / "a.jsonl", [{"messages": whole}])
    [row], _ = make(DataSource(path), CHATTY, response=True)
    assert (row["prompt"], row["response"]) == (seen, "b")
    [row], _ = make(DataSource(write(tmp_path / "b.jsonl", [{"messages": talk}])), CHATTY)
    assert row["prompt"] == seen
    # Parquet gives every turn every key, here a name that is None; the template must see what was written.
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": talk}]), tmp_path / "c.parquet")
    naming = byte_tokenizer(chat_template="{% for m in messages %}{{ m['role'] }} {{ 'name' in m }};{% endfor %}")
    [row], _ = make(DataSource(str(tmp_path / "c.parquet")), naming)
    assert row["prompt"] == "system True;user False;assistant False;user False;"
    assert len(read_rows(DataSource(path, fractions={"train": 1.0}))) == 1


# Labels and overlap


def test_labels_become_strings(tmp_path):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": "x"}, {"text": "c", "label": True}]
    source = DataSource(write(tmp_path / "a.jsonl", rows))
    assert labelled_texts(source, None) == (["a", "b", "c"], ["1", "x", "True"])
    source.limit = 1
    assert labelled_texts(source, ["0", "1"]) == (["a"], ["1"])


def test_a_row_is_the_same_row_under_another_template_case_and_white_space():
    rows = [{"dialogue": "Hello  There", "prompt": "Sum up: Hello  There"}, {"dialogue": "b", "prompt": "b"}]
    short, long = DataSource("x", template="{dialogue}"), DataSource("x", template="Sum up: {dialogue}")
    assert identities(rows, short) == ["hello there", "b"] == identities(rows, long)


# Bad input: one line that names the file and the place, and the fix


BAD_FILES = {
    "broken line": ("a.jsonl", '{"prompt": "x"}\n\n{"prompt": \n', r"a\.jsonl line 3: broken JSON: Expecting value"),
    "broken list": ("a.json", '[{"prompt": "x"},\n{"prompt" "y"}]', r"a\.json line 2: broken JSON"),
    "not an object": ("a.jsonl", '{"prompt": "x"}\n"y"\n', r"a\.jsonl line 2: a row must be an object .*found 'y'"),
    "empty": ("a.jsonl", "", r"a\.jsonl: the file is empty"),
    "blank": ("a.csv", "\n \n", r"a\.csv: the file is empty"),
    "empty list": ("a.json", "[]", r"a\.json: there are no rows"),
    "header alone": ("a.csv", "prompt,b\n", r"a\.csv: there are no rows"),
    "extension": ("a.txt", "hello", r"a\.txt: unknown extension '\.txt'; use \.jsonl, \.json, \.csv, \.parquet"),
    "invalid utf-8": ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "\xff"}\n', r"a\.jsonl line 2: not UTF-8"),
    "latin-1": ("a.csv", "prompt\nx\né\n".encode("latin-1"), r"a\.csv line 3: not UTF-8"),
    "binary": ("a.json", bytes(range(256)), r"a\.json line \d: not UTF-8"),
    "not parquet": ("a.parquet", "hello", r"a\.parquet: not a parquet file"),
    "cut parquet": ("a.parquet", b"PAR1hello", r"a\.parquet: cannot be read"),
    "short line": ("a.csv", 'prompt,b\n"x\ny",1\nz\n', r"a\.csv line 4: 1 cells under a header of 2"),
    "long line": ("a.csv", "prompt,b\nx,1\nz,2,3\n", r"a\.csv line 3: 3 cells under a header of 2"),
    "open quote": ("a.csv", 'prompt,b\n"x,1\nz,2\n', r"a\.csv line \d: broken CSV"),
    "two columns of a name": ("a.csv", "prompt,prompt\nx,1\n", r"a\.csv line 1: a column name appears twice"),
    "null": ("a.jsonl", '{"prompt": "x"}\n\n{"b": 1}\n', r"a\.jsonl line 3: prompt is missing"),
    "surrogate": ("a.jsonl", '{"prompt": "x\\ud800"}', r"a\.jsonl line 1: prompt holds half a surrogate pair"),
    "spaces": ("a.csv", 'prompt\n"x\ny"\n"  "\nz\n"\t",\n', r"a\.csv line 6: 2 cells"),
    "blank row": ("a.csv", 'prompt\nx\n\n"  "\n', r"a\.csv line 4: prompt is empty"),
    "empty prompt": ("a.csv", "prompt,b\nx,1\n  ,2\n", r"a\.csv line 3: prompt is empty"),
    "number": ("a.json", '[{"prompt": "x"}, {"prompt": 5}]', r"a\.json row 2: prompt must be text, found 5 \(int\)"),
    "missing column": (
        "a.jsonl",
        '{"promt": "x", "id": 1}',
        r"a\.jsonl line 1: no column 'prompt'; the columns are promt, id; .*columns: \{prompt: promt\}",
    ),
}


def refusal(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path, case):
    name, content, expected = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(expected, refusal(lambda: make(DataSource(str(path)))))
    assert str(path) in refusal(lambda: make(DataSource(str(path))))


GOOD = [{"prompt": "abc", "response": "d", "text": "t", "label": "ok"}]
BAD_SOURCES = {
    "split of a file": ({"split": "validation"}, r"one file has no split 'validation'; cut it with fractions: \{train"),
    "sum": ({"fractions": {"train": 0.9, "validation": 0.2}}, r"add to 1.* add to 1\.1"),
    "negative": ({"fractions": {"train": 1.5, "validation": -0.5}}, r"must be positive"),
    "no fractions": ({"fractions": {}}, r"add to 1"),
    "unknown fraction": ({"split": "test", "fractions": {"train": 1.0}}, r"'test' is not one of the fractions train"),
    "empty split": ({"split": "b", "fractions": {"a": 0.999, "b": 0.001}}, r"none of its 1 rows falls into split b"),
    "template": ({"template": "instructoin"}, r"'instructoin'; did you mean instruction\?"),
    "template field": ({"template": "{promt}"}, r"line 1: no column 'promt'.*columns: \{promt: prompt\}"),
    "column map": ({"columns": {"prompt": "dialog"}}, r"line 1: no column 'dialog'"),
    "all too long": ({"max_prompt_tokens": 2}, r"all 1 rows dropped: prompts have 3 to 3 tokens \(at most 2 fit\)"),
    "window": ({"max_prompt_tokens": 13}, r"max_prompt_tokens 13 .*window of 20 tokens leaves 12 .*max_new_tokens 8"),
    "limit": ({"limit": 0}, r"limit is 0"),
    "chat": ({"chat": True}, r"has no chat template.*chat: false"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_sources(tmp_path, case):
    options, expected = BAD_SOURCES[case]
    path = write(tmp_path / "a.jsonl", GOOD)
    assert re.search(expected, refusal(lambda: make(DataSource(path, **options), window=20)))


def test_no_room_for_a_prompt(tmp_path):
    source = DataSource(write(tmp_path / "a.jsonl", GOOD))
    message = refusal(lambda: make(source, max_new_tokens=20, window=20))
    assert "max_new_tokens 20" in message
    assert "window of 20" in message


BAD_MESSAGES = {
    "text": ("hello", r"line 1: messages must be a list of turns, found 'hello'"),
    "none": ([], r"messages must be a list"),
    "foreign keys": ([{"from": "human", "value": "x"}], r"turn 1 of messages needs role and content"),
    "empty turn": ([{"role": "user", "content": " "}], r"line 1: the content of turn 1 of messages is empty"),
    "answer alone": ([{"role": "assistant", "content": "x"}], r"no turn before the assistant's"),
    "no answer": ([{"role": "user", "content": "x"}], r"the last turn is 'user', training needs 'assistant'"),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_bad_messages(tmp_path, case):
    messages, expected = BAD_MESSAGES[case]
    path = write(tmp_path / "a.jsonl", [{"messages": messages}])
    assert re.search(expected, refusal(lambda: make(DataSource(path), CHATTY, response=True)))


def test_a_chat_template_that_refuses(tmp_path):
    strict = byte_tokenizer(chat_template="{{ raise_exception('roles must alternate') }}")
    path = write(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "x"}]}])
    assert re.search("line 1: .*roles must alternate", refusal(lambda: make(DataSource(path), strict)))


@pytest.mark.parametrize(
    ("row", "labels", "expected"),
    [
        ({"text": "a", "label": "hat"}, ["hate", "nothate"], r"line 2: label 'hat' is not one of hate, nothate"),
        ({"text": "a", "label": 0.5}, None, r"line 2: label must be a name or a whole number, found 0\.5"),
        ({"text": "a", "label": None}, None, r"line 2: label must be .* found None"),
        ({"text": "", "label": "hate"}, None, r"line 2: text is empty"),
        ({"text": ["a"], "label": "hate"}, None, r"line 2: text must be text, found \['a'\]"),
    ],
)
def test_bad_labels(tmp_path, row, labels, expected):
    path = write(tmp_path / "a.jsonl", [{"text": "fine", "label": "hate"}, row])
    assert re.search(expected, refusal(lambda: labelled_texts(DataSource(path), labels)))


def test_missing_paths_name_the_nearest_sibling(tmp_path, monkeypatch):
    (tmp_path / "dialogsum").mkdir()
    write(tmp_path / "dialogsum" / "train.jsonl", GOOD)
    monkeypatch.chdir(tmp_path)
    for path in (str(tmp_path / "dialogsum/trian.jsonl"), "dialogsum/trian.jsonl", "./dialogsum/trian.jsonl"):
        message = refusal(lambda path=path: read_rows(DataSource(path)))
        assert re.search(r"trian\.jsonl: no such file or folder.*did you mean .*dialogsum/train\.jsonl\?", message)
    message = refusal(lambda: read_rows(DataSource("dialogsun/train.jsonl")))
    assert re.search(r"no 'dialogsun'; did you mean dialogsum\?", message)
    assert "no such file" in refusal(lambda: read_rows(DataSource("dialogsum/train.jsonl/x.csv")))


def test_names_that_are_neither_a_path_nor_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "path: it is empty" in refusal(lambda: read_rows(DataSource("")))
    for name in ("json", "a/b/c", "two words"):
        assert f"{name}: no such file or folder" in refusal(lambda name=name: read_rows(DataSource(name)))


def test_bad_folders(tmp_path):
    assert "holds no .jsonl" in refusal(lambda: read_rows(DataSource(str(tmp_path))))
    write(tmp_path / "train.jsonl", GOOD)
    missing = refusal(lambda: read_rows(DataSource(str(tmp_path), split="test")))
    assert re.search("no split 'test'; its files make the splits train", missing)
    (tmp_path / "train.csv").write_text("prompt\nabc\n")
    assert "several formats: train.csv, train.jsonl" in refusal(lambda: read_rows(DataSource(str(tmp_path))))


# The hub


class Unreachable(Exception):
    pass


def test_no_network_and_nothing_cached_is_one_line_at_once(tmp_path, monkeypatch):
    import huggingface_hub

    def refuse(*arguments, **options):
        raise Unreachable

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for name in ("nobody/nothing", "nothing"):
        message = refusal(lambda name=name: read_rows(DataSource(name)))
        assert re.search(
            r"no such file or folder.*cannot be reached, and nothing of it is cached: give a local path", message
        )
    assert datasets.config.HF_HUB_OFFLINE is False


def test_without_a_network_the_cache_is_read(monkeypatch):
    import huggingface_hub

    def refuse(*arguments, **options):
        raise Unreachable

    def load(path, split):
        assert datasets.config.HF_HUB_OFFLINE
        return datasets.Dataset.from_dict({"prompt": [f"{path} {split}"]})

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_rows(DataSource("some/set")) == [{"prompt": "some/set train"}]
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_split_the_hub_does_not_have(monkeypatch):
    import huggingface_hub

    def load(path, split):
        raise ValueError('Unknown split "x". Should be one of ["train"].\nmore')

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *arguments, **options: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert "Unknown split" in refusal(lambda: read_rows(DataSource("some/set", split="x")))


def test_importing_costs_no_torch():
    code = "import sys, workbench.data; sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
