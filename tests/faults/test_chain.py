"""Whatever happens to a chain, the same command ends it with the weights and results of one that nothing disturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from chains import NAME, kill_after, kill_before_change, limit_file_size, on_change, outcome, run_chain, start_chain
from child_processes import exit_code

from workbench.run.folder import is_result

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
KILLS = int(os.environ.get("FAULTS_KILLS", "40"))
"""So many of a chain's changes of files, spread evenly, have a kill before them."""
RANDOM_KILLS = 20
DISK_SIZES = (4_000, 10_000, 30_000, 100_000, 300_000)  # bytes; the log of the command has to fit


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a chain leaves that nothing disturbs, its number of changes of files, its seconds and its folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    counts = folder / "counts"

    def count(number: int) -> None:
        counts.write_text(str(number), encoding="utf-8")

    start = time.monotonic()
    code, output = run_chain(folder, on_change(folder / "runs", count))
    assert code == 0, output
    seconds = time.monotonic() - start
    return outcome(folder) | {"changes": int(counts.read_text()), "seconds": seconds, "folder": folder}


def check_end(folder: Path, expected: dict[str, Any]) -> None:
    """Run the chain to its end and compare what it leaves."""
    code, output = run_chain(folder)
    assert code == 0, output
    assert "Traceback" not in output
    assert outcome(folder) == {key: expected[key] for key in ("weights", "sets", "losses")}


@pytest.mark.parametrize("index", range(KILLS))
def test_a_kill_before_a_change_of_a_file(index: int, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    number = 1 + index * undisturbed["changes"] // KILLS
    code, output = run_chain(tmp_path, kill_before_change(tmp_path / "runs", number))
    assert code == -9, output
    check_end(tmp_path, undisturbed)


@pytest.mark.parametrize("number", range(RANDOM_KILLS))
def test_kills_at_random_moments(number: int, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    moment = random.Random(number).uniform(0, undisturbed["seconds"])
    run_chain(tmp_path, kill_after(moment))
    check_end(tmp_path, undisturbed)


@pytest.mark.parametrize("size", DISK_SIZES)
def test_a_full_disk(size: int, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    code, output = run_chain(tmp_path, limit_file_size(size))
    assert code == 2, output
    errors = [line for line in output.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "cannot be written" in errors[0], errors
    assert "Traceback" not in output
    check_end(tmp_path, undisturbed)


def test_two_launches(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    first = start_chain(tmp_path, tmp_path / "first")
    for _ in range(1200):
        if (tmp_path / "runs" / NAME / "sft").exists():
            break
        time.sleep(0.05)
    os.kill(first, signal.SIGSTOP)  # it must not end before the second one asks for the folder
    code, output = run_chain(tmp_path)
    os.kill(first, signal.SIGCONT)
    assert code == 2, output
    assert "another command is using this run folder" in output
    assert exit_code(first) == 0, (tmp_path / "first").read_text(encoding="utf-8")
    check_end(tmp_path, undisturbed)


def damaged(content: bytes, how: str) -> bytes | None:
    """Return a file's contents after a kind of damage; None to delete it."""
    middle = len(content) // 2
    return {
        "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :] if content else b"x",
        "truncate": content[:middle],
        "empty": b"",
        "other type": b"[]\n",
        "delete": None,
    }[how]


@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "other type", "delete"])
def test_damage_to_every_file_of_the_trained_stages(how: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    source = undisturbed["folder"] / "runs" / NAME
    names = [file.relative_to(source) for file in sorted(source.rglob("*")) if file.is_file()]
    for name in names:
        if name.parts[0] not in ("sft", "reward", "ppo") or not is_result(Path(*name.parts[1:])):
            continue
        folder = tmp_path / name.as_posix().replace("/", "-")
        shutil.copytree(source, folder / "runs" / NAME)
        shutil.rmtree(folder / "runs" / NAME / "evaluation")
        file = folder / "runs" / NAME / name
        content = damaged(file.read_bytes(), how)
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        code, output = run_chain(folder)
        assert code == 2, f"{name} {how}: {output}"
        assert "Traceback" not in output, f"{name} {how}: {output}"
        assert str(name) in output, f"{name} {how}: {output}"
