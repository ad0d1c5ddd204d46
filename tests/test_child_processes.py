"""No test waits for ever: children end for certain, Ctrl-C reaches them, and every test has a time limit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from child_processes import end, fork, started

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


def test_a_child_that_ignores_signals_is_ended(tmp_path: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (tmp_path / "ready").touch()
        time.sleep(600)

    child = fork(ignore, tmp_path / "log")
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    assert end(child, seconds=0.1) == -signal.SIGKILL
    assert end(fork(lambda: time.sleep(600), tmp_path / "log")) == -signal.SIGTERM


def test_a_command_that_is_still_running_is_ended() -> None:
    with started([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    assert process.returncode == -signal.SIGKILL


def test_ctrl_c_reaches_children_even_if_the_tests_were_started_where_it_is_ignored() -> None:
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # conftest.py restores it
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert result.stdout == "False\n"


def test_every_test_has_a_time_limit(pytestconfig: pytest.Config) -> None:
    assert 0 < float(pytestconfig.getini("timeout")) <= 600
    assert pytestconfig.pluginmanager.hasplugin("timeout")
