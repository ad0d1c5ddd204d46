"""Progress with an estimate of the time left: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from tqdm import tqdm

from workbench.errors import printable

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Following:
    """The stages that follow the one whose progress is shown."""

    stages: Sequence[str] = ()
    seconds: float | None = None
    """How long they will take; None where nothing is known."""

    def description(self, left: float) -> str:
        """Return what is left of the whole command, given the seconds `left` of this stage; "" without stages."""
        if not self.stages:
            return ""
        names = ", ".join(self.stages)
        return f", then {names}" if self.seconds is None else f", about {clock(left + self.seconds)} with {names}"


NOTHING = Following()
FOLLOWING: ContextVar[Following] = ContextVar("FOLLOWING", default=NOTHING)


@contextmanager
def followed_by(following: Following) -> Iterator[None]:
    """Show in every progress of the block what follows it."""
    token = FOLLOWING.set(following)
    try:
        yield
    finally:
        FOLLOWING.reset(token)


class Progress:
    """Count the finished steps of `total`; `show` is False on all processes but one."""

    def __init__(self, label: str, total: int, *, done: int = 0, show: bool = True) -> None:
        self.label, self.total, self.done, self.show = label, total, done, show
        self.bar = tqdm(desc=label, total=total, initial=done) if show and sys.stderr.isatty() else None
        self.started = time.monotonic()
        self.last_line = self.started - SECONDS_BETWEEN_LINES  # the first step prints a line
        self.first = done
        self.following = FOLLOWING.get()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` more, and print the note next to the estimate."""
        self.done += steps
        if self.bar is not None:
            following = self.following.description(self.seconds_left(time.monotonic())).removeprefix(", ")
            self.bar.set_postfix_str(", ".join(filter(None, (note, following))), refresh=False)
            self.bar.update(steps)
        elif self.show and (self.done >= self.total or time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES):
            self.last_line = time.monotonic()
            elapsed, left = self.last_line - self.started, self.seconds_left(self.last_line)
            line = f"{self.label} {self.done}/{self.total}, {clock(elapsed)} elapsed, {clock(left)} left"
            line = f"{line}{self.following.description(left)}  {note}".rstrip()
            print(printable(line), file=sys.stderr, flush=True)

    def seconds_left(self, now: float) -> float:
        """Return how long the remaining steps will take at the pace so far."""
        return (now - self.started) / (self.done - self.first) * (self.total - self.done)

    def close(self) -> None:
        """Close the bar, which stays on the terminal."""
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, such as 3:07, or as hours, minutes and seconds."""
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{remainder:02}" if hours else f"{minutes}:{remainder:02}"
