"""Calls of code that the user wrote: every way it can fail becomes one line, and it changes nothing of the run."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any

from workbench.errors import RewardError, UserError, one_line, shorten
from workbench.run.files import read_umask

SLOW_SECONDS = 120.0
AUTOCAST_DEVICES = ("cpu", "cuda")


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
        noted_when_slow(activity),
        settings_restored(),
        environment_restored(),
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
        restoring.enter_context(redirect_stdout(Unclosable(sys.stdout)))
        restoring.enter_context(redirect_stderr(Unclosable(sys.stderr)))
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


@dataclass(frozen=True)
class Unclosable:
    """A standard stream that a user's code can write to but not close."""

    stream: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def close(self) -> None:
        """Do nothing but flush."""
        self.stream.flush()


@dataclass(frozen=True)
class TorchSettings:
    """Settings of torch that hold for a whole thread or process."""

    gradients: bool
    dtype: Any
    device: Any
    threads: int
    deterministic: bool
    warn_only: bool

    def restore(self) -> None:
        """Set again what has changed."""
        import torch

        current = read_torch_settings()
        assert current is not None
        torch.set_grad_enabled(self.gradients)
        torch.set_default_dtype(self.dtype)
        if current.device != self.device:
            torch.set_default_device(self.device)
        if current.threads != self.threads:
            torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)


def read_torch_settings() -> TorchSettings | None:
    """Return torch's settings, or None if nothing in this process has imported it."""
    if "torch" not in sys.modules:  # importing it takes seconds, which a lexicon need not wait for
        return None
    import torch

    return TorchSettings(
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@dataclass(frozen=True)
class AutocastSettings:
    """Autocast of one thread, which a context that was entered and never left changes."""

    enabled: dict[str, bool]
    dtypes: dict[str, Any]
    caches: bool
    nesting: int

    def restore(self) -> None:
        """Set again what has changed."""
        import torch

        current = read_autocast_settings()
        if current == self or current is None:
            return
        for device in AUTOCAST_DEVICES:
            torch.set_autocast_enabled(device, self.enabled[device])
            torch.set_autocast_dtype(device, self.dtypes[device])
        torch.set_autocast_cache_enabled(self.caches)
        # At a wrong level the casts of old weights would stay cached from one step to the next.
        for _ in range(current.nesting - self.nesting):
            torch.autocast_decrement_nesting()
        for _ in range(self.nesting - current.nesting):
            torch.autocast_increment_nesting()
        torch.clear_autocast_cache()


def read_autocast_settings() -> AutocastSettings | None:
    """Return the autocast of this thread, or None if nothing in this process has imported torch."""
    if "torch" not in sys.modules:
        return None
    import torch

    torch.autocast_increment_nesting()
    return AutocastSettings(
        {device: torch.is_autocast_enabled(device) for device in AUTOCAST_DEVICES},
        {device: torch.get_autocast_dtype(device) for device in AUTOCAST_DEVICES},
        torch.is_autocast_cache_enabled(),
        torch.autocast_decrement_nesting(),
    )


def torch_restorer() -> Callable[[], None]:
    """Return a function that restores torch's settings of now."""
    settings = read_torch_settings()
    return do_nothing if settings is None else settings.restore


def autocast_restorer() -> Callable[[], None]:
    """Return a function that restores the autocast of now."""
    settings = read_autocast_settings()
    return do_nothing if settings is None else settings.restore


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
