"""Servers for the tests of the HTTP reward, on this machine alone: the project's own and ones that lie."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import conftest
import httpcore2
import pytest

import reward_models.http as client
from reward_models.serve import Service, bind, listen
from workbench.errors import RewardError, UserError

WORDS = ["idiot", "", "Thank you.\n", "stupid idiot", "\U0001f642 \ud800 \u4f60", "You are a moron, an idiot!", "fine"]
TEXTS = [f"{text} {'word ' * (row % 5)}" for row, text in enumerate(WORDS * 3)]
PROMPTS = [f"prompt {row}" for row in range(len(TEXTS))]
SECRET = "s3cret-token"


class SlowReward:
    """A reward that scores once it may go on."""

    def __init__(self) -> None:
        self.started, self.go_on = threading.Event(), threading.Event()

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """Return 1 for each completion."""
        self.started.set()
        self.go_on.wait(10)
        return [1.0] * len(completions)


def let_loopback_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 127.0.0.1 through, and no other address."""

    def connect(self: socket.socket, address: tuple[str, int]) -> None:
        if self.family == socket.AF_INET and address[0] == "127.0.0.1":
            socket.SocketType.connect(self, address)
        else:
            conftest.refuse(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def trust_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust nobody: to load the certificates for every client would take most of the time of these tests."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    monkeypatch.setattr(httpcore2, "default_ssl_context", lambda **options: context)


def do_not_sleep(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have slept; it does not."""
    slept: list[float] = []
    monkeypatch.setattr(client, "sleep", slept.append)
    return slept


def isolated(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For one test: no address but this machine's, no certificates, and the pauses that the client did not make."""
    let_loopback_through(monkeypatch)
    trust_nobody(monkeypatch)
    return do_not_sleep(monkeypatch)


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    """The address of a server that runs in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The address of a service."""
    server = bind("127.0.0.1", 0, service.token)
    listen(server, service)
    with running(server) as url:
        yield url


Reply = tuple[int, dict[str, str], bytes]


@contextmanager
def scripted(respond: Callable[[str, Any], Reply], health: Reply | None = None) -> Iterator[str]:
    """The address of a server of our own making: `respond(path, request)` returns status, headers and body."""

    class Scripted(BaseHTTPRequestHandler):
        def reply(self, content: Reply) -> None:
            status, headers, body = content
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.reply(health or (200, {}, b'{"model": "scripted", "judges": true}'))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            # A client whose patience ended is gone; that is what some tests are about.
            try:
                self.reply(respond(self.path, request))
            except ConnectionError:
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Scripted)) as url:
        yield url


def always(body: str | bytes, status: int = 200, **headers: str) -> Callable[[str, Any], Reply]:
    """Return a responder with the same reply to every request."""
    content = body.encode() if isinstance(body, str) else body
    return lambda path, request: (status, {name.replace("_", "-"): value for name, value in headers.items()}, content)


def mistake(act: Callable[[], Any], kind: type[UserError] = RewardError) -> str:
    """The one line of the error that `act` ends with."""
    with pytest.raises(kind) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def ask(url: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of one plain request, made without the client under test."""
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rsplit(":", 1)[1]), timeout=10)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "application/json"
        return response.status, json.loads(response.read())
    finally:
        connection.close()
