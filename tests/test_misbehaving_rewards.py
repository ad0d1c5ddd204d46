"""Whatever a user's reward does, the run goes on unchanged, or ends in one line with its work saved."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from child_processes import exit_code
from trainers import e_rate, lines, make_trainer, trained_weights

from workbench.errors import RewardError, UserError
from workbench.rewards import foreign_code
from workbench.rewards.contract import CheckedJudge, CheckedReward, RewardModel
from workbench.rewards.registry import load_reward
from workbench.run.interrupt import stop_requests

TEXTS = ["first", "second", "third"]


@pytest.fixture
def no_alarm() -> Iterator[None]:
    """No pending alarm during a test; pytest-timeout's goes on afterwards."""
    remaining = signal.setitimer(signal.ITIMER_REAL, 0)[0]
    yield
    signal.setitimer(signal.ITIMER_REAL, remaining)


class Stop(BaseException):
    """Not an Exception, as those of some frameworks."""


class Mute(Exception):
    """An error that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Unreadable(float):
    """A number that cannot be read."""

    def __float__(self) -> float:
        raise RuntimeError("not this one")

    def __repr__(self) -> str:
        raise RuntimeError("nor in words")


def raising(error: BaseException) -> RewardModel:
    """A reward that fails."""

    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        raise error

    return reward


def returning(value: Any) -> RewardModel:
    """A reward with one score for every text."""
    return lambda prompts, completions, **columns: [value for _ in completions]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (raising(SystemExit(0)), r"reward test: it failed with SystemExit: it called sys\.exit\(0\); raise an excepti"),
        (raising(SystemExit()), r"it called sys\.exit\(None\)"),
        (raising(Stop("now")), r"reward test: it failed with Stop: now$"),
        (raising(GeneratorExit()), r"reward test: it failed with GeneratorExit"),
        (raising(Mute()), r"it failed with Mute: \(no message: its __str__ raised RuntimeError\)"),
        (returning(Unreadable(1.0)), r"row 0, text 'first': it returned <Unreadable, whose __repr__ raised .*not this"),
        (returning(Mute()), r"row 0, text 'first': it returned Mute\(\), a Mute, not a number"),
        (returning(torch.ones((), device="meta")), r"row 0, text 'first': it returned tensor\(.*reading it failed wit"),
        (lambda prompts, completions: torch.ones(3, device="meta"), r"reading the Tensor that it returned failed with"),
        (returning(1e39), r"row 0, text 'first': it returned 1e\+39; .*float32, where scores beyond 1e\+12 overflow"),
        (returning(-1e30), r"row 0, text 'first': it returned -1e\+30; "),
        (returning([0.5]), r"row 0, text 'first': it returned \[0\.5\], a list, not a number"),
    ],
)
def test_a_failure_of_any_kind_is_one_line(reward: RewardModel, message: str) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        CheckedReward(reward, "test")(["p"] * 3, TEXTS)
    assert "\n" not in str(caught.value)


def test_a_judge_that_exits_or_reorders_is_one_line() -> None:
    def exiting(texts: list[str]) -> list[float]:
        sys.exit("done")

    def reordering(texts: list[str]) -> list[float]:
        texts.sort(reverse=True)
        return [0.0 for _ in texts]

    with pytest.raises(RewardError, match=r"judge test: it failed with SystemExit: it called sys.exit\('done'\)"):
        CheckedJudge(exiting, "test")(TEXTS)
    with pytest.raises(RewardError, match="judge test: it reordered its texts"):
        CheckedJudge(reordering, "test")(TEXTS)


def test_an_interrupt_stays_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        CheckedReward(raising(KeyboardInterrupt()), "test")(["p"] * 3, TEXTS)


@pytest.mark.parametrize("line", ["import sys; sys.exit(0)", "raise BaseException('stop')"])
def test_a_module_or_factory_that_exits_is_one_line(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"exits_{abs(hash(line))}"
    (tmp_path / f"{name}.py").write_text(line, encoding="utf-8")
    (tmp_path / f"{name}_later.py").write_text(f"def make(size=1):\n    {line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"{name}:reward: cannot import {name}: (SystemExit|BaseException): "):
        load_reward(f"{name}:reward")
    with pytest.raises(UserError, match=r"it cannot be built: (SystemExit|BaseException): "):
        load_reward(f"{name}_later:make")


def test_a_reward_gets_copies() -> None:
    columns = {"labels": [["a"], ["b"], ["c"]]}

    def editing(prompts: list[str], completions: list[str], labels: list[list[str]]) -> list[float]:
        scores = [float(len(text)) for text in completions]
        prompts[0], completions[0] = "other", "other"
        labels.reverse()
        labels[0].clear()
        return scores

    prompts, completions = ["p"] * 3, list(TEXTS)
    assert CheckedReward(editing, "test")(prompts, completions, **columns) == [5.0, 6.0, 5.0]
    assert (prompts, completions, columns) == (["p"] * 3, TEXTS, {"labels": [["a"], ["b"], ["c"]]})


@pytest.mark.parametrize("change", [list.sort, list.reverse, list.clear, list.pop, lambda texts: texts.append("more")])
def test_scores_of_rows_in_another_order_are_refused(change: Callable[[list[str]], Any]) -> None:
    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        change(completions)
        return [1.0, 2.0, 3.0]

    texts = ["c", "a", "b"]
    message = r"reward test: it reordered its completions or changed their number.*a copy: list\(completions\)"
    with pytest.raises(RewardError, match=message):
        CheckedReward(reward, "test")(["p"] * 3, texts)
    assert texts == ["c", "a", "b"]


def meddling(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """Score like e_rate, and change what it can of the process."""
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    os.chdir("/")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)
    os.umask(0o777)
    sys.setrecursionlimit(10**6)
    torch.autocast("cpu", torch.bfloat16, cache_enabled=False).__enter__()
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    os.environ.update(HOME="/nowhere", MEDDLED="yes")
    os.environ.pop("PATH", None)
    sys.path.insert(0, "/nowhere")
    print("scoring")
    sys.stdout.close()
    sys.stderr.close()
    sys.stdout = None  # type: ignore[assignment]
    return e_rate(prompts, completions)


def process_settings() -> list[Any]:
    """What the reward meddles with."""
    handlers = map(signal.getsignal, (signal.SIGINT, signal.SIGTERM, signal.SIGALRM))
    environment = [dict(os.environ), list(sys.path), sys.getrecursionlimit(), foreign_code.read_umask()]
    torch_settings = [foreign_code.read_torch_settings(), foreign_code.read_autocast_settings()]
    return [*handlers, signal.getitimer(signal.ITIMER_REAL), Path.cwd(), sys.stdout, *environment, *torch_settings]


@pytest.mark.usefixtures("no_alarm")
def test_a_reward_changes_nothing_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    before = process_settings()
    plain, meddled = make_trainer(tmp_path / "plain"), make_trainer(tmp_path / "meddled", reward=meddling)
    plain.train()
    capsys.readouterr()
    meddled.train()
    assert process_settings() == before
    assert "scoring" in capsys.readouterr().out
    assert trained_weights(plain.unwrapped) == trained_weights(meddled.unwrapped)
    assert lines(plain.folder / "metrics.jsonl") == lines(meddled.folder / "metrics.jsonl")
    print("still open")
    assert "still open" in capsys.readouterr().out


@pytest.mark.usefixtures("no_alarm")
def test_what_can_be_restored_is_restored_where_the_working_directory_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "removed"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = process_settings()

    def removing(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        folder.rmdir()
        return meddling(prompts, completions)

    with pytest.raises(RewardError, match=r"reward test: it failed with FileNotFoundError: .*removed"):
        CheckedReward(removing, "test")(["p"] * 3, TEXTS)
    folder.mkdir()
    os.chdir(folder)
    assert process_settings() == before


@pytest.mark.usefixtures("no_alarm")
def test_the_autocast_and_the_alarm_of_the_run_go_on() -> None:
    def leaving(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        torch.autocast("cpu", torch.float16).__enter__()
        torch.autocast("cpu", torch.float16).__enter__()
        return e_rate(prompts, completions)

    weight = torch.nn.Parameter(torch.ones(2, 2))
    signal.setitimer(signal.ITIMER_REAL, 100)
    with torch.autocast("cpu", torch.bfloat16):
        before = foreign_code.read_autocast_settings()
        CheckedReward(leaving, "test")(["p"] * 3, TEXTS)
        assert foreign_code.read_autocast_settings() == before
        assert (weight @ weight).dtype == torch.bfloat16
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    with torch.no_grad():
        weight.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        assert (weight @ weight).count_nonzero() == 0  # not the cast of the old weight


def test_a_factory_may_set_up_the_environment_of_its_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETUP_OF_REWARD", "0")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lazy").mkdir()
    (tmp_path / "lazy" / "imported_lazily.py").write_text("SCORE = 2.0\n", encoding="utf-8")
    (tmp_path / "sets_up.py").write_text(
        "import os, sys\n\n\ndef make():\n"
        f"    sys.path.append({str(tmp_path / 'lazy')!r})\n    os.environ['SETUP_OF_REWARD'] = '3'\n"
        "    def reward(prompts, completions, **columns):\n        from imported_lazily import SCORE\n"
        "        return [SCORE + float(os.environ['SETUP_OF_REWARD']) for _ in completions]\n    return reward\n",
        encoding="utf-8",
    )
    assert load_reward("sets_up:make")(["p"] * 3, TEXTS) == [5.0] * 3


@pytest.mark.parametrize("leave", [lambda: None, lambda: sys.exit(0), lambda: [].pop()])
def test_a_forked_process_that_leaves_a_reward_ends(
    leave: Callable[[], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    children: list[int] = []

    def forking(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        children.append(os.fork())
        if children[-1] == 0:
            leave()
        return e_rate(prompts, completions)

    parent = os.getpid()
    try:
        assert CheckedReward(forking, "test")(["p"] * 3, TEXTS) == e_rate(["p"] * 3, TEXTS)
    finally:
        if os.getpid() != parent:
            os._exit(0)  # or a second pytest would go on
    assert exit_code(children[0]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("reward test has been scoring 3 texts: a process that it forked came back and is ended; ")


@pytest.mark.parametrize("failing", [lambda: sys.exit(0), lambda: [1e39] * 16])
def test_a_run_whose_reward_exits_or_overflows_is_saved(failing: Callable[[], Any], tmp_path: Path) -> None:
    calls = 0

    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        nonlocal calls
        calls += 1
        return failing() if calls == 2 else e_rate(prompts, completions)

    with pytest.raises(RewardError, match="reward test"):
        make_trainer(tmp_path / "run", reward=reward).train()
    assert (tmp_path / "run" / "checkpoints" / "step_000001").is_dir()


def test_a_slow_reward_is_named_on_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_code, "SLOW_SECONDS", 0.05)

    def slow(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        time.sleep(0.3)
        return [0.0] * len(completions)

    CheckedReward(slow, "test")(["p"] * 3, TEXTS)
    assert capsys.readouterr().err == "reward test has been scoring 3 texts for 0.05 s; still waiting\n"
    CheckedReward(e_rate, "test")(["p"] * 3, TEXTS)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_also_when_the_first_arrived_in_a_reward(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        os.kill(os.getpid(), number)
        return e_rate(prompts, completions)

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, end)
    try:
        with stop_requests() as is_requested:
            CheckedReward(interrupted, "test")(["p"] * 3, TEXTS)
            assert is_requested()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err.count("stopping after this step") == 1
