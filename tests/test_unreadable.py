"""What this user may not read, or what a disk does not give, is one line, and nothing is removed for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sharded_processes import stopped_after
from small_runs import CHAIN, small
from stopped_runs import interrupt, trainer

from recipes import sft
from workbench.errors import Interrupted, UserError
from workbench.ppo import checkpoint
from workbench.report.run_list import main as list_runs
from workbench.run import cli
from workbench.run.files import atomic_folder, follow_umask, is_present

DENIED = PermissionError(13, "Permission denied")
FAILING = OSError(5, "Input/output error")


@contextmanager
def unreadable(path: Path, error: OSError, *methods: str) -> Iterator[None]:
    """Let these methods of Path fail for a file, or for what is in a folder; root may read everything."""
    is_file = path.is_file()

    def failing(name: str) -> Any:
        method = getattr(Path, name)

        def call(self: Path, *arguments: Any, **options: Any) -> Any:
            if (self == path and is_file) or path in self.parents:
                raise error
            return method(self, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in methods:
            patch.setattr(Path, name, failing(name))
        yield


@pytest.mark.parametrize("error", [DENIED, FAILING])
@pytest.mark.parametrize("name", ["state.pt", "sha256"])
def test_an_unreadable_checkpoint_of_ppo_stays(name: str, error: OSError, tmp_path: Path) -> None:
    interrupt(trainer(tmp_path), 2)
    file = tmp_path / "checkpoints" / "step_000002" / name
    before = sorted(tmp_path.rglob("*"))
    with unreadable(file, error, "open"), pytest.raises(UserError, match=f"{file}: cannot be read: {error.strerror}; "):
        trainer(tmp_path).train()
    assert sorted(tmp_path.rglob("*")) == before
    run = trainer(tmp_path)
    run.resume()
    assert run.state.step == 2


def test_a_checkpoint_in_a_folder_that_may_not_be_entered_stays(tmp_path: Path) -> None:
    interrupt(trainer(tmp_path), 2)
    folder = tmp_path / "checkpoints" / "step_000002"
    line = f"{folder / 'state.pt'}: cannot be read: Permission denied; make it readable for this user"
    with unreadable(folder, DENIED, "stat", "open"), pytest.raises(UserError, match=line):
        checkpoint.is_intact(folder)


@pytest.mark.parametrize("name", ["checksums.json", "trainer_state.json"])
def test_an_unreadable_checkpoint_of_a_trainer_stays(name: str, tmp_path: Path) -> None:
    arguments = small("quickstart_gpt2", tmp_path)
    with stopped_after(2), pytest.raises(Interrupted):
        cli.launch([sft.STAGE], "", arguments)
    file = tmp_path / "quickstart_gpt2" / "sft" / "checkpoint-2" / name
    line = f"{file}: cannot be read: Input/output error; make it readable; nothing has to be redone"
    with unreadable(file, FAILING, "open"), pytest.raises(UserError, match=line):
        cli.launch([sft.STAGE], "", arguments)
    assert file.is_file()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs in which SFT is finished."""
    folder = tmp_path_factory.mktemp("finished")
    cli.launch([sft.STAGE], "", small("quickstart_gpt2", folder))
    return folder


def test_a_stage_that_may_not_be_entered_is_one_line(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished / "quickstart_gpt2" / "sft"
    line = f"{folder / 'stage.json'}: cannot be read: Permission denied; make it readable for this user"
    with unreadable(folder, DENIED, "stat", "open"):
        with pytest.raises(UserError, match=line):
            cli.launch(CHAIN, "", small("quickstart_gpt2", finished))
        list_runs(["--folder", str(finished)])
    _, row = capsys.readouterr().out.splitlines()
    assert row.split(maxsplit=1) == ["quickstart_gpt2", "cannot be read; make its folders readable for this user"]


@pytest.mark.parametrize("force", [[], ["--force", "sft"]])
def test_an_unreadable_configuration_is_not_started_over(force: list[str], finished: Path, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(finished, tmp_path / "runs"))
    (runs / "quickstart_gpt2" / "reward").mkdir()  # which the run does not need now, but may again
    file = runs / "quickstart_gpt2" / "config.yaml"
    line = f"{file}: cannot be read: Permission denied; make it readable; nothing has to be redone"
    with unreadable(file, DENIED, "open"), pytest.raises(UserError, match=f"{line}$"):
        cli.launch([sft.STAGE], "", small("quickstart_gpt2", runs, *force))
    assert {"sft", "reward"} <= set(os.listdir(file.parent))


def test_whether_a_file_is_there_is_told_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert is_present(file)
    assert not is_present(tmp_path)
    assert not is_present(tmp_path / "none")
    assert not is_present(file / "below")
    with unreadable(tmp_path, DENIED, "stat"), pytest.raises(UserError, match="file: cannot be read: Permission"):
        is_present(file)


def test_modes_that_cannot_be_set_stay(finished: Path, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(finished, tmp_path / "runs"))
    (runs / "quickstart_gpt2" / "sft" / "stage.json").unlink()
    refused = PermissionError(1, "Operation not permitted")
    with unreadable(tmp_path, refused, "chmod"):
        follow_umask(runs / "quickstart_gpt2" / "config.yaml")
        with atomic_folder(tmp_path / "best") as folder:
            (folder / "file").write_text("x")
        cli.launch([sft.STAGE], "", small("quickstart_gpt2", runs))
    assert (runs / "quickstart_gpt2" / "sft" / "stage.json").is_file()
    assert os.listdir(tmp_path / "best") == ["file"]
