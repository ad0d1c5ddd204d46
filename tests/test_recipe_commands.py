"""The recipes as commands: exit codes, help, what is printed, the launcher and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from child_processes import started
from small_runs import small

from recipes import sft
from workbench.config.parsing import parse
from workbench.run import cli


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a recipe as a process."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False)


def test_a_mistake_leaves_with_2_and_a_line_on_stderr(in_project: Path) -> None:
    result = command("-m", "recipes.detox", "--config", "recipes/configs/quickstart.yaml", "--ppo.kl_ceof", "1")
    assert result.returncode == 2
    assert result.stderr == "error: --ppo.kl_ceof: unknown key; did you mean --ppo.kl_coef?\n"
    assert result.stdout == ""


@pytest.mark.parametrize("module", ["recipes.ppo", "workbench.export"])
def test_a_reader_that_has_seen_enough_ends_the_command_quietly(module: str, in_project: Path) -> None:
    code = (
        f"import runpy, sys; sys.argv = [{module!r}, '--help']; sys.stdin.read(); "
        f"runpy.run_module({module!r}, run_name='__main__')"
    )
    with started([sys.executable, "-c", code], **dict.fromkeys(("stdin", "stdout", "stderr"), -1)) as process:
        process.stdout.close()
        _, stderr = process.communicate(timeout=100)
    assert process.returncode in (0, 128 + signal.SIGPIPE)
    assert stderr == ""


@pytest.mark.parametrize(("threads", "is_reported"), [("1", True), ("2", False)])
def test_a_launcher_that_left_cores_idle_is_named(
    threads: str, is_reported: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    cli.report_idle_cores()
    assert ("--num_cpu_threads_per_process 4" in capsys.readouterr().out) == is_reported


def test_print_config_prints_what_would_run_and_loads_back(in_project: Path, tmp_path: Path) -> None:
    result = command(
        "-m", "recipes.ppo", "--config", "recipes/configs/quickstart.yaml", "--seed", "5", "--print_config"
    )
    assert result.returncode == 0, result.stderr
    assert "seed: 5" in result.stdout
    (tmp_path / "printed.yaml").write_text(result.stdout)
    printed, _ = parse(["--config", str(tmp_path / "printed.yaml")])
    expected, _ = parse(["--config", "recipes/configs/quickstart.yaml", "--seed", "5"])
    assert printed == expected


def test_it_runs_by_path_under_the_launcher_and_ctrl_c_leaves_a_run_that_goes_on(
    in_project: Path, tmp_path: Path
) -> None:
    options = small("quickstart", tmp_path, "--sft.max_steps", "40")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_config.yaml"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([*launcher, "recipes/detox.py", *options], **pipes) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("sft ") and "left" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        stderr = "".join(lines) + process.communicate(timeout=120)[1]
    sft_folder = tmp_path / "quickstart" / "sft"
    assert "To resume, run the same command again: python -m recipes.detox" in stderr, stderr
    (saved,) = sft_folder.glob("checkpoint-*")
    step = json.loads((saved / "trainer_state.json").read_text())["global_step"]
    assert 0 < step < 40

    cli.launch([sft.STAGE], "", options)
    assert json.loads((sft_folder / "stage.json").read_text())["metrics"]["steps"] == 40
    first = json.loads((sft_folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] <= step, "the log still has the steps before the stop"
    assert not list(sft_folder.glob("checkpoint-*"))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("module", "arguments", "code"), [("recipes.sft", "--help", 0), ("workbench.report", "x", 2)])
def test_a_closed_stream_is_printed_to_in_vain(
    closed: str, module: str, arguments: str, code: int, in_project: Path
) -> None:
    line = f"{sys.executable} -m {module} {arguments} {closed}"
    result = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
