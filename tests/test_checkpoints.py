"""A PPO run that was killed, or whose files were damaged, goes on, bit for bit, from what is whole."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import Whole, finish, interrupt, lines, outcome, remembered, trainer

from workbench.ppo import checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What uninterrupted runs leave, each made once."""
    return remembered(tmp_path_factory)


def die(*arguments: Any) -> None:
    """Leave as a process does that is killed from outside."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_save(nth: int) -> None:
    """From now on, half of the `nth` checkpoint is written before the process is gone."""
    save, files = torch.save, []

    def half(state: Any, file: Path) -> None:
        files.append(file)
        save(state, file)
        if len(files) == nth:
            os.truncate(file, file.stat().st_size // 2)
            die()

    torch.save = half


def die_before_renaming(name: str) -> None:
    """From now on, a folder is whole under its temporary name when the process is gone."""
    replace = os.replace
    os.replace = lambda source, target: (die if Path(target).name == name else replace)(source, target)


def die_at_call(nth: int) -> None:
    """The process is gone at its `nth` call of a function, or return from one."""
    left = iter(range(nth))
    sys.setprofile(lambda *event: None if next(left, None) is not None else die())


def be_killed(root: Path, deaths: list[tuple[str, str, Any]]) -> None:
    """For each (folder, function, argument) a process that trains until it is killed as the function arranges."""
    for folder, function, argument in deaths:
        child = os.fork()
        if child == 0:
            run = trainer(root / folder)
            globals()[function](argument)
            run.train()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, (folder, function)


def test_a_process_killed_at_any_moment_changes_nothing(tmp_path: Path) -> None:
    run, calls, moments = trainer(tmp_path / "counted"), itertools.count(), random.Random(0)
    sys.setprofile(lambda *event: next(calls))
    run.train()
    sys.setprofile(None)
    expected, total = outcome(run), next(calls)
    deaths: list[tuple[str, str, Any]] = [
        ("last save", "die_in_save", 2),
        ("renaming", "die_before_renaming", "step_000003"),
        ("best", "die_before_renaming", "best"),
        *((f"random {i}", "die_at_call", moments.randrange(total)) for i in range(2)),
        ("best", "die_in_save", 1),  # begun again, and killed again
    ]
    code = f"import pathlib, test_checkpoints; test_checkpoints.be_killed(pathlib.Path({str(tmp_path)!r}), {deaths})"
    tests = Path(__file__).parent
    paths = {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | paths, check=True, timeout=120)
    (torn,) = (tmp_path / "last save" / "checkpoints").glob(".step_000004.*/state.pt")
    assert 0 < torn.stat().st_size < (tmp_path / "counted" / "checkpoints/step_000004/state.pt").stat().st_size
    for folder in {folder for folder, _, _ in deaths}:
        assert finish(tmp_path / folder) == expected, folder


def flip(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x80
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda place: os.truncate(place / "state.pt", 1000),
    "no checksum": lambda place: (place / "sha256").unlink(),
    "a bit of the state": lambda place: flip(place / "state.pt"),
    "a bit of the checksum": lambda place: flip(place / "sha256"),
}


def test_a_torn_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(trainer(tmp_path / "whole", checkpoint_every=1), 3)
    for name, damage in DAMAGES.items():
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / name))
        damage(folder / "checkpoints" / "step_000003")
        capsys.readouterr()
        trainer(folder, checkpoint_every=1).resume()
        printed = capsys.readouterr().out
        assert f"{folder / 'checkpoints' / 'step_000003'} is torn" in printed
        assert "going on from step 2" in printed
        for log in ("metrics.jsonl", "samples.jsonl"):
            kept = [line for line in lines(tmp_path / "whole" / log) if line["step"] <= 2]
            assert lines(folder / log) == kept != []


def test_without_a_whole_checkpoint_it_says_so_and_starts_from_the_beginning(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(trainer(tmp_path, checkpoint_every=1), 3)
    places = checkpoint.existing(tmp_path / "checkpoints")
    for place in places:
        flip(place / "state.pt")
    # What is torn must not push out what is saved after it, though its step is higher.
    interrupt(trainer(tmp_path, checkpoint_every=1), 1)
    printed = capsys.readouterr().out
    assert [f"{place} is torn" in printed for place in places] == [True, True]
    assert "starting from the beginning" in printed
    assert {line["step"] for log in ("metrics.jsonl", "samples.jsonl") for line in lines(tmp_path / log)} == {1}
    assert finish(tmp_path, checkpoint_every=1) == whole(checkpoint_every=1)
    assert "going on from step 1" in capsys.readouterr().out


@pytest.mark.parametrize("left", ["", '{"step": 1}\n{"st', '{"step": 1}\n' + "\0" * 99, '[]\n{"a": 1}\n{"step": 1}'])
def test_a_log_that_lost_lines_is_never_padded(left: str, tmp_path: Path) -> None:
    interrupt(trainer(tmp_path / "run", value_model="shared"), 3)
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / "run" / name).write_text(left)
    trainer(tmp_path / "run", value_model="shared").train()
    steps = [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")]
    assert steps == ([1, 4] if "step" in left else [4])


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_log_keeps_texts_with_line_separators_of_unicode(tmp_path: Path) -> None:
    log = tmp_path / "samples.jsonl"
    text = "a\u2028b\x85c\u2029d"
    written = [json.dumps({"step": step, "completion": text}, ensure_ascii=False) + "\n" for step in (1, 2, 2, 3)]
    log.write_text("".join(written), encoding="utf-8")
    checkpoint.truncate_log(log, 2)
    assert log.read_bytes().decode() == "".join(written[:3])


@pytest.mark.parametrize("kept", [1, 3])
def test_as_many_checkpoints_are_kept_as_asked_for_and_at_every_moment_one(
    kept: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, remove = tmp_path / "checkpoints", shutil.rmtree

    def watching(path: Path, ignore_errors: bool = False) -> None:
        others = [place for place in checkpoint.existing(folder) if place != path]
        if Path(path).parent == folder and Path(path).exists() and checkpoint.existing(folder):
            assert any(checkpoint.is_intact(place) for place in others), path
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", watching)
    run = trainer(tmp_path, checkpoint_every=1, checkpoints_kept=kept)
    for step in range(1, 5):
        run.update(run.rollout(run.batch(step - 1)))
        for _ in range(2):  # a reward that fails right after a checkpoint has it saved again
            run.save_checkpoint()
        assert names(folder) == [f"step_{number:06}" for number in range(max(1, step - kept + 1), step + 1)]
