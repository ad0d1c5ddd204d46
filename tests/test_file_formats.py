"""Files as spreadsheets, hub clones and command lines write them: read, or named in one line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from tiny_data import CAUSAL, make, refusal, write

from workbench.config.parsing import parse
from workbench.config.sources import DataSource
from workbench.data import formats
from workbench.data.sources import read_rows, source_hash
from workbench.evaluation.prompt_sets import row_references
from workbench.run.files import content_hash

ROWS = [{"prompt": "a, b; c", "summary": 'say "x"'}, {"prompt": "two\nlines", "summary": "é"}]


def rows_of(path: Path, content: str | bytes, **options: object) -> list[dict]:
    """The rows of a new file."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(DataSource(str(path), **options))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'prompt,summary\n"a, b; c","say ""x"""\n"two\nlines",é\n'),
        ("a.csv", 'prompt;summary\n"a, b; c";"say ""x"""\n"two\nlines";é\n'),
        ("a.csv", 'prompt\tsummary\na, b; c\t"say ""x"""\n"two\nlines"\té\n'),
        ("a.tsv", 'prompt\tsummary\r\na, b; c\t"say ""x"""\r\n"two\nlines"\té\r\n'),
        ("a.csv", 'sep=;\nprompt;summary\n"a, b; c";"say ""x"""\n"two\nlines";é\n'),
        ("a.csv", '\ufeff"prompt";"summary"\n"a, b; c";"say ""x"""\n"two\nlines";é\n'),
        ("a.csv", 'prompt, summary\n"a, b; c", "say ""x"""\n"two\nlines", é\n'),
        ("a.csv", 'prompt,summary,,\n"a, b; c","say ""x""",,\n"two\nlines",é,,\n'),
        ("a.csv", '\n,\nprompt,summary\n"a, b; c","say ""x"""\n,\n"two\nlines",é\n,\n\n'),
        ("a.csv", ',prompt,summary\n0,"a, b; c","say ""x"""\n1,"two\nlines",é\n'),  # an index, as pandas writes it
        ("a.ndjson", "\n".join(map(json.dumps, ROWS))),
        ("a.jsonl", "\ufeff" + "\r\n".join(map(json.dumps, ROWS))),
    ],
)
def test_the_same_rows_however_a_program_wrote_them(name: str, content: str, tmp_path: Path) -> None:
    assert rows_of(tmp_path / name, content) == ROWS


def test_a_single_column_keeps_its_delimiters(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a.csv", "prompt\nx; y\n") == [{"prompt": "x; y"}]
    assert rows_of(tmp_path / "b.csv", "prompt,b\n  x , y\n") == [{"prompt": "  x ", "b": " y"}]  # blanks are text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "prompt;b\nx;1;2\n",
            r'line 2: 3 cells, but the header has 2; put "\.\.\." around text that contains semicolons',
        ),
        ("prompt,b,,\nx,1,,\ny,2,z,\n", r"line 3: 'z' is in a column without a name; name it in the header"),
        ("sep=;\nprompt;b\nx\n", r"line 3: 1 cells"),
        ("prompt , prompt\nx,1\n", r"line 1: a column name appears twice: prompt, prompt"),
        (",,\n,\n", r"the file is empty"),
    ],
)
def test_a_broken_table_is_named(content: str, message: str, tmp_path: Path) -> None:
    assert re.search(message, refusal(lambda: rows_of(tmp_path / "a.csv", content)))


