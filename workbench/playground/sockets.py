"""A socket that only this machine can reach, bound before the models load, which may take minutes."""

from __future__ import annotations

import socket

from workbench.errors import UserError

HOST = "127.0.0.1"


def bind(port: int) -> socket.socket:
    """Return a socket that listens on a port of this machine; raises UserError if it is out of range or in use."""
    if not 0 <= port < 2**16:
        raise UserError(f"--port: {port} must be between 0 (any free port) and {2**16 - 1}")
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
        bound.listen()
    except OSError as error:
        bound.close()
        raise UserError(f"--port: {port}: {error.strerror}; choose another (0: any free port)") from error
    return bound


def address(bound: socket.socket) -> str:
    """Return the address of a bound socket's page."""
    return f"http://{HOST}:{bound.getsockname()[1]}"
