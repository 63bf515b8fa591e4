"""A real HTTP server on 127.0.0.1 that serves files and misbehaves on request.

    with FaultServer() as server:
        server.add("/a.jpg", body, "image/jpeg")
        server.fail("/a.jpg", status(503, retry_after="2"), times=1)
        ...                                        # server.url("/a.jpg") gives 503 once, then the body
        assert server.requests["/a.jpg"] == 2

It also serves as an HTTP proxy target: with ``HTTP_PROXY=server.base`` a request for ``http://any.host/a.jpg`` is
answered with what was added for ``http://any.host/a.jpg`` or, failing that, for ``/a.jpg``.  Paths are given and
counted unquoted (``/a b.TIF``); a query counts as part of the path only where a path with that query was added.
"""

import email.utils
import gzip
import hashlib
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from support.http_server import Handler, StandIn


@dataclass(frozen=True)
class Resource:
    """A file that the server has."""

    body: bytes
    content_type: str

    @property
    def etag(self) -> str:
        """A strong validator of the body."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:16]}"'


@dataclass(frozen=True)
class Request:
    """One request as it arrived: ``target`` is raw (a full URL from a proxy's client), ``at`` is `time.monotonic`."""

    method: str
    target: str
    path: str
    headers: dict[str, str]
    at: float


@dataclass(frozen=True)
class Exchange:
    """What a behaviour works with: the resource behind the path, and ways to answer."""

    resource: Resource
    handler: "_Handler"
    closing: threading.Event
    base: str

    def head(self, code: int, headers: dict[str, str]) -> None:
        """Send the status line and exactly these headers (and ``Date``)."""
        self.handler.head(code, headers)

    def send(self, data: bytes) -> None:
        """Send raw bytes."""
        self.handler.wfile.write(data)

    @property
    def asked_from(self) -> int:
        """First byte of the range that was asked for of this version of the resource; 0 when all of it was."""
        headers = self.handler.headers
        match = re.fullmatch(r"bytes=(\d+)-", headers.get("Range", ""))
        return int(match[1]) if match and headers.get("If-Range") == self.resource.etag else 0

    def close(self, *, reset: bool = False) -> None:
        """End the connection after this answer, with RST instead of FIN if asked."""
        self.handler.close_connection = True
        if reset:
            self.handler.reset()


Behaviour = Callable[[Exchange], None]


def ok(exchange: Exchange) -> None:
    """Answer 200 with the resource, or 304 when ``If-None-Match`` names its ETag."""
    resource = exchange.resource
    if exchange.handler.headers.get("If-None-Match") == resource.etag:
        exchange.head(304, {"ETag": resource.etag})
        return
    length = str(len(resource.body))
    modified = email.utils.formatdate(0, usegmt=True)
    head = {"Content-Type": resource.content_type, "Content-Length": length}
    exchange.head(200, head | {"ETag": resource.etag, "Last-Modified": modified})
    exchange.send(resource.body)


def ranged(exchange: Exchange, *, shift: int = 0, cut: int | None = None) -> None:
    """Answer a range whose ``If-Range`` fits with 206, everything else as `ok` does.

    With ``shift`` the range begins so many bytes off; with ``cut`` the connection ends after so many bytes of it.
    """
    body = exchange.resource.body
    if not exchange.asked_from:
        return ok(exchange)
    start = exchange.asked_from + shift
    rest = body[start:]
    span = f"bytes {start}-{len(body) - 1}/{len(body)}"
    exchange.head(206, {"Content-Length": str(len(rest)), "Content-Range": span, "ETag": exchange.resource.etag})
    exchange.send(rest if cut is None else rest[:cut])
    exchange.close()
    return None


def status(code: int, *, retry_after: str | None = None) -> Behaviour:
    """Answer with a status, and ``Retry-After`` as given (seconds, or an HTTP date as from `http_date`)."""

    def behave(exchange: Exchange) -> None:
        body = f"status {code}\n".encode()
        head = {"Content-Type": "text/plain", "Content-Length": str(len(body))}
        exchange.head(code, head | ({"Retry-After": retry_after} if retry_after else {}))
        exchange.send(body)

    return behave


def http_date(seconds_from_now: float) -> str:
    """Return an HTTP date for ``Retry-After``."""
    return email.utils.formatdate(time.time() + seconds_from_now, usegmt=True)


def redirect(location: str, code: int = 302) -> Behaviour:
    """Redirect to ``location``, with no body; to the own path it is a loop."""
    return lambda exchange: exchange.head(code, {"Location": location, "Content-Length": "0"})


def html(exchange: Exchange) -> None:
    """Answer 200 with an HTML page in place of the picture."""
    body = b"<!DOCTYPE html><title>Please log in</title>"
    exchange.head(200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(body))})
    exchange.send(body)


