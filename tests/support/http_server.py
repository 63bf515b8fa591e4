"""What stand-ins for HTTP servers share: a free port of 127.0.0.1, threads that end with the server, and silence."""

import socket
import struct
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler
from typing import Any, Self

Headers = Mapping[str, str]


class StandIn(ThreadingHTTPServer):
    """A server that is a context manager: it serves from entering to leaving, and leaves no connection behind.

    Attributes:
        port: the port.
        base: ``http://127.0.0.1:port``, the beginning of every URL and what HTTP_PROXY must say.
        lock: for what handlers count.
        closing: set when the server ends; who waits in a handler waits for it.
        connections: number of connections, those that failed before any request included.
    """

    # Threads are joined on close; a burst of connections waits in the queue instead of being dropped.
    daemon_threads = False
    request_queue_size = 256

    def __init__(self, handler: type[BaseRequestHandler], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.port = self.server_port
        self.base = f"http://127.0.0.1:{self.port}"
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._serving = threading.Thread(target=self.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._serving.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self._serving.join()
        for each in list(self._open):
            try:
                # Wakes the threads that wait for a kept connection's next request.
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # already closed by its own thread
        self.server_close()

    def secured(self, connection: socket.socket) -> socket.socket:
        """Return what to speak over in place of a new connection."""
        return connection

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Handle one connection, in its own thread."""
        with self.lock:
            self.connections += 1
        connection = self.secured(request)
        self._open.add(connection)
        try:
            super().finish_request(connection, client_address)
        finally:
            self._open.discard(connection)
            connection.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that break off are what the tests are about."""


class Handler(BaseHTTPRequestHandler):
    """One connection, and ways to answer the request that came over it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    _is_reset = False

    def head(self, code: int, headers: Headers) -> None:
        """Send the status line and exactly these headers (and ``Date``)."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, code: int, body: bytes, kind: str = "text/plain", headers: Headers | None = None) -> None:
        """Send a whole answer."""
        self.head(code, {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def body(self) -> bytes:
        """Return what was sent with the request."""
        return self.rfile.read(int(self.headers["Content-Length"]))

    def reset(self) -> None:
        """End the connection with RST once this request has been handled."""
        reset_on_close(self.connection)
        self.close_connection = self._is_reset = True

    def finish(self) -> None:
        """End the connection."""
        if self._is_reset:
            # Without the orderly shutdown of the base class, close() sends RST.
            self.rfile.close()
            self.connection.close()
            return
        super().finish()

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output clean."""


def reset_on_close(connection: socket.socket) -> None:
    """Let close() send RST instead of FIN: that is what a linger time of 0 does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
