"""Progress with an estimate of the time left: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Count the finished steps of `total`; `show` is False on all processes but one."""

    def __init__(self, label: str, total: int, *, done: int = 0, show: bool = True) -> None:
        self.label, self.total, self.done, self.show = label, total, done, show
        self.bar = tqdm(desc=label, total=total, initial=done) if show and sys.stderr.isatty() else None
        self.started = time.monotonic()
        self.last_line = self.started - SECONDS_BETWEEN_LINES  # the first step prints a line
        self.first = done

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` more, and print the note next to the estimate."""
        self.done += steps
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(steps)
        elif self.show and (self.done >= self.total or time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES):
            self.last_line = time.monotonic()
            elapsed = self.last_line - self.started
            left = elapsed / (self.done - self.first) * (self.total - self.done)
            line = f"{self.label} {self.done}/{self.total}, {clock(elapsed)} elapsed, {clock(left)} left"
            print(f"{line}  {note}".rstrip(), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the bar, which stays on the terminal."""
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, such as 3:07, or as hours, minutes and seconds."""
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{remainder:02}" if hours else f"{minutes}:{remainder:02}"
