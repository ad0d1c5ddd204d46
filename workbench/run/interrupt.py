"""Turn the first Ctrl-C or SIGTERM into a request to stop at the next safe point."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether a signal has arrived; a second signal stops immediately."""
    is_requested = False

    def request_stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_requested
        if is_requested:  # a call of the user's code, in which the first arrived, has put this handler back at its end
            restore()
            signal.raise_signal(number)
            return
        is_requested = True
        print("\nstopping after this step (interrupt again to stop immediately)", file=sys.stderr, flush=True)
        restore()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, request_stop)
    try:
        yield lambda: is_requested
    finally:
        restore()
