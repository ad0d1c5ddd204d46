"""Calls of code that the user wrote: every way it can fail becomes one line, and it changes nothing of the run."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from workbench.errors import RewardError, UserError, one_line, shorten
from workbench.rewards.streams import streams_protected
from workbench.run.files import read_umask
from workbench.run.torch_settings import AutocastSettings, TorchSettings, read_autocast_settings, read_torch_settings

SLOW_SECONDS = 120.0
WAITS = ("wait", "join", "_wait_for_tstate_lock")
"""Functions of threading in which a thread waits for another."""
TURN = threading.Condition()
RUNNING: list[int] = []
"""Threads in a user's code, the last one first to leave: two at once would restore each other's settings."""


@contextmanager
def failures_in_one_line(context: str, error_type: type[UserError] = RewardError) -> Iterator[None]:
    """Turn whatever the block raises, sys.exit() included, into an error that begins with `context`.

    A UserError already is one line, and KeyboardInterrupt is the person at the keyboard: both pass.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        # Uncaught, it would end the run with the code of a finished one.
        cause = f"SystemExit: it called sys.exit({shorten(error.code)}); raise an exception instead"
        raise error_type(f"{context} {cause}") from error
    except BaseException as error:
        raise error_type(f"{context} {one_line(error)}") from error


@contextmanager
def contained(failure: str, activity: str) -> Iterator[None]:
    """Contain a call of a reward or judge: failures in one line, the process's settings restored, a note if it is slow.

    Raises RewardError, which begins with `failure`, for whatever the block raises; the note begins with `activity`.
    """
    with (
        failures_in_one_line(failure),
        one_at_a_time(activity),
        noted_when_slow(activity),
        settings_restored(),
        environment_restored(),
        forked_child_ended(activity),
    ):
        yield


@contextmanager
def one_at_a_time(activity: str) -> Iterator[None]:
    """Let the block wait until no other thread computes in such a block; rewards may call others, also in threads."""
    thread = threading.get_ident()
    waiting = f"{activity.split(' has been ')[0]} has been waiting for a reward's call in another thread to end"
    with TURN:
        if not is_free(thread):
            with noted_when_slow(waiting):
                while not is_free(thread):
                    TURN.wait(0.01)
        RUNNING.append(thread)
    try:
        yield
    finally:
        with TURN:
            RUNNING.remove(thread)
            TURN.notify_all()


def is_free(thread: int) -> bool:
    """Return whether a thread may run a user's code: none does, or the last one that does waits for a thread.

    It could wait for this one, as a reward that calls others in a pool of threads does.
    """
    if not RUNNING or RUNNING[-1] == thread:
        return True
    frame, calls = sys._current_frames().get(RUNNING[-1]), []
    while frame is not None and frame.f_code.co_filename == threading.__file__:
        calls.append(frame.f_code.co_name)
        frame = frame.f_back
    is_own = frame is not None and frame.f_code.co_filename == __file__  # the timer of the note
    return bool(calls) and calls[0] in WAITS and "start" not in calls and not is_own


@contextmanager
def contained_setup(failure: str, activity: str) -> Iterator[None]:
    """Contain the import or the construction of a reward, as `contained` does a call of it.

    What it sets in the environment and in sys.path stays, because the reward may need it in its calls. Raises
    UserError, which begins with `failure`, for whatever the block raises.
    """
    with (
        failures_in_one_line(failure, UserError),
        one_at_a_time(activity),
        noted_when_slow(activity),
        settings_restored(),
        forked_child_ended(activity),
    ):
        yield


