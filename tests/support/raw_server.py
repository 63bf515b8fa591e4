"""A server on 127.0.0.1 that sends exactly the bytes that it was given, HTTP or not."""

import contextlib
import socket
import socketserver
from collections import Counter
from typing import cast

from support.http_server import StandIn, reset_on_close

RESET = "reset"
"""Ends the connection with RST."""

STALL = "stall"
"""Sends nothing more and keeps the connection until the client gives up."""

KEEP = "keep"
"""Waits for the next request on this connection."""

Steps = list[bytes | str]


class RawServer(StandIn):
    """Answers each path once with its own steps, and every other request with ``otherwise``.

    Attributes:
        answers: what to send for a path (``/1``), step by step; then the connection is closed.
        otherwise: what to send when the path has had its answer.
        requests: how often each path was asked for.
    """

    def __init__(self, otherwise: bytes) -> None:
        super().__init__(_Handler)
        self.answers: dict[str, Steps] = {}
        self.otherwise = otherwise
        self.requests: Counter[str] = Counter()


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        connection = cast(socket.socket, self.request)
        connection.settimeout(60)
        with contextlib.suppress(OSError):
            while path := self._path(connection):
                if not self._answer(connection, path):
                    return

    def _path(self, connection: socket.socket) -> str:
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(65536)
            if not data:
                return ""
            head += data
        return head.split(b" ")[1].decode("latin-1")

    def _answer(self, connection: socket.socket, path: str) -> bool:
        """Send what belongs to the path; return whether the connection goes on."""
        owner = cast(RawServer, self.server)
        owner.requests[path] += 1
        steps = owner.answers.pop(path, None)
        for step in [owner.otherwise] if steps is None else steps:
            if isinstance(step, bytes):
                connection.sendall(step)
            elif step == KEEP:
                return True
            elif step == RESET:
                reset_on_close(connection)
                connection.close()
                return False
            else:
                # Until the client goes, or the server does.
                while connection.recv(65536):
                    pass
                return False
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
            # Closed while unread bytes wait, the connection would be reset and the answer lost.
            while connection.recv(65536):
                pass
        return False