def truncated(exchange: Exchange) -> None:
    """Announce the whole length, send half of the body, end the connection in good order."""
    _half(exchange)
    exchange.close()


def reset_mid_body(exchange: Exchange) -> None:
    """Announce the whole length, send half of the body, reset the connection."""
    _half(exchange)
    exchange.handler.wfile.flush()
    # Let the bytes arrive: RST would discard what the client has not read yet.
    exchange.closing.wait(0.1)
    exchange.close(reset=True)


def reset_at_once(exchange: Exchange) -> None:
    """Reset the connection before any answer."""
    exchange.close(reset=True)


def disconnect(exchange: Exchange) -> None:
    """Close the connection in good order before any answer."""
    exchange.close()


def reset_if_kept(exchange: Exchange) -> None:
    """Reset a connection that was used before, without an answer; serve the resource on a new one."""
    if exchange.handler.answered > 1:
        return reset_at_once(exchange)
    return ok(exchange)


def close_if_kept(exchange: Exchange) -> None:
    """Close a connection that was used before, without an answer; serve the resource on a new one."""
    if exchange.handler.answered > 1:
        return disconnect(exchange)
    return ok(exchange)


def no_length(exchange: Exchange) -> None:
    """Send the body without Content-Length; the end of the connection ends it."""
    exchange.head(200, {"Content-Type": exchange.resource.content_type, "Connection": "close"})
    exchange.send(exchange.resource.body)
    exchange.close()


def chunked_cut(exchange: Exchange) -> None:
    """Send a chunked body that ends without its last chunk."""
    exchange.head(200, {"Content-Type": exchange.resource.content_type, "Transfer-Encoding": "chunked"})
    exchange.send(b"%x\r\n%s\r\n" % (len(exchange.resource.body), exchange.resource.body))
    exchange.close()


def drip(bytes_per_s: float) -> Behaviour:
    """Send the body evenly at this rate, in steps of at most 50 ms."""

    def behave(exchange: Exchange) -> None:
        body = exchange.resource.body
        exchange.head(200, {"Content-Type": exchange.resource.content_type, "Content-Length": str(len(body))})
        step = max(1, int(bytes_per_s / 20))
        for start in range(0, len(body), step):
            if exchange.closing.wait(step / bytes_per_s):
                break
            exchange.send(body[start : start + step])
        exchange.close()

    return behave


def drip_head(exchange: Exchange) -> None:
    """Send headers without end, one each 50 ms."""
    exchange.send(b"HTTP/1.1 200 OK\r\n")
    while not exchange.closing.wait(0.05):
        exchange.send(b"X-Slow: 1\r\n")
    exchange.close()


def hang(exchange: Exchange) -> None:
    """Take the request and never answer."""
    exchange.closing.wait()
    exchange.close()


def endless(exchange: Exchange) -> None:
    """Send a body without length and without end."""
    exchange.head(200, {"Content-Type": "image/jpeg"})
    while not exchange.closing.is_set():
        exchange.send(bytes(65536))
    exchange.close()


def announce(length: int) -> Behaviour:
    """Announce a Content-Length and send nothing more."""

    def behave(exchange: Exchange) -> None:
        exchange.head(200, {"Content-Type": "image/jpeg", "Content-Length": str(length)})
        exchange.close()

    return behave


def garbage(exchange: Exchange) -> None:
    """Answer with something that is not HTTP."""
    exchange.send(b"220 mail.example.org ESMTP ready\r\n\r\n")
    exchange.close()


