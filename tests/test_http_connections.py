"""The reward server under clients that leave, idle, send slowly, or send odd columns."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time

import pytest
from http_servers import SlowReward, ask, isolated, serving

from reward_models import http_connections, serve, toy_lexicon
from reward_models.serve import Service, make_service
from workbench.rewards.contract import CheckedReward

BODY = json.dumps({"prompts": ["p"], "completions": ["you idiot"]}).encode()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have slept; it does not."""
    return isolated(monkeypatch)


def connect(url: str, sent: bytes = b"") -> socket.socket:
    """A connection to the server that has sent so much."""
    connection = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=10)
    connection.sendall(sent)
    return connection


def reset(connection: socket.socket) -> None:
    """Leave as a process that was killed does: with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_to_the_end(connection: socket.socket) -> bytes:
    """All that the server sends until it closes the connection."""
    with connection:
        reply = b""
        while chunk := connection.recv(2**16):
            reply += chunk
    return reply


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 2\r\nContent-Length: 2",
        "Content-Length: 2\r\ncontent-length: 40",
        "Content-Length: 2, 2",
        "Content-Length: 2\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 2",
    ],
)
@pytest.mark.parametrize("request_line", ["POST /score", "GET /health"])
def test_a_body_of_two_sizes_is_refused_and_ends_the_connection(request_line: str, headers: str) -> None:
    smuggled = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving(make_service("toy_lexicon", {}, None)) as url:
        sent = f"{request_line} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n{{}}{smuggled}"
        connection = connect(url, sent.encode())
        connection.shutdown(socket.SHUT_WR)
        reply = read_to_the_end(connection)
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close\r\n" in reply
    assert reply.count(b"HTTP/1.1") == 1
    assert reply.endswith(b'{"error": "send one Content-Length, with one number, and no Transfer-Encoding"}')


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/score", 405), ("/scores", 404)])
def test_a_head_request_gets_no_body(path: str, status: int) -> None:
    with serving(make_service("toy_lexicon", {}, None)) as url:
        head = f"HEAD {path} HTTP/1.1\r\nHost: x\r\n"
        reply = read_to_the_end(connect(url, f"{head}\r\n{head}Connection: close\r\n\r\n".encode()))
    assert reply.count(f"HTTP/1.1 {status} ".encode()) == 2
    assert all(b": " in line for line in reply.splitlines() if line and not line.startswith(b"HTTP/1.1 "))
    assert b"{" not in reply


def test_clients_that_leave_at_any_moment_leave_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    with serving(make_service("toy_lexicon", {}, None)) as url:
        for sent in (
            b"",
            b"POST /sc",
            head,
            head + BODY[:5],
            head + BODY,
            b"nonsense\r\n\r\n",
            b"\x16\x03\x01\r\n\r\n",
        ):
            reset(connect(url, sent))
            connect(url, sent).close()
        reset(connect(url, f"POST /score HTTP/1.1\r\nContent-Length: {10**12}\r\n\r\n".encode()))
        assert ask(url, "POST", "/score", BODY) == (200, {"scores": toy_lexicon.load()(["p"], ["you idiot"])})
    assert capfd.readouterr().err == ""


def test_idle_clients_make_way_and_take_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(http_connections, "MIN_IDLE_SECONDS", 0.05)
    before = threading.active_count()
    with serving(make_service("toy_lexicon", {}, None)) as url:
        idle = [connect(url, b"POST /score HTTP/1.1\r\n") for _ in range(20)]
        for _ in range(3):
            assert ask(url, "GET", "/health")[0] == 200
        deadline = time.monotonic() + 10
        while threading.active_count() > before + 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= before + 5  # four connections and the server
        assert idle[0].recv(1) == b""  # the first has been closed
        for connection in idle:
            connection.close()


def test_a_server_whose_connections_all_work_refuses_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(http_connections, "MAX_WAIT_SECONDS", 0.05)
    slow = SlowReward()
    with serving(Service("slow", CheckedReward(slow, "slow"), None, None)) as url:
        replies: list[object] = []
        working = threading.Thread(target=lambda: replies.append(ask(url, "POST", "/score", BODY)))
        working.start()
        assert slow.started.wait(10)
        refused = connect(url)
        assert refused.recv(2**16).startswith(b"HTTP/1.1 503 ")  # which reward_models.http retries
        refused.close()
        slow.go_on.set()
        working.join()
        assert replies == [(200, {"scores": [1.0]})]


def test_more_clients_than_connections_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "MAX_CONNECTIONS", 2)
    slow = SlowReward()
    replies: list[object] = []
    with serving(Service("slow", CheckedReward(slow, "slow"), None, None)) as url:
        clients = [threading.Thread(target=lambda: replies.append(ask(url, "POST", "/score", BODY))) for _ in range(40)]
        for waiting in clients:
            waiting.start()
        assert slow.started.wait(10)
        slow.go_on.set()
        for waiting in clients:
            waiting.join()
    assert replies == [(200, {"scores": [1.0]})] * 40


def test_a_body_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MAX_BODY_SECONDS", 0.05)
    with serving(make_service("toy_lexicon", {}, None)) as url:
        connection = connect(url, b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        reply = b""
        for _ in range(50):
            time.sleep(0.02)
            try:
                connection.sendall(b" ")
            except OSError:
                break
        connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(2**16):
            reply += chunk
        connection.close()
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b"took longer than" in reply


@pytest.mark.parametrize("name", ["self", "texts", "service", "columns", "kwargs", "__class__", "", "a b"])
def test_a_column_may_have_any_name(name: str) -> None:
    body = json.dumps({"prompts": ["p"], "completions": ["you idiot"], "columns": {name: [1]}}).encode()
    with serving(make_service("toy_lexicon", {}, None)) as url:
        assert ask(url, "POST", "/score", body) == (200, {"scores": [-1.0]})
