"""Where the coroutines of rewards run: one event loop in a thread of its own, as in TRL.

One loop, because what a reward opens in its first call, such as an HTTP session, belongs to the loop of that call; a
thread, because the caller may itself be in a loop that runs, as the cells of a notebook are.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Awaitable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from workbench.rewards.foreign_code import forked_child_ended


def awaited(result: Any, activity: str) -> Any:
    """Return the result, or what it returns and raises when it is awaited; call it inside `contained`."""
    if not inspect.isawaitable(result):
        return result
    work = _outcome(result, activity)
    loop, thread = _event_loop(os.getpid())
    if threading.current_thread() is thread:
        # A coroutine of one reward calls another reward and blocks the loop until that one is done.
        with ThreadPoolExecutor(1) as pool:
            value, error = pool.submit(asyncio.run, work).result()
    else:
        value, error = _result(work, loop)
    if error is not None:
        raise error
    return value


def _result(work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
    """Return the result of the work in the loop of another thread; an interrupt, whenever it comes, cancels it."""
    tasks: list[asyncio.Task[Any]] = []
    interrupted = threading.Event()

    async def cancellable() -> Any:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        if interrupted.is_set():
            task.cancel()
        return await work

    try:
        return asyncio.run_coroutine_threadsafe(cancellable(), loop).result()
    except BaseException:  # KeyboardInterrupt, perhaps before there is a future to cancel, or a task
        interrupted.set()
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
        raise


async def _outcome(work: Awaitable[Any], activity: str) -> tuple[Any, BaseException | None]:
    """Return what the work returns and what it raises: SystemExit would end the loop instead of reaching the caller."""
    with forked_child_ended(activity):
        try:
            return await work, None
        except BaseException as error:
            return None, error


@functools.cache
def _event_loop(process: int) -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    """Return the loop of this process, and its thread, which a process that was forked from it does not have."""
    loop = asyncio.new_event_loop()

    def run_always() -> None:
        while True:
            with suppress(SystemExit, KeyboardInterrupt):  # of a task that a reward created
                loop.run_forever()

    thread = threading.Thread(target=run_always, name=f"rewards of process {process}", daemon=True)
    thread.start()
    return loop, thread
