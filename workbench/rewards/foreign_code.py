"""Calls of code that the user wrote: every way it can fail becomes one line, and it changes nothing of the run."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any

from workbench.errors import RewardError, UserError, one_line, shorten

SLOW_SECONDS = 120.0


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
    with failures_in_one_line(failure), noted_when_slow(activity), settings_restored():
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
def settings_restored() -> Iterator[None]:
    """Restore after the block what a user's code may change for the whole process.

    These are the standard streams, the working directory, signal handlers, and torch's gradient mode, default type,
    default device, threads and determinism. Random generators are not among them: a reward may draw from them, and the
    run seeds its own before it samples.
    """
    directory, handlers, torch_settings = working_directory(), signal_handlers(), read_torch_settings()
    try:
        with redirect_stdout(Unclosable(sys.stdout)), redirect_stderr(Unclosable(sys.stderr)):
            yield
    finally:
        if directory is not None and working_directory() != directory:
            os.chdir(directory)
        for number, handler in handlers.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)
        if torch_settings is not None:
            torch_settings.restore()


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
