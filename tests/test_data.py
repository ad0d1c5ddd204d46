"""Making prompts, responses and labels of rows, and the one line a user gets for bad ones."""

from __future__ import annotations

import re
import subprocess
import sys

import pyarrow.parquet
import pytest
from tiny_data import CAUSAL, GOOD, byte_tokenizer, context_of, make, refusal, write

from workbench.config.sources import DataSource
from workbench.data.labeled import labeled_texts
from workbench.data.prompts import encode_responses, row_identities
from workbench.data.sources import read_rows
from workbench.data.templates import TEMPLATES

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)

ENCODER_DECODER = byte_tokenizer(closes_input=True)
CHATTY = byte_tokenizer(chat_template=CHAT)


# Prompts


def test_ids_are_the_texts_tokens(tmp_path):
    rows = [{"prompt": "Who? ", "response": "Tom", "id": 3}]
    source = DataSource(write(tmp_path / "a.jsonl", rows))
    for tokenizer, answer in ((CAUSAL, " Tom"), (ENCODER_DECODER, "Tom")):
        [row], report = make(source, tokenizer, with_responses=True)
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
            DataSource(write(tmp_path / "a.jsonl", [{"prompt": prompt, "response": answer}])), with_responses=True
        )
        text = row["prompt"] + row["response"]
        assert row["prompt_ids"] + row["response_ids"] == [*CAUSAL.encode(text), CAUSAL.eos_token_id]
        assert text == "Who?\nTom" or text == "Who? Tom"


@pytest.mark.parametrize("closes_input", [True, False])
@pytest.mark.parametrize("options", [{"template": "{prompt} Name: "}, {"template": "{prompt}:"}, {"chat": True}])
def test_a_response_alone_has_the_ids_that_it_has_after_its_prompt(tmp_path, options, closes_input):
    tokenizer = byte_tokenizer(closes_input, chat_template=CHAT)
    texts = ["Tom", " Tom", "\nTom", "Tom</s>"]
    path = write(tmp_path / "a.jsonl", [{"prompt": "Who?", "response": text} for text in texts])
    source = DataSource(path, **options)
    rows, _ = make(source, tokenizer, with_responses=True)
    context = context_of(tokenizer)
    assert encode_responses(rows, texts, source, tokenizer, context) == [row["response_ids"] for row in rows]
    assert encode_responses(rows[:1], [""], source, tokenizer, context) == [[tokenizer.eos_token_id]]
    assert encode_responses([], [], source, tokenizer, context) == []


