"""Rewards and judges that are coroutines are awaited wherever they are called, and fail in one line as others do."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from workbench.errors import RewardError
from workbench.rewards.contract import CheckedJudge, CheckedReward

TEXTS = ["first", "second"]


async def lengths(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Score the length of a text, after a wait."""
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


class Lengths:
    """A reward whose call is a coroutine."""

    async def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score the length of a text."""
        return await lengths(prompts, completions)


def score(reward: Callable[..., Any]) -> list[float]:
    """Score the texts."""
    return CheckedReward(reward, "test")(["p"] * 2, TEXTS)


def run_in_a_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Return what the work returns in a loop of its own thread: Playwright's, once started, stays in the main one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


every_kind = pytest.mark.parametrize("reward", [lengths, Lengths(), partial(lengths, weight=1)])


@every_kind
def test_a_coroutine_is_awaited(reward: Callable[..., Any]) -> None:
    assert score(reward) == [5.0, 6.0]


@every_kind
def test_also_where_a_loop_runs_as_in_a_notebook(reward: Callable[..., Any]) -> None:
    async def cell() -> list[float]:
        return score(reward)

    assert run_in_a_loop(cell()) == [5.0, 6.0]


def test_a_judge_may_be_a_coroutine() -> None:
    async def judge(texts: list[str]) -> list[float]:
        return [0.5] * len(texts)

    assert CheckedJudge(judge, "test")(TEXTS) == [0.5, 0.5]  # type: ignore[arg-type]


def test_all_calls_share_a_loop_because_sessions_belong_to_one() -> None:
    loops = []

    async def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    score(reward)
    run_in_a_loop(asyncio.to_thread(score, reward))
    assert loops[0] is loops[1]
    assert not loops[0].is_closed()


async def failing(error: BaseException) -> None:
    """Raise an error in a task of its own."""
    raise error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("bad\nday"), "reward test: it failed with ValueError: bad day"),
        (SystemExit(3), r"SystemExit: it called sys.exit\(3\); raise an exception instead"),
        (asyncio.CancelledError(), "it failed with CancelledError"),
    ],
)
@pytest.mark.parametrize("in_a_task", [False, True])
def test_a_failure_is_one_line_and_the_next_call_works(error: BaseException, message: str, in_a_task: bool) -> None:
    async def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        await (asyncio.create_task(failing(error)) if in_a_task else failing(error))
        return []

    with pytest.raises(RewardError, match=message):
        score(reward)
    assert score(lengths) == [5.0, 6.0]


def test_what_it_returns_is_checked_and_what_it_changes_is_restored() -> None:
    folder = os.getcwd()

    async def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        os.chdir("/")
        sys.setrecursionlimit(5_000)
        return [float("nan")] * len(completions)

    with pytest.raises(RewardError, match="reward test, row 0, text 'first': it returned nan; it must be finite"):
        score(reward)
    assert os.getcwd() == folder
    assert sys.getrecursionlimit() != 5_000


def test_a_coroutine_may_call_a_reward_that_is_one_too() -> None:
    async def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return score(lengths)

    results: list[list[float]] = []
    thread = threading.Thread(target=lambda: results.append(score(reward)), daemon=True)
    thread.start()
    thread.join(10)
    assert results == [[5.0, 6.0]]


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill() ends the process")
def test_an_interrupt_while_it_waits_ends_the_wait_and_the_coroutine() -> None:
    events: list[str] = []

    async def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise
        return []

    with pytest.raises(KeyboardInterrupt):
        score(reward)
    assert score(lengths) == [5.0, 6.0]
    until = time.monotonic() + 10
    while not events and time.monotonic() < until:  # the loop is in a thread of its own
        time.sleep(0.01)
    assert events == ["cancelled"]