def gzipped(exchange: Exchange) -> None:
    """Send the body with Content-Encoding gzip, whatever was accepted."""
    encoded(gzip.compress(exchange.resource.body), "gzip")(exchange)


def encoded(data: bytes, coding: str) -> Behaviour:
    """Send these bytes under this Content-Encoding."""

    def behave(exchange: Exchange) -> None:
        head = {"Content-Type": exchange.resource.content_type, "Content-Encoding": coding}
        exchange.head(200, head | {"Content-Length": str(len(data))})
        exchange.send(data)

    return behave


def _half(exchange: Exchange) -> None:
    body = exchange.resource.body
    exchange.head(200, {"Content-Type": exchange.resource.content_type, "Content-Length": str(len(body))})
    exchange.send(body[: len(body) // 2])


class FaultServer(StandIn):
    """The server; a context manager.  ``tls`` is a certificate file (PEM, with its key) to speak HTTPS with.

    Attributes:
        requests: number of requests by path, failed ones included.
        log: every request in the order of arrival.
    """

    def __init__(self, *, tls: str | None = None) -> None:
        super().__init__(_Handler)
        self.requests: Counter[str] = Counter()
        self.log: list[Request] = []
        self._resources: dict[str, Resource] = {}
        self._faults: dict[str, tuple[Behaviour, int | None]] = {}
        self._context: ssl.SSLContext | None = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(tls)
            self.base = self.base.replace("http:", "https:")

    def url(self, path: str) -> str:
        """Return the URL of a path of this server."""
        return self.base + path

    def add(self, path: str, body: bytes, content_type: str = "image/jpeg") -> str:
        """Serve ``body`` under a path, or under a full URL for clients that use this server as proxy; give its URL."""
        with self.lock:
            self._resources[path] = Resource(body, content_type)
        return path if "://" in path else self.url(path)

    def fail(self, path: str, behaviour: Behaviour, times: int | None = None) -> str:
        """Answer with ``behaviour``, always or so many ``times``; a path that was not added gets a small body."""
        with self.lock:
            self._faults[path] = (behaviour, times)
            self._resources.setdefault(path, Resource(b"behind the fault", "image/jpeg"))
        return path if "://" in path else self.url(path)

    def heal(self) -> None:
        """Forget all faults: everything that was added or named in `fail` is served as it is."""
        with self.lock:
            self._faults.clear()

    def answer(self, handler: "_Handler") -> None:
        """Record one request and answer it; called by the connection's thread."""
        with self.lock:
            path = self._key(handler.path)
            self.requests[path] += 1
            request = Request(handler.command, handler.path, path, dict(handler.headers), time.monotonic())
            self.log.append(request)
            resource = self._resources.get(path)
            behaviour = self._behaviour(path) if resource else status(404)
        exchange = Exchange(resource or Resource(b"", "text/plain"), handler, self.closing, self.base)
        behaviour(exchange)

    def _behaviour(self, path: str) -> Behaviour:
        behaviour, times = self._faults.get(path, (ok, None))
        if times is not None:
            if times <= 1:
                del self._faults[path]
            else:
                self._faults[path] = (behaviour, times - 1)
        return behaviour

    def _key(self, target: str) -> str:
        parts = urlsplit(target)
        path = unquote(parts.path)
        keys = [f"{path}?{parts.query}", path] if parts.query else [path]
        if parts.netloc:
            keys = [f"{parts.scheme}://{parts.netloc}{key}" for key in keys] + keys
        return next((key for key in keys if key in self._resources), path)

    def secured(self, connection: socket.socket) -> socket.socket:
        """Shake hands, where this server speaks HTTPS."""
        if not self._context:
            return connection
        connection.settimeout(5)
        secured = self._context.wrap_socket(connection, server_side=True)
        secured.settimeout(None)
        return secured


class _Handler(Handler):
    server: FaultServer
    answered = 0
    """Requests that came over this connection."""

    def do_GET(self) -> None:
        self.answered += 1
        self.server.answer(self)

    do_HEAD = do_GET
