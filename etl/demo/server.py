"""A loopback HTTP server with pictures, some of which fail until it is healed."""

import sys
import threading
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

HOST = "127.0.0.1"

RETRY_AFTER_S = 1
"""What a refusal asks for: the header knows whole seconds only, and 0 would ask for nothing."""


@dataclass(frozen=True)
class _File:
    """A file to serve, and how it fails at first: so many times 503, or cut short until healed."""

    body: bytes
    content_type: str
    refusals: int
    cut_short: bool


class DemoServer:
    """Serves what was added, on a free port of the loopback address, from entering its context to leaving it.

    A path that was never added answers 404.

    Attributes:
        requests: how often each path was asked for.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self._files: dict[str, _File] = {}
        self._healed = False
        self._lock = threading.Lock()
        self._http = _HTTPServer(self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="demo-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def base(self) -> str:
        """The URL of the server's root, without a slash at its end."""
        return f"http://{HOST}:{self._http.server_port}"

    def url(self, path: str) -> str:
        """Return the URL of a path, which begins with a slash."""
        return self.base + quote(path)

    def add(self, path: str, body: bytes, content_type: str, *, refusals: int = 0, cut_short: bool = False) -> str:
        """Serve a file and return its URL.

        The first ``refusals`` requests get a 503 with ``Retry-After``; with ``cut_short`` the connection ends in
        the middle of the body.  Both are over at once when the server is healed.
        """
        self._files[path] = _File(body, content_type, refusals, cut_short)
        return self.url(path)

    def body(self, path: str) -> bytes:
        """Return a file that was added."""
        return self._files[path].body

    def heal(self) -> None:
        """Serve every file whole from now on; what is not there stays 404."""
        self._healed = True

    def answer(self, path: str) -> tuple[int, _File | None, bool]:
        """Count a request; return its status, the file that it gets, if any, and whether that is cut short."""
        with self._lock:
            self.requests[path] += 1
            number = self.requests[path]
        file = self._files.get(path)
        if file is None:
            return 404, None, False
        if number <= file.refusals and not self._healed:
            return 503, None, False
        return 200, file, file.cut_short and not self._healed


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    # The usual 5 would let a burst of connections wait a second for their second SYN.
    request_queue_size = 128

    def __init__(self, demo: DemoServer) -> None:
        super().__init__((HOST, 0), _Handler)
        self.demo = demo

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away: stopping a run does that."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _HTTPServer

    def do_GET(self) -> None:
        """Answer one request; HTTP/1.0, so that the connection's end is the body's end."""
        status, file, cut_short = self.server.demo.answer(unquote(urlsplit(self.path).path))
        body = file.body if file else f"{status}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", file.content_type if file else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", str(RETRY_AFTER_S))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut_short else body)

    def log_message(self, *_args: Any) -> None:
        """Keep requests out of the demo's own output."""
