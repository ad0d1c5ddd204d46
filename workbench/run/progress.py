"""Progress with an estimate of the time left: a bar on a terminal, now and then a line in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts finished steps of `total`; `show` is False on processes that keep silent."""

    def __init__(self, label: str, total: int, *, done: int = 0, show: bool = True) -> None:
        self.label, self.total, self.done, self.show = label, total, done, show
        self.bar = tqdm(desc=label, total=total, initial=done) if show and sys.stderr.isatty() else None
        self.started = time.monotonic()
        self.said = self.started - SECONDS_BETWEEN_LINES  # so that the first step speaks at once
        self.first = done

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` more; `note` is shown beside the estimate."""
        self.done += steps
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(steps)
        elif self.show and (self.done >= self.total or time.monotonic() - self.said >= SECONDS_BETWEEN_LINES):
            self.said = time.monotonic()
            elapsed = self.said - self.started
            left = elapsed / (self.done - self.first) * (self.total - self.done)
            line = f"{self.label} {self.done}/{self.total}, {clock(elapsed)} elapsed, {clock(left)} left"
            print(f"{line}  {note}".rstrip(), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """Minutes and seconds, for example 3:07, or hours in front."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