REPEATED = '{"dialogue": "a", "summary": "b", "dialogue": "c"}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", f'{{"dialogue": "x"}}\n\n{REPEATED}\n', "line 3: the key 'dialogue' appears twice"),
        ("a.jsonl", f'{{"dialogue": "x", "turns": [{REPEATED}]}}\n', "line 1: the key 'dialogue' appears twice"),
        ("a.json", f'[\n{{"dialogue": "x"}},\n  {{"dialogue":\n"y"}} ,\n{REPEATED}]', "line 5: the key 'dialogue'"),
        ("a.json", f"[{REPEATED}]", "line 1: the key 'dialogue' appears twice in an object; keep one"),
    ],
)
def test_a_repeated_key_is_named_with_its_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    reason = refusal(lambda: rows_of(tmp_path / name, content))
    assert reason.startswith(str(tmp_path / name))
    assert message in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_files(suffix: str, compress: object, tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    assert rows_of(tmp_path / f"a.jsonl{suffix}", compress(lines)) == ROWS
    assert rows_of(tmp_path / f"a.tsv{suffix}", compress(b"prompt\tb\nx\t1\n")) == [{"prompt": "x", "b": "1"}]
    assert "line 2: not UTF-8" in refusal(lambda: rows_of(tmp_path / f"b.csv{suffix}", compress(b"prompt\n\xff\n")))
    assert "line 1: broken JSON" in refusal(lambda: rows_of(tmp_path / f"b.json{suffix}", compress(b"{")))
    for broken in (compress(lines)[:-12], b"hello"):
        message = refusal(lambda broken=broken: rows_of(tmp_path / f"c.jsonl{suffix}", broken))
        assert re.search(rf"c\.jsonl\{suffix}: (cannot be read|broken)", message)


def test_a_compression_without_its_package_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(formats.COMPRESSIONS, ".zst", "backports.zstd")
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    message = refusal(lambda: rows_of(tmp_path / "a.jsonl.zst", b"(\xb5/\xfd"))
    assert message.endswith("python -m pip install backports-zstd; or decompress the file")
    monkeypatch.setitem(formats.COMPRESSIONS, ".zst", "gzip")  # whichever package it is, it opens like gzip
    assert rows_of(tmp_path / "a.jsonl.zst", gzip.compress(b'{"prompt": "x"}')) == [{"prompt": "x"}]


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    for name in ("train.parquet", "train.jsonl"):
        message = refusal(lambda name=name: rows_of(tmp_path / name, "version https://git-lfs.github.com/spec/v1\noid"))
        assert message.endswith("a Git LFS pointer, not the file itself; fetch it with: git lfs pull")


def clone(folder: Path, readme: str) -> Path:
    """A cloned hub dataset with two shards of train and one of validation."""
    (folder / "data").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "README.md").write_text(readme)
    (folder / "dataset_infos.json").write_text("{}")
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        datasets.Dataset.from_list([{"prompt": name}]).to_parquet(folder / "data" / f"{name}.parquet")
    return folder


DECLARED = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/validation-*
  - split: heldout
    path: [data/train-*]