def test_a_response_never_has_two_eos(tmp_path):
    source = DataSource(write(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b</s>"}]))
    assert make(source, with_responses=True)[0][0]["response_ids"].count(CAUSAL.eos_token_id) == 1


def test_what_does_not_fit_is_dropped_and_counted(tmp_path, caplog):
    rows = [{"prompt": "p" * n, "response": "r" * m} for n, m in ((3, 3), (12, 3), (13, 3), (3, 16), (3, 17), (12, 8))]
    path = write(tmp_path / "a.jsonl", rows)
    fitting, report = make(DataSource(path), context_length=20, with_responses=True)  # EOS counts; 20 - 8 leaves 12
    assert [(len(row["prompt"]), len(row["response"])) for row in fitting] == [(3, 3), (12, 3), (3, 16)]
    assert report.dropped == {"prompt_too_long": 1, "response_too_long": 2}
    assert (report.rows_read, report.rows_kept, report.prompt_tokens_max, report.prompt_tokens_median) == (6, 3, 12, 3)
    parts = ("3 of 6 rows kept", "1 dropped (prompt too long)", "2 dropped (response too long)")
    assert all(part in str(report) for part in parts)

    fitting, _ = make(DataSource(path, max_prompt_tokens=3, max_response_tokens=4, limit=1), with_responses=True)
    assert [(len(row["prompt"]), len(row["response"])) for row in fitting] == [(3, 3)]
    _, report = make(DataSource(path, max_prompt_tokens=3, limit=2))
    assert (report.rows_kept, report.dropped["prompt_too_long"], report.duplicate_prompts) == (
        2,
        2,
        1,
    )  # read no further
    # An encoder has its context length to itself, and its decoder another.
    fitting, _ = make(DataSource(path), ENCODER_DECODER, context_length=13, with_responses=True)
    assert len(fitting) == 5
    assert "longer than the specified maximum" not in caplog.text


def test_named_templates(tmp_path):
    rows = [{"instruction": "Add.", "input": "1 {dialogue}"}, {"instruction": "Sing.", "input": ""}]
    fitting, _ = make(DataSource(write(tmp_path / "a.jsonl", rows), template="instruction"))
    assert "### Input:\n1 {dialogue}\n" in fitting[0]["prompt"]
    assert "Input" not in fitting[1]["prompt"]
    assert fitting[1]["prompt"].endswith("### Instruction:\nSing.\n\n### Response:\n")
    source = DataSource(write(tmp_path / "b.jsonl", [{"dialogue": "A: hi"}]), template="dialogue_summary")
    assert make(source)[0][0]["prompt"] == "Summarize the following conversation.\n\nA: hi\n\nSummary:"
    source.template, source.columns = 'Q {"x"}: {question}?', {"question": "dialogue"}
    assert make(source)[0][0]["prompt"] == 'Q {"x"}: A: hi?'
    assert {"dialogue_summary", "instruction", "continuation"} <= set(TEMPLATES)


def test_chat_wraps_the_prompt_and_adds_no_token_of_its_own(tmp_path):
    closing = byte_tokenizer(closes_input=True, chat_template=CHAT)
    source = DataSource(write(tmp_path / "a.jsonl", [{"prompt": "hi ", "response": "Tom"}]), chat=True)
    for tokenizer in (CHATTY, closing):
        [row], _ = make(source, tokenizer, with_responses=True)
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
    [row], _ = make(DataSource(path), CHATTY, with_responses=True)
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
    assert labeled_texts(source, None) == (["a", "b", "c"], ["1", "x", "True"])
    source.limit = 1
    assert labeled_texts(source, ["0", "1"]) == (["a"], ["1"])


def test_a_row_is_the_same_row_under_another_template_case_and_white_space():
    rows = [{"dialogue": "Hello  There", "prompt": "Sum up: Hello  There"}, {"dialogue": "b", "prompt": "b"}]
    short, long = DataSource("x", template="{dialogue}"), DataSource("x", template="Sum up: {dialogue}")
    assert row_identities(rows, short) == ["hello there", "b"] == row_identities(rows, long)


# Bad input: one line that names the file and the place, and the fix


BAD_SOURCES = {
    "split of a file": ({"split": "validation"}, r"file has no split 'validation'; split it with fractions: \{train"),
    "sum": ({"fractions": {"train": 0.9, "validation": 0.2}}, r"sum to 1.* the sum is 1\.1"),
    "negative": ({"fractions": {"train": 1.5, "validation": -0.5}}, r"must be positive"),
    "no fractions": ({"fractions": {}}, r"sum to 1"),
    "unknown fraction": ({"split": "test", "fractions": {"train": 1.0}}, r"'test' is not one of the fractions train"),
    "empty split": ({"split": "b", "fractions": {"a": 0.999, "b": 0.001}}, r"none of its 1 rows falls into split b"),
    "template": ({"template": "instructoin"}, r"'instructoin'; did you mean instruction\?"),
    "template field": ({"template": "{promt}"}, r"line 1: no column 'promt'.*columns: \{promt: prompt\}"),
    "column map": (
        {"columns": {"prompt": "respnse"}},
        r"columns: \{prompt: respnse\}: .*no column 'respnse'.*\{prompt: response\}\?$",
    ),
    "column map, far off": ({"columns": {"prompt": "zzz"}}, r"line 1 has no column 'zzz'; the columns are [a-z, ]*$"),
    "key of the map": (
        {"template": "{dialogue}", "columns": {"dialog": "prompt"}},
        r"no column 'dialogue'; the columns are prompt, response, text, label; columns maps one to dialog;",
    ),
    "all too long": ({"max_prompt_tokens": 2}, r"all 1 rows dropped: prompts have 3 to 3 tokens \(at most 2 fit\)"),
    "context length": (
        {"max_prompt_tokens": 13},
        r"max_prompt_tokens: 13 is above 12, the most .*context length of 20 tokens allows with max_new_tokens 8",
    ),
    "limit": ({"limit": 0}, r"limit: 0 must be at least 1"),
    "chat": ({"chat": True}, r"has no chat template.*chat: false"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_sources(tmp_path, case):
    options, expected = BAD_SOURCES[case]
    path = write(tmp_path / "a.jsonl", GOOD)
    assert re.search(expected, refusal(lambda: make(DataSource(path, **options), context_length=20)))


def test_no_room_for_a_prompt(tmp_path):
    source = DataSource(write(tmp_path / "a.jsonl", GOOD))
    message = refusal(lambda: make(source, max_new_tokens=20, context_length=20))
    assert "max_new_tokens: 20 leaves no room for a prompt in the context length of 20 tokens" in message


BAD_MESSAGES = {
    "text": ("hello", r"line 1: messages must be a list of turns, found 'hello'"),
    "none": ([], r"messages must be a list"),
    "foreign keys": ([{"from": "human", "value": "x"}], r"turn 1 of messages needs role and content"),
    "empty turn": ([{"role": "user", "content": " "}], r"line 1: the content of turn 1 of messages is empty"),
    "answer alone": ([{"role": "assistant", "content": "x"}], r"no turn before the assistant's"),
    "no answer": ([{"role": "user", "content": "x"}], r"the last turn is 'user'; training needs 'assistant'"),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_bad_messages(tmp_path, case):
    messages, expected = BAD_MESSAGES[case]
    path = write(tmp_path / "a.jsonl", [{"messages": messages}])
    assert re.search(expected, refusal(lambda: make(DataSource(path), CHATTY, with_responses=True)))


def test_a_chat_template_that_refuses(tmp_path):
    strict = byte_tokenizer(chat_template="{{ raise_exception('roles must alternate') }}")
    path = write(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "x"}]}])
    assert re.search("line 1: .*roles must alternate", refusal(lambda: make(DataSource(path), strict)))


@pytest.mark.parametrize(
    ("row", "labels", "expected"),
    [
        ({"text": "a", "label": "hat"}, ["hate", "nothate"], r"line 2: label 'hat' is not one of hate, nothate"),
        ({"text": "a", "label": 0.5}, None, r"line 2: label must be a name or an integer, found 0\.5"),
        ({"text": "a", "label": None}, None, r"line 2: label must be .* found None"),
        ({"text": "", "label": "hate"}, None, r"line 2: text is empty"),
        ({"text": ["a"], "label": "hate"}, None, r"line 2: text must be a string, found \['a'\]"),
    ],
)
def test_bad_labels(tmp_path, row, labels, expected):
    path = write(tmp_path / "a.jsonl", [{"text": "fine", "label": "hate"}, row])
    assert re.search(expected, refusal(lambda: labeled_texts(DataSource(path), labels)))


def test_importing_costs_no_torch():
    code = (
        "import sys, workbench.data.prompts; sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