@contextmanager
def noted_when_slow(activity: str, seconds: float | None = None) -> Iterator[None]:
    """Print to stderr that the block still runs after `seconds` (default: SLOW_SECONDS).

    A call of a user's code cannot be ended safely from outside, but whoever waits should know for what.
    """
    limit, stderr = SLOW_SECONDS if seconds is None else seconds, sys.stderr

    def report() -> None:
        if stderr is None:
            return  # print() would take stdout
        with suppress(ValueError, OSError):  # a closed stderr
            print(f"{activity} for {limit:g} s; still waiting", file=stderr, flush=True)

    timer = threading.Timer(limit, report)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def forked_child_ended(activity: str) -> Iterator[None]:
    """End a process that the block forked when it leaves the block, because it would go on with a copy of the run."""
    process, stderr = os.getpid(), sys.stderr
    try:
        yield
    finally:
        if os.getpid() != process:
            with suppress(Exception):
                assert stderr is not None  # print() would take stdout
                line = "a process that it forked came back and is ended; end one with os._exit() inside the reward"
                print(f"{activity}: {line}", file=stderr, flush=True)
            os._exit(1)


@contextmanager
def settings_restored() -> Iterator[None]:
    """Restore after the block what a user's code may change for the whole process.

    These are the standard streams, a pending alarm, signal handlers, the working directory, the umask, the recursion
    limit, and torch's autocast, gradient mode, default type, default device, threads and determinism. Random generators
    are not among them: a reward may draw from them, and the run seeds its own before it samples.
    """
    # In this order from the last to the first, each also if another fails. An alarm that is still pending when its
    # handler is gone would end the process.
    makers = (torch_restorer, autocast_restorer, recursion_restorer, umask_restorer, directory_restorer)
    with ExitStack() as restoring:
        for make_restorer in (*makers, handlers_restorer, alarm_restorer):
            restoring.callback(make_restorer())
        restoring.enter_context(streams_protected())
        yield


@contextmanager
def environment_restored() -> Iterator[None]:
    """Restore the environment variables and sys.path after the block.

    This is for calls of a reward only: what the factory of a reward sets, the reward may need in its calls.
    """
    variables, path = dict(os.environ), list(sys.path)
    try:
        yield
    finally:
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        for name, value in variables.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        if sys.path != path:
            sys.path[:] = path


def torch_restorer() -> Callable[[], None]:
    """Return a function that restores torch's settings of now, or of its import if that is still to come."""
    settings = read_torch_settings()
    return TorchSettings().restore if settings is None else settings.restore


def autocast_restorer() -> Callable[[], None]:
    """Return a function that restores the autocast of now, or turns it off if torch is still to be imported."""
    settings = read_autocast_settings()
    return AutocastSettings().restore if settings is None else settings.restore


def recursion_restorer() -> Callable[[], None]:
    """Return a function that restores the recursion limit of now."""
    limit = sys.getrecursionlimit()
    return lambda: sys.setrecursionlimit(limit)


def umask_restorer() -> Callable[[], None]:
    """Return a function that restores the umask of now."""
    mask = read_umask()

    def restore() -> None:
        os.umask(mask)

    return restore


def directory_restorer() -> Callable[[], None]:
    """Return a function that restores the working directory of now."""
    directory = working_directory()

    def restore() -> None:
        if directory is not None and working_directory() != directory:
            os.chdir(directory)

    return restore


def handlers_restorer() -> Callable[[], None]:
    """Return a function that restores the signal handlers of now."""
    handlers = signal_handlers()

    def restore() -> None:
        for number, handler in handlers.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)

    return restore


def alarm_restorer() -> Callable[[], None]:
    """Return a function that cancels an alarm, or one that does nothing if one is pending now or cannot be."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        return do_nothing
    if signal.getitimer(signal.ITIMER_REAL)[0] > 0:
        return do_nothing

    def restore() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    return restore


def do_nothing() -> None:
    """Restore nothing."""


def signal_handlers() -> dict[int, Any]:
    """Return the handlers that Python installed, by signal; none outside the main thread, which alone may set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return {number: handler for number, handler in handlers.items() if handler is not None}


def working_directory() -> str | None:
    """Return the working directory, or None if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None
