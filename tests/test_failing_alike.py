"""Processes that work on one run after another fail in it together, or the one that failed alone ends them all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
from child_processes import exit_code, fork

from workbench.errors import UserError
from workbench.run import distributed
from workbench.run.distributed import fail_alike

MAIN_FAILED = "stopped because the main process failed; see its error"


def outcomes(folder: Path, failures: Sequence[Sequence[str | None]]) -> list[str]:
    """Return what each of two processes learns about pieces of work that failed with these reasons, by process.

    A process whose reasons end early is still in a piece of work.
    """

    def process(rank: int) -> None:
        import torch.distributed as dist

        dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
        learned = []
        with mock.patch.object(distributed, "TIME_TO_FAIL", timedelta(seconds=2)):
            for number, failure in enumerate(failures[rank]):
                try:
                    learned.append(str(fail_alike(f"run {number}", failure)))
                except UserError as error:
                    learned.append(f"ends with {error}")
        (folder / str(rank)).write_text("; ".join(learned))

    children = [fork(lambda rank=rank: process(rank), folder / f"log{rank}") for rank in range(2)]
    assert [exit_code(child) for child in children] == [0, 0], [(folder / f"log{rank}").read_text() for rank in (0, 1)]
    return [(folder / str(rank)).read_text() for rank in range(2)]


def test_every_process_learns_of_a_failure_and_of_none(tmp_path: Path) -> None:
    failures = [[None, "diverged", MAIN_FAILED, None], [None, "diverged", "no memory", "lost"]]
    assert outcomes(tmp_path, failures) == ["None; diverged; no memory; lost"] * 2


def test_one_that_fails_alone_does_not_wait_for_those_that_wait_for_it(tmp_path: Path) -> None:
    ours, theirs = outcomes(tmp_path, [["a judge failed"], []])
    assert (ours, theirs) == ("ends with run 0: a judge failed", "")


@pytest.mark.parametrize("failure", [None, "diverged"])
def test_one_process_alone_has_nobody_to_ask(failure: str | None) -> None:
    assert fail_alike("run", failure) == failure
