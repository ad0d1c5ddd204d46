"""Reading rows from files, folders and the hub, and the one line a user gets where that fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pytest
from tiny_data import GOOD, make, refusal, write

from workbench import toy
from workbench.config.sources import DataSource
from workbench.data.labeled import labeled_texts
from workbench.data.sources import read_rows
from workbench.run.hub import hub_is_reachable

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
        assert labeled_texts(DataSource(str(tmp_path / path)), ["ok", "bad"]) == (["x", "y"], ["bad", "ok"])
    validation = DataSource(str(tmp_path / "saved"), split="validation")
    assert labeled_texts(validation, None) == (["y"], ["ok"])


def test_toy_rows_come_from_the_package(monkeypatch):
    monkeypatch.setattr(toy, "rows", lambda name, split: [{"prompt": f"{name} {split}"}])
    assert read_rows(DataSource("toy:news", split="validation")) == [{"prompt": "news validation"}]


def test_the_old_prefix_of_the_toy_data_names_the_new_one():
    message = refusal(lambda: read_rows(DataSource("embedded:sft")))
    assert message == "embedded:sft: no such file or folder; did you mean toy:sft?"


# Bad input: one line that names the file and the place, and the fix


BAD_FILES = {
    "broken line": ("a.jsonl", '{"prompt": "x"}\n\n{"prompt": \n', r"a\.jsonl line 3: broken JSON: Expecting value"),
    "broken list": ("a.json", '[{"prompt": "x"},\n{"prompt" "y"}]', r"a\.json line 2: broken JSON"),
    "not an object": ("a.jsonl", '{"prompt": "x"}\n"y"\n', r"a\.jsonl line 2: a row must be an object .*found 'y'"),
    "empty": ("a.jsonl", "", r"a\.jsonl: the file is empty"),
    "blank": ("a.csv", "\n \n", r"a\.csv: the file is empty"),
    "empty list": ("a.json", "[]", r"a\.json: it has no rows"),
    "header alone": ("a.csv", "prompt,b\n", r"a\.csv: it has no rows"),
    "extension": ("a.txt", "hello", r"a\.txt: unknown extension '\.txt'; use \.jsonl, \.json, \.csv, \.parquet"),
    "invalid utf-8": ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "\xff"}\n', r"a\.jsonl line 2: not UTF-8"),
    "latin-1": ("a.csv", "prompt\nx\né\n".encode("latin-1"), r"a\.csv line 3: not UTF-8"),
    "binary": ("a.json", bytes(range(256)), r"a\.json line \d: not UTF-8"),
    "not parquet": ("a.parquet", "hello", r"a\.parquet: not a parquet file"),
    "cut parquet": ("a.parquet", b"PAR1hello", r"a\.parquet: cannot be read"),
    "short line": ("a.csv", 'prompt,b\n"x\ny",1\nz\n', r"a\.csv line 4: 1 cells, but the header has 2"),
    "long line": ("a.csv", "prompt,b\nx,1\nz,2,3\n", r"a\.csv line 3: 3 cells, but the header has 2"),
    "open quote": ("a.csv", 'prompt,b\n"x,1\nz,2\n', r"a\.csv line \d: broken CSV"),
    "two columns of a name": ("a.csv", "prompt,prompt\nx,1\n", r"a\.csv line 1: a column name appears twice"),
    "null": ("a.jsonl", '{"prompt": "x"}\n\n{"b": 1}\n', r"a\.jsonl line 3: prompt is missing"),
    "surrogate": ("a.jsonl", '{"prompt": "x\\ud800"}', r"a\.jsonl line 1: prompt contains a lone surrogate"),
    "spaces": ("a.csv", 'prompt\n"x\ny"\n"  "\nz\n"\t",\n', r"a\.csv line 6: 2 cells"),
    "blank row": ("a.csv", 'prompt\nx\n\n"  "\n', r"a\.csv line 4: prompt is empty"),
    "empty prompt": ("a.csv", "prompt,b\nx,1\n  ,2\n", r"a\.csv line 3: prompt is empty"),
    "number": (
        *("a.json", '[{"prompt": "x"}, {"prompt": 5}]'),
        r"a\.json row 2: prompt must be a string, found 5 \(int\)",
    ),
    "missing column": (
        "a.jsonl",
        '{"promt": "x", "id": 1}',
        r"a\.jsonl line 1: no column 'prompt'; the columns are promt, id; .*columns: \{prompt: promt\}",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path, case):
    name, content, expected = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(expected, refusal(lambda: make(DataSource(str(path)))))
    assert str(path) in refusal(lambda: make(DataSource(str(path))))


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
    assert "path: '' is blank" in refusal(lambda: read_rows(DataSource("")))
    for name in ("json", "a/b/c", "two words"):
        assert f"{name}: no such file or folder" in refusal(lambda name=name: read_rows(DataSource(name)))


def test_bad_folders(tmp_path):
    assert "contains no .jsonl" in refusal(lambda: read_rows(DataSource(str(tmp_path))))
    write(tmp_path / "train.jsonl", GOOD)
    missing = refusal(lambda: read_rows(DataSource(str(tmp_path), split="test")))
    assert re.search("no split 'test'; its files define the splits train", missing)
    (tmp_path / "train.csv").write_text("prompt\nabc\n")
    assert "several formats: train.csv, train.jsonl" in refusal(lambda: read_rows(DataSource(str(tmp_path))))


# The hub


class Unreachable(Exception):
    pass


@pytest.fixture(autouse=True)
def nothing_known_of_the_hub():
    hub_is_reachable.cache_clear()
    yield
    hub_is_reachable.cache_clear()


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
        assert re.search(r"no such file or folder.*hub cannot be reached.* is not cached: use a local path", message)
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
