"""Serve a reward to reward_models.http, or to OpenRLHF, on other machines or in other processes.

JSON only, one batch at a time. `/get_reward` is the path of OpenRLHF's own server:
https://github.com/OpenRLHF/OpenRLHF/blob/3c3be6234e0cb353e76bb8019947db9dfe99fca7/openrlhf/cli/serve_rm.py#L128-L135
Its client, and all that it reads of a response, is at #L268-L356 of openrlhf/utils/agent.py in the same commit.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
import re
import socket
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

from reward_models.http import read_token
from reward_models.http_connections import BoundedServer
from reward_models.http_requests import RequestError, read_judged_texts, read_object, read_queries, read_rows
from workbench.errors import UserError, printable
from workbench.rewards.contract import CheckedReward, Judge
from workbench.rewards.registry import REWARDS, load_reward
from workbench.run.options import make_options_parser, name_or_path, parse_options
from workbench.run.process import exit_on_error

MAX_BODY_BYTES = 32 * 2**20
MAX_BODY_SECONDS = 120.0
OPENRLHF = "/get_reward"
PATHS = {"/health": "GET", "/score": "POST", "/toxicity": "POST", OPENRLHF: "POST"}


@dataclass(frozen=True)
class Service:
    """A served reward, and its judge if it has one."""

    name: str
    reward: CheckedReward
    judge: Judge | None
    token: str | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the model works: few models are thread-safe."""
    eos_token: str = ""
    """The text at the end of OpenRLHF's queries that is not part of the completion."""

    def permits(self, authorization: str) -> bool:
        """Return whether an Authorization header carries the token, compared in constant time."""
        return self.token is None or hmac.compare_digest(_read_sent_token(authorization), self.token.encode())

    def respond(self, path: str, body: bytes) -> dict[str, Any]:
        """Return the response to a request; raises RequestError."""
        if path == "/health":
            return {"model": self.name, "judges": self.judge is not None}
        if path == "/toxicity" and self.judge is None:
            raise RequestError(404, f"{self.name} is not a judge: it has no judge() method that returns one")
        request = read_object(body)
        if path == "/toxicity":
            texts = read_judged_texts(request)
            assert self.judge is not None
            judge = self.judge
            return {"scores": self._work(lambda: judge(texts))}
        rows = read_queries(request, self.eos_token) if path == OPENRLHF else read_rows(request)
        # With several servers, OpenRLHF's client sends no rows to some of them.
        has_rows = bool(rows.completions)
        scores = self._work(lambda: self.reward(rows.prompts, rows.completions, **rows.columns)) if has_rows else []
        if path == OPENRLHF:
            # It trains on the rewards, filters prompts by the scores, and logs whatever is in extra_logs.
            return {"rewards": scores, "scores": scores, "extra_logs": {}}
        return {"scores": scores}

    def _work(self, score: Callable[[], list[float]]) -> list[float]:
        """Return the model's scores; raises RequestError if it fails."""
        try:
            with self.lock:
                return score()
        except Exception as error:  # a reward can fail in any way, and the next request may succeed
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            raise RequestError(500, printable(" ".join(f"{kind}{error}".split()))) from error


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every response waits for the acknowledgement of its own header
    timeout = 60  # seconds of silence

    server: BoundedServer

    def __init__(self, service: Service, *arguments: Any) -> None:
        self.service = service
        super().__init__(*arguments)

    def handle(self) -> None:
        """Respond until the client disconnects, which it may do at any time."""
        with suppress(OSError):
            super().handle()

    def do_GET(self) -> None:
        """Respond to GET."""
        self._respond()

    def do_HEAD(self) -> None:
        """Respond to HEAD as to GET, without the body."""
        self._respond()

    def do_POST(self) -> None:
        """Respond to POST."""
        self._respond()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Respond in JSON, not with an HTML page, to what the base class refuses."""
        self.close_connection = True
        self._reply(code, {"error": message or "bad request"})
        self._linger()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""

    def _respond(self) -> None:
        try:
            body = self._read_body()
            self.server.mark(self.connection, is_working=True)
            allowed = PATHS.get(self.path)
            if allowed is None:
                raise RequestError(404, f"no such path; available: {', '.join(PATHS)}")
            if self.command != allowed and (self.command, allowed) != ("HEAD", "GET"):
                raise RequestError(405, f"{self.path} takes {allowed}, not {self.command}")
            self._reply(200, self.service.respond(self.path, body))
        except RequestError as error:
            # OpenRLHF's client logs the status alone, so that the reason would be nowhere.
            if error.status == 500 or (self.path == OPENRLHF and error.status == 400):
                print(f"error: {error}", file=sys.stderr, flush=True)
            self._reply(error.status, {"error": str(error)})
            if self.close_connection:
                self._linger()
        finally:
            self.server.mark(self.connection, is_working=False)

    def _read_body(self) -> bytes:
        """Return the request's body; raises RequestError, with the body unread, for a wrong token or size."""
        sizes = self.headers.get_all("Content-Length", [])
        size = sizes[0] if sizes else "" if self.command == "POST" else "0"
        # An unread body would be parsed as the next request.
        close_afterwards, self.close_connection = self.close_connection, True
        if not self.service.permits(self.headers.get("Authorization", "")):
            raise RequestError(401, "send the server's token: Authorization: Bearer TOKEN")
        # A proxy in front could take another of the sizes, and the rest of the body for the next request.
        if len(sizes) > 1 or "," in size or (sizes and "Transfer-Encoding" in self.headers):
            raise RequestError(400, "send one Content-Length, with one number, and no Transfer-Encoding")
        if "Transfer-Encoding" in self.headers or not re.fullmatch(r"[0-9]{1,15}", size):
            raise RequestError(411, "send the size of the body as Content-Length")
        if int(size) > MAX_BODY_BYTES:
            raise RequestError(
                413, f"the body is {size} bytes, over the limit of {MAX_BODY_BYTES}; send fewer texts at a time"
            )
        body = self._read_bytes(int(size))
        self.close_connection = close_afterwards
        return body

    def _read_bytes(self, size: int) -> bytes:
        """Return `size` bytes, fewer if the client leaves; raises RequestError if they take too long."""
        chunks, deadline = [], time.monotonic() + MAX_BODY_SECONDS
        while size > 0 and (chunk := self.rfile.read1(min(size, 2**16))):
            chunks.append(chunk)
            size -= len(chunk)
            if time.monotonic() > deadline:
                raise RequestError(408, f"the body took longer than {MAX_BODY_SECONDS:g} seconds; send fewer texts")
        return b"".join(chunks)

    def _linger(self) -> None:
        """Read what the client still sends; otherwise it would see a broken connection instead of the response."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(2)
        remaining = 4 * MAX_BODY_BYTES
        while remaining > 0 and (chunk := self.rfile.read1(2**16)):
            remaining -= len(chunk)

    def _reply(self, status: int, response: dict[str, Any]) -> None:
        content = json.dumps(response, allow_nan=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _read_sent_token(authorization: str) -> bytes:
    """Return the token in an Authorization header: Bearer TOKEN or, for the url http://user:TOKEN@host, its password.

    OpenRLHF's client can send no header of one's own, but sends the user and the password of its url.
    """
    scheme, _, credentials = authorization.partition(" ")
    if scheme == "Bearer":
        return credentials.encode()
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2] if scheme == "Basic" else b""
    except ValueError:
        return b""


def make_service(model: str, options: dict[str, Any], token: str | None, eos_token: str = "") -> Service:
    """Load a reward with load_reward and return its service; raises UserError as it does."""
    reward = load_reward(model, **options)
    return Service(model, reward, reward.judge(), token, eos_token=eos_token)


def bind(host: str, port: int, token: str | None) -> BoundedServer:
    """Return a server bound to an IPv4 address, which accepts no requests until `listen`.

    Raises UserError for an address that cannot be bound and, without a token, for one that other machines can reach.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port is {port}, but it must be between 0 (any free port) and {2**16 - 1}")
    try:
        address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: no IPv4 address ({error}); use one like 127.0.0.1") from error
    if token is None and not ipaddress.ip_address(address[0]).is_loopback:
        raise UserError(
            f"--host {host} can be reached from other machines, so a token is required: export one as an "
            "environment variable and pass its name with --token_env NAME, or use --host 127.0.0.1"
        )
    server = BoundedServer((str(address[0]), port), BaseHTTPRequestHandler, bind_and_activate=False)
    try:
        server.server_bind()
    except OSError as error:
        server.server_close()
        raise UserError(f"--port {port} on {host}: {error.strerror}; choose another --port (0: any)") from error
    return server


