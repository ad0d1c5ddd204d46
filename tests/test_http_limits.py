"""The HTTP reward's client limits what a server can send, and for how long."""

from __future__ import annotations

import gzip
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from http_servers import always, isolated, mistake, scripted

import reward_models.http as client

HEALTH = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have slept; it does not."""
    return isolated(monkeypatch)


@contextmanager
def sending(first: bytes, repeated: bytes, pause: float) -> Iterator[str]:
    """The address of a server that is healthy, and responds to a POST with `first`, then `repeated` without an end."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def respond(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if connection.recv(65536).startswith(b"GET"):
                connection.sendall(HEALTH)
                return
            connection.sendall(first)
            while not ended.wait(pause):
                connection.sendall(repeated)

    def listen() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=respond, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize("status", [200, 400])
def test_a_response_that_is_too_large_is_not_read_to_its_end(status: int, pauses: list[float]) -> None:
    with scripted(always(b'{"scores": [1], "more": "' + b"x" * 30_000_000 + b'"}', status)) as url:
        reward = client.load(url)
        tracemalloc.start()
        message = mistake(lambda: reward(["p"], ["c"]))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert f"{url}/score returned more than {2**20 + 256} bytes ({status}), which no list of scores takes; " in message
    assert pauses == []
    assert peak < 8 * 2**20


def test_a_compressed_response_is_not_unpacked() -> None:
    bomb = gzip.compress(b'{"scores": [1], "more": "' + b"x" * 10_000_000 + b'"}')
    with scripted(always(bomb, Content_Encoding="gzip")) as url:
        assert "instead of JSON" in mistake(lambda: client.load(url)(["p"], ["c"]))


@pytest.mark.parametrize(
    ("first", "repeated"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_a_server_that_drips_is_too_slow(first: bytes, repeated: bytes, pauses: list[float]) -> None:
    with sending(first, repeated, 0.02) as url:
        reward = client.load(url, timeout=0.3, retries=1)
        start = time.monotonic()
        message = mistake(lambda: reward(["p"], ["c"]))
    assert time.monotonic() - start < 3
    assert f"{url}/score is too slow: no complete response within 0.3 s to any of 2 requests; raise timeout" in message
    assert len(pauses) == 1
