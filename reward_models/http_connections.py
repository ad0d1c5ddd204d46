"""A threaded HTTP server that bounds its connections: the one that has been idle longest makes way for a new one."""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import suppress
from http.server import ThreadingHTTPServer
from typing import Any

from workbench.errors import one_line

MAX_CONNECTIONS = 64
MAX_WAIT_SECONDS = 10.0  # for one of them to end or idle, before a new one is refused
MIN_IDLE_SECONDS = 1.0  # less, and the request may be on its way
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class BoundedServer(ThreadingHTTPServer):
    """At most MAX_CONNECTIONS threads, one for each connection; a failure is one line of the log."""

    # Connections that wait to be accepted. OpenRLHF makes one for each response of a rollout.
    request_queue_size = 1024

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.connections: dict[socket.socket, float | None] = {}
        """Since when each connection has waited for a request; None while its request is worked on."""
        self.connections_changed = threading.Condition()
        """Its lock is held wherever they are read or changed."""
        super().__init__(*arguments, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a new connection, as soon as there is room for it; if there is none in time, end it."""
        if not self._make_room():
            request.settimeout(1)
            with suppress(OSError):  # it may have left
                request.sendall(BUSY)
            self.shutdown_request(request)
            return
        with self.connections_changed:
            self.connections[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection and close it."""
        with self.connections_changed:
            self.connections.pop(request, None)
            self.connections_changed.notify()
        super().shutdown_request(request)

    def mark(self, connection: socket.socket, *, is_working: bool) -> None:
        """Record whether a connection's request is being worked on, or it waits for one."""
        with self.connections_changed:
            if connection in self.connections:
                self.connections[connection] = None if is_working else time.monotonic()
                self.connections_changed.notify()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what ended a connection, in one line."""
        error = sys.exception()
        assert error is not None
        if not isinstance(error, OSError):  # the client has left, or its network has failed
            print(f"error: connection from {client_address}: {one_line(error)}", file=sys.stderr)

    def _make_room(self) -> bool:
        """Return whether there is room for a connection, after waiting for it or ending the one idle longest."""
        with self.connections_changed:
            deadline = time.monotonic() + MAX_WAIT_SECONDS
            while len(self.connections) >= MAX_CONNECTIONS and (oldest := self._idle_longest()) is None:
                if time.monotonic() > deadline:
                    return False
                self.connections_changed.wait(min(MIN_IDLE_SECONDS, MAX_WAIT_SECONDS))
            if len(self.connections) < MAX_CONNECTIONS:
                return True
            assert oldest is not None
            del self.connections[oldest]
        with suppress(OSError):  # it may have ended by itself
            oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end of the connection, and ends
        return True

    def _idle_longest(self) -> socket.socket | None:
        """Return the connection that has waited longest for a request, or None if none has waited long enough."""
        last = time.monotonic() - MIN_IDLE_SECONDS
        idle = {connection: since for connection, since in self.connections.items() if since is not None}
        return min((one for one in idle if idle[one] <= last), key=idle.__getitem__, default=None)
