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
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class BoundedServer(ThreadingHTTPServer):
    """At most MAX_CONNECTIONS threads, one for each connection; a failure is one line of the log."""

    request_queue_size = 128  # with the default of 5, simultaneous clients would wait for seconds

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.connections: dict[socket.socket, float | None] = {}
        """Since when each connection has waited for a request; None while its request is worked on."""
        self.connections_lock = threading.Lock()
        super().__init__(*arguments, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a new connection; if there are too many, one that is idle ends, or else the new one."""
        if not self._make_room():
            request.settimeout(1)
            with suppress(OSError):  # it may have left
                request.sendall(BUSY)
            self.shutdown_request(request)
            return
        with self.connections_lock:
            self.connections[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection and close it."""
        with self.connections_lock:
            self.connections.pop(request, None)
        super().shutdown_request(request)

    def mark(self, connection: socket.socket, *, is_working: bool) -> None:
        """Record whether a connection's request is being worked on, or it waits for one."""
        with self.connections_lock:
            if connection in self.connections:
                self.connections[connection] = None if is_working else time.monotonic()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what ended a connection, in one line."""
        error = sys.exception()
        assert error is not None
        if not isinstance(error, OSError):  # the client has left, or its network has failed
            print(f"error: connection from {client_address}: {one_line(error)}", file=sys.stderr)

    def _make_room(self) -> bool:
        """Return whether there is room for a connection, after ending the one that has been idle longest if not."""
        with self.connections_lock:
            if len(self.connections) < MAX_CONNECTIONS:
                return True
            idle = {connection: since for connection, since in self.connections.items() if since is not None}
            if not idle:
                return False
            oldest = min(idle, key=idle.__getitem__)
            del self.connections[oldest]
        with suppress(OSError):  # it may have ended by itself
            oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end of the connection, and ends
        return True
