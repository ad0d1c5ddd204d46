"""Nothing that the packages use is missing on Windows; `make check` also runs mypy for that platform."""

from __future__ import annotations

import ast
import io
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from child_processes import exit_code, fork
from configs import GOOD, load
from small_runs import CHAIN, small

from workbench.errors import UserError
from workbench.run import cli
from workbench.run.folder import Run, lock_run
from workbench.run.process import exit_on_error

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("workbench", "recipes", "reward_models", "benchmarks", "docs")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# What Python lacks on Windows, among everything that a program like this one might use.
MISSING_MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
MISSING_FUNCTIONS = ("fork", "getpgid", "geteuid", "getuid", "killpg", "setsid", "sysconf", "uname")
WINDOWS_SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
PACKAGES = ("workbench", "recipes", "reward_models")


def lacks_encoding(node: ast.AST) -> bool:
    """Return whether an expression opens text, or a process that writes text, without naming an encoding."""
    if not isinstance(node, ast.Call) or "encoding" in {keyword.arg for keyword in node.keywords}:
        return False
    if {"text", "universal_newlines"} & {keyword.arg for keyword in node.keywords}:
        return ast.unparse(node.func).startswith("subprocess.")
    is_method = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) != "os"
    name = node.func.attr if isinstance(node.func, ast.Attribute) and is_method else ast.unparse(node.func)
    if name not in ("open", "read_text", "write_text") or (name == "write_text" and not is_method):
        return False
    if name != "open":
        return True
    constants = [part.value for argument in node.args for part in ast.walk(argument) if isinstance(part, ast.Constant)]
    return not any(isinstance(mode, str) and "b" in mode and len(mode) <= 3 for mode in constants)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("open('x')", True),
        ("path.open('w', newline='')", True),
        ("files(p).joinpath(n).read_text()", True),
        ("path.write_text('b')", True),
        ("subprocess.run(c, text=True)", True),
        ("open('x', 'rb')", False),
        ("path.open('r+b' if windows else 'rb')", False),
        ("path.read_text(encoding='utf-8')", False),
        ("write_text(path, text)", False),
        ("os.open(os.devnull, os.O_WRONLY)", False),
    ],
)
def test_a_missing_encoding_is_recognized(code: str, expected: bool) -> None:
    assert lacks_encoding(ast.parse(code, mode="eval").body) == expected


def test_every_text_file_is_opened_with_an_encoding() -> None:
    lacking = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and lacks_encoding(node)
    ]
    assert lacking == []


def test_a_run_needs_nothing_that_windows_lacks(tmp_path: Path) -> None:
    options = small("quickstart", tmp_path)
    main_path = Path(sys.modules["small_runs"].__file__ or "")

    def run() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] in (*PACKAGES, main_path.stem)]:
            del sys.modules[name]
        sys.modules.update(dict.fromkeys(MISSING_MODULES))
        for name in MISSING_FUNCTIONS:
            delattr(os, name)
        for name in {member.name for member in signal.Signals} - WINDOWS_SIGNALS:
            delattr(signal, name)
        from small_runs import CHAIN as chain

        from workbench.run.cli import launch

        launch(chain, "", [*options, "--dry_run"])
        launch(chain[:1], "", options)  # the lock, a checkpoint's signals, and atomic files

    for stage in CHAIN:  # the libraries are imported before anything is taken away: they know Windows themselves
        assert stage.plan is not None
    cli.launch(CHAIN, "", [*options, "--name", "planned", "--dry_run"])
    assert exit_code(fork(run, tmp_path / "log")) == 0, (tmp_path / "log").read_text(encoding="utf-8")


def test_output_is_utf8_where_a_pipe_would_have_another_encoding(tmp_path: Path) -> None:
    log = tmp_path / "printed"

    def run() -> None:
        sys.stdout = io.TextIOWrapper(log.open("wb"), encoding="cp1252")
        exit_on_error(lambda arguments: print("toxicity ↓", flush=True))

    assert exit_code(fork(run, tmp_path / "log")) == 0, (tmp_path / "log").read_text(encoding="utf-8")
    assert log.read_text(encoding="utf-8").strip() == "toxicity ↓"


def test_a_process_that_dies_releases_the_run(tmp_path: Path) -> None:
    run, is_locked = Run(tmp_path, load(tmp_path, GOOD)), tmp_path / "is_locked"

    def hold() -> None:
        with lock_run(run):
            is_locked.touch()
            time.sleep(100)

    child = fork(hold, tmp_path / "log")
    try:
        while not is_locked.exists():
            time.sleep(0.01)
        with pytest.raises(UserError, match="another command is using this run folder; wait for it"), lock_run(run):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with lock_run(run):
        pass
