"""Standard streams for a user's code, which can write to them but neither close nor change them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, Self

# A text stream leads to these, and whoever closes one of them has closed the stream.
INNER_STREAMS = ("buffer", "raw")


class Unclosable:
    """A stream that a user's code can write to but not close, whose attributes it sets only here."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        if name == "_stream":  # of a copy, which is made without __init__
            raise AttributeError(name)
        value = getattr(self._stream, name)
        return Unclosable(value) if name in INNER_STREAMS else value

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # for isinstance(), by which programs know a text stream
        return type(self._stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._stream)

    def __next__(self) -> Any:
        return next(self._stream)

    def close(self) -> None:
        """Do nothing but flush."""
        with suppress(ValueError):  # it was closed before
            self._stream.flush()

    def detach(self) -> Any:
        """Return the stream beneath this one, which goes on using it."""
        self._stream.flush()
        return self.buffer if hasattr(self._stream, "buffer") else self.raw


@contextmanager
def streams_protected() -> Iterator[None]:
    """Let the block print to the standard streams, and leave them open, as they are, and in their places."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    settings = [text_settings(stream) for stream in streams]
    try:
        with redirect_stdout(protected(sys.stdout)), redirect_stderr(protected(sys.stderr)):
            yield
    finally:
        for stream, before in zip(streams, settings, strict=True):
            if text_settings(stream) != before:
                stream.reconfigure(**before)


def protected(stream: Any) -> Any:
    """Return the stream as one that cannot be closed; None, to which print() prints nothing, stays None."""
    return None if stream is None else Unclosable(stream)


def text_settings(stream: Any) -> dict[str, Any]:
    """Return what reconfigure() of a text stream changes and can set again."""
    return {name: getattr(stream, name) for name in ("encoding", "errors", "line_buffering", "write_through")}
