"""A reward of the user's own that raises is named with its file and line; its traceback is in the run folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_runs import drop, small

from recipes import ppo
from workbench.errors import UserError
from workbench.run import cli, tracebacks
from workbench.run.tracebacks import PROJECT, is_own

CODE = """
import statistics

def deviation(texts):
    return statistics.stdev(map(len, texts[:1]))  # line 5, called from line 8

def reward(prompts, completions, **columns):
    return [deviation(completions)] * len(completions)

def load():
    return reward

def load_broken():
    raise KeyError("no weights")
"""


@pytest.fixture
def options(tmp_path: Path, in_project: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a short PPO run without SFT and reward; the module failing_reward has rewards that raise."""
    (tmp_path / "failing_reward.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    names = ("--sft.max_steps", "--sft.batch_size", "--sft.data.limit", "--reward.model")
    return [*drop(small("quickstart", tmp_path / "runs"), *names), "--sft", "null"]


def test_a_reward_that_raises_is_located_in_the_users_file(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        cli.launch([ppo.STAGE], "", [*options, "--reward.model", "failing_reward:load"])
    message = str(raised.value)
    assert "\n" not in message
    assert "it failed with StatisticsError" in message
    assert f"({tmp_path / 'failing_reward.py'}, line 5)" in message
    (file,) = re.findall(r"traceback: (\S+)$", message)
    assert re.search(r"line 8, in reward\n.*\n( +\^+\n)? +File .*line 5, in deviation", Path(file).read_text())


def test_the_traceback_goes_once_the_stage_has_succeeded(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="traceback: "):
        cli.launch([ppo.STAGE], "", [*options, "--reward.model", "failing_reward:load"])
    file = tmp_path / "runs" / "quickstart" / "traceback.txt"
    assert file.is_file()
    cli.launch([ppo.STAGE], "", [*options, "--reward.model", "length", "--force", "ppo"])
    assert not file.exists()


def test_a_reward_that_cannot_be_loaded_is_located_too(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"failing_reward\.py, line 14"):
        cli.launch([ppo.STAGE], "", [*options, "--reward.model", "failing_reward:load_broken"])


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (PROJECT / "workbench_rewards.py", True),
        (PROJECT / "my_reward.py", True),
        (PROJECT / "reward_models" / "http.py", False),
        (Path("/usr/lib/python3/dist-packages/numpy/core.py"), False),
        (Path("<string>"), False),
    ],
)
def test_only_the_users_own_files_are_named(file: Path, expected: bool) -> None:
    assert is_own(file) is expected


def test_a_dry_run_locates_it_as_well(options: list[str]) -> None:
    with pytest.raises(UserError, match=r"failing_reward\.py, line 14"):
        cli.launch([ppo.STAGE], "", [*options, "--reward.model", "failing_reward:load_broken", "--dry_run"])


def test_a_full_disk_does_not_hide_the_error(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*arguments: object) -> None:
        raise UserError("cannot be written: No space left on device")

    monkeypatch.setattr(tracebacks, "write_text", full_disk)
    with pytest.raises(UserError, match=r"it failed with StatisticsError.*line 5\)$"):
        cli.launch([ppo.STAGE], "", [*options, "--reward.model", "failing_reward:load"])
