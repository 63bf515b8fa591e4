"""A server on 127.0.0.1 that sends exactly the bytes that it was given, HTTP or not."""

import contextlib
import socket
import socketserver
import struct
import threading
from collections import Counter
from types import TracebackType
from typing import Any, Self, cast

RESET = "reset"
"""Ends the connection with RST."""

STALL = "stall"
"""Sends nothing more and keeps the connection until the client gives up."""

KEEP = "keep"
"""Waits for the next request on this connection."""

Steps = list[bytes | str]


class RawServer:
    """Answers each path once with its own steps, and every other request with ``otherwise``.

    Attributes:
        answers: what to send for a path (``/1``), step by step; then the connection is closed.
        otherwise: what to send when the path has had its answer.
        requests: how often each path was asked for.
    """

    def __init__(self, otherwise: bytes) -> None:
        self.answers: dict[str, Steps] = {}
        self.otherwise = otherwise
        self.requests: Counter[str] = Counter()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def base(self) -> str:
        """Beginning of every URL, without a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    owner: RawServer


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
        owner = cast(_Server, self.server).owner
        owner.requests[path] += 1
        steps = owner.answers.pop(path, None)
        for step in [owner.otherwise] if steps is None else steps:
            if isinstance(step, bytes):
                connection.sendall(step)
            elif step == KEEP:
                return True
            elif step == RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            else:
                self._wait_for_end(connection, owner)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
            # Closed while unread bytes wait, the connection would be reset and the answer lost.
            while connection.recv(65536):
                pass
        return False

    def _wait_for_end(self, connection: Any, owner: RawServer) -> None:
        connection.settimeout(0.1)
        while not owner.closing.is_set():
            with contextlib.suppress(TimeoutError):
                if not connection.recv(65536):
                    return