def listen(server: BoundedServer, service: Service) -> str:
    """Start accepting requests, which serve_forever handles, and return the address for clients."""
    server.RequestHandlerClass = partial(Handler, service)
    server.server_activate()
    host, port = server.server_address[:2]
    return f"http://{host!s}:{port}"


def parse(argv: list[str]) -> Namespace:
    """Return the options; raises UserError with one line for any error."""
    parser = make_options_parser(
        "reward_models.serve",
        "Serve a reward over HTTP. Its clients use reward.model: http, reward.options: {url: ...}; to OpenRLHF, "
        "URL/get_reward is a remote reward model.",
    )
    models = f"{', '.join(REWARDS)}, a classifier's owner/name or folder, or package.module:object"
    parser.add_argument("--model", type=name_or_path, help=f"the reward: {models}")
    parser.add_argument("--options", default="{}", help='its options as JSON: {"words": ["idiot"]}')
    parser.add_argument("--host", default="127.0.0.1", help="IPv4 address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8765, help="port; 0 for any free port (default: 8765)")
    parser.add_argument("--token_env", metavar="NAME", help="environment variable with the token that clients send")
    parser.add_argument(
        "--eos_token", default="", metavar="TEXT", help="end-of-sequence token to remove from OpenRLHF's queries: </s>"
    )
    options = parse_options(parser, argv, required={"model": models})
    try:
        options.options = json.loads(options.options)
    except ValueError as error:
        raise UserError(f"--options {options.options}: not JSON: {error}") from error
    if not isinstance(options.options, dict):
        raise UserError(f"--options {options.options!r}: not a JSON object like {{name: value}}")
    return options


def serve(argv: list[str]) -> None:
    """Serve a reward until interrupted; raises UserError for an invalid option."""
    options = parse(argv)
    token = None if options.token_env is None else read_token(options.token_env)
    with bind(options.host, options.port, token) as server:  # before the model, which may take minutes to load
        url = listen(server, make_service(options.model, options.options, token, options.eos_token))
        print(f"ready: {options.model} at {url}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    exit_on_error(serve)
