"""Data that was changed in place makes a finished stage another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import small
from tiny_data import write

from recipes import sft
from workbench.config.sources import DataSource
from workbench.data.sources import source_hash
from workbench.errors import UserError
from workbench.run import cli


def test_data_that_was_changed_in_place_is_not_skipped_over(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    source = json.dumps({"path": str(file), "template": "{dialogue}"})
    rows = [{"dialogue": f"Anna: hello {number}", "summary": "Anna says hello."} for number in range(17)]
    write(file, rows[:16])
    arguments = small("quickstart_gpt2", tmp_path, "--sft.data", source, "--sft.max_steps", "1")
    cli.launch([sft.STAGE], "", arguments)
    cli.launch([sft.STAGE], "", arguments)
    write(file, rows)
    for extra in ([], ["--dry_run"]):
        with pytest.raises(UserError, match=rf"sft\.data: {file} has changed since stage sft .* --force sft"):
            cli.launch([sft.STAGE], "", [*arguments, *extra])
    cli.launch([sft.STAGE], "", [*arguments, "--force", "sft"])
    file.unlink()
    cli.launch([sft.STAGE], "", arguments)  # what is gone is needed by no finished stage


def test_the_hash_of_data_covers_names_and_contents_and_no_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "data" / ".git").mkdir(parents=True)
    for name in ("a.csv", "z.csv"):
        (tmp_path / "data" / name).write_text("x\n1\n")

    def digest(name: str) -> str | None:
        return source_hash(DataSource(str(tmp_path / name)))

    first = digest("data")
    (tmp_path / "data" / ".git" / "index").write_text("z")
    assert digest("data") == first
    (tmp_path / "data" / "a.csv").rename(tmp_path / "data" / "b.csv")
    second = digest("data")
    (tmp_path / "data" / "b.csv").write_text("x\n2\n")
    third = digest("data")
    (tmp_path / "data" / "c.csv").write_text("x\n3\n")
    assert len({first, second, third, digest("data")}) == 4


def test_another_split_in_the_folder_of_data_is_no_change(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"dialogue": f"Anna: hello {number}", "summary": "Anna says hello."} for number in range(16)]
    write(folder / "train.jsonl", rows)
    source = json.dumps({"path": str(folder), "template": "{dialogue}"})
    arguments = small("quickstart_gpt2", tmp_path, "--sft.data", source, "--sft.max_steps", "1")
    cli.launch([sft.STAGE], "", arguments)
    write(folder / "validation.jsonl", rows)
    cli.launch([sft.STAGE], "", arguments)
    write(folder / "train.jsonl", rows[1:])
    with pytest.raises(UserError, match=r"sft\.data: .* has changed since stage sft"):
        cli.launch([sft.STAGE], "", arguments)