---
# A dataset
"""


def test_a_clone_of_a_hub_dataset_is_read_from_its_root(tmp_path: Path) -> None:
    plain = clone(tmp_path / "plain", "---\nconfigs: []\n---\n# A dataset\n")

    def prompts(folder: Path, split: str) -> list[str]:
        return [row["prompt"] for row in read_rows(DataSource(str(folder), split=split))]

    assert prompts(plain, "train") == ["train-00000-of-00002", "train-00001-of-00002"]
    assert prompts(plain, "dev") == prompts(plain, "validation") == ["validation-00000-of-00001"]
    declared = clone(tmp_path / "declared", DECLARED)
    assert prompts(declared, "heldout") == ["train-00000-of-00002", "train-00001-of-00002"]
    assert prompts(declared, "train") == ["validation-00000-of-00001"]
    assert "no split 'test'; its files define the splits train, heldout" in refusal(lambda: prompts(declared, "test"))
    (plain / "data" / "train-00001-of-00002.parquet").unlink()
    assert "1 of the 2 files train-*-of-00002 are there" in refusal(lambda: prompts(plain, "train"))


def test_what_a_readme_must_not_declare(tmp_path: Path) -> None:
    write(tmp_path / "secret.jsonl", [{"prompt": "s"}])
    for pattern in ("../secret.jsonl", str(tmp_path / "secret.jsonl")):
        folder = clone(tmp_path / f"clone{len(pattern)}", f"---\nconfigs:\n- data_files: {pattern}\n---\n")
        assert "use a path inside the folder" in refusal(lambda folder=folder: read_rows(DataSource(str(folder))))
    several = clone(
        tmp_path / "several", "---\nconfigs: [{config_name: en, data_files: data/*}, {config_name: de}]\n---\n"
    )
    message = refusal(lambda: read_rows(DataSource(str(several))))
    assert message.endswith("README.md declares several configurations: en, de; set path to the files of one")


def test_folders_named_after_splits_and_others(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        (tmp_path / "splits" / name).mkdir(parents=True)
        write(tmp_path / "splits" / name / "0000.jsonl", [{"prompt": name}])
    assert read_rows(DataSource(str(tmp_path / "splits"), split="validation")) == [{"prompt": "dev"}]
    for name in ("english", "german"):
        (tmp_path / "languages" / name).mkdir(parents=True)
        write(tmp_path / "languages" / name / "train.jsonl", [{"prompt": name}])
    message = refusal(lambda: read_rows(DataSource(str(tmp_path / "languages"))))
    assert message.endswith("set path to english, german in it")


def test_saved_datasets_have_other_words_for_their_splits(tmp_path: Path) -> None:
    tables = {name: datasets.Dataset.from_list([{"prompt": name}]) for name in ("train", "dev", "eval")}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "saved")

    def read(split: str) -> list[dict]:
        return read_rows(DataSource(str(tmp_path / "saved"), split=split))

    assert read("validation") == read("val") == read("dev") == [{"prompt": "dev"}]
    assert read("test") == [{"prompt": "eval"}]
    assert "no split 'other'; the dataset has train, dev, eval" in refusal(lambda: read("other"))
    datasets.DatasetDict(tables | {"val": tables["dev"]}).save_to_disk(tmp_path / "two")
    assert "no split 'validation'" in refusal(lambda: read_rows(DataSource(str(tmp_path / "two"), split="validation")))


def test_several_columns_become_a_list_of_references(tmp_path: Path) -> None:
    content = "dialogue,summary1,summary2,summary3\nhello,a,b,c\nbye,d,,\n"
    columns = {"prompt": "dialogue", "reference": ["summary1", "summary2", "summary3"]}
    rows = rows_of(tmp_path / "a.csv", content, columns=columns)
    assert [row_references(row) for row in rows] == [["a", "b", "c"], ["d"]]
    wrong = DataSource(str(tmp_path / "a.csv"), columns={"reference": ["summary1", "summary4"]})
    assert "has no column 'summary4'" in refusal(lambda: read_rows(wrong))


@pytest.mark.parametrize(
    ("value", "expected"), [("[s1, s2]", ["s1", "s2"]), ("s1", "s1"), ("{a: b}", None), ("[1]", None)]
)
def test_the_configuration_takes_a_column_or_a_list(value: str, expected: object, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "name: x\npolicy: {model: toy:gpt2}\nreward: {model: length}\n"
        "evaluation: {data: {x: {path: x.csv}}}\n"
        f"ppo: {{data: {{path: x.csv, columns: {{reference: {value}}}}}}}\n"
    )
    if expected is None:
        assert "must be a string" in refusal(lambda: parse(["--config", str(file)]))
    else:
        config, _ = parse(["--config", str(file)])
        assert config.ppo.data.columns == {"reference": expected}


def test_the_hash_of_a_source_changes_with_its_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "x"}])
    assert source_hash(DataSource(path)) == content_hash(Path(path))
    assert source_hash(DataSource("toy:sft")) is None
    assert source_hash(DataSource("some/set")) is None
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("train-a", "train-b", "dev"):
        write(folder / f"{name}.jsonl", [{"prompt": name}])
    source = DataSource(str(folder))
    before = source_hash(source)
    write(folder / "dev.jsonl", [{"prompt": "changed"}])  # of another split
    assert source_hash(source) == before
    write(folder / "train-b.jsonl", [{"prompt": "changed"}])
    changed = source_hash(source)
    (folder / "train-b.jsonl").rename(folder / "train-c.jsonl")
    assert len({before, changed, source_hash(source), None}) == 4
    datasets.Dataset.from_list([{"prompt": "x"}]).save_to_disk(tmp_path / "saved")
    saved = source_hash(DataSource(str(tmp_path / "saved")))
    datasets.Dataset.from_list([{"prompt": "y"}]).save_to_disk(tmp_path / "saved2")
    assert saved not in (None, source_hash(DataSource(str(tmp_path / "saved2"))))
    assert "no such file" in refusal(lambda: source_hash(DataSource(str(tmp_path / "none.jsonl"))))


PEAK = """
import resource, sys
from workbench.config.sources import DataSource
from workbench.data.sources import first_rows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(first_rows(DataSource(sys.argv[1], limit=10))) == 10
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are in KiB on Linux alone")
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_limit_bounds_the_memory(suffix: str, tmp_path: Path) -> None:
    text = "word " * 200
    lines = ["prompt,id\n"] if suffix == ".csv" else []
    lines += [
        f"{text},{n}\n" if suffix == ".csv" else json.dumps({"prompt": text, "id": n}) + "\n" for n in range(20_000)
    ]
    (tmp_path / f"a{suffix}").write_text("".join(lines))  # 20 MB
    command = [sys.executable, "-c", PEAK, str(tmp_path / f"a{suffix}")]
    peak = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, cwd=Path(__file__).parent.parent
    )
    assert int(peak.stdout) < 5 * 1024


def test_what_a_limit_leaves_out_is_still_checked_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": text} for text in ("x" * 30, "a", "b", "c")])
    rows, report = make(DataSource(path, limit=2), CAUSAL, context_length=20)
    assert [row["prompt"] for row in rows] == ["a", "b"]
    assert (report.rows_read, report.rows_kept, report.dropped["prompt_too_long"]) == (4, 2, 1)
    Path(path).write_text('{"prompt": "a"}\n{"prompt": "b", "late": 1}\n{"prompt"\n')
    assert "line 3: broken JSON" in refusal(lambda: make(DataSource(path, limit=1)))
    Path(path).write_text('{"prompt": "a"}\n{"prompt": "b", "late": 1}\n')
    assert make(DataSource(path, limit=1))[0][0]["late"] is None  # every row has the columns of all
