"""Ways in which an HTTP server misbehaves, beyond those of `support.fault_server`; `support.fault_cases` lists all."""

import gzip
import socket
from collections.abc import Mapping

from support.fault_server import Behaviour, Exchange, http_date, ok, status


def raw(*pieces: bytes, reset: bool = False) -> Behaviour:
    """Send these bytes as the whole answer, status line included, and end the connection."""

    def behave(exchange: Exchange) -> None:
        for piece in pieces:
            exchange.send(piece)
        if reset:
            exchange.handler.wfile.flush()
            # Let the bytes arrive: RST would discard what the client has not read yet.
            exchange.closing.wait(0.05)
        exchange.close(reset=reset)

    return behave


def for_ever(begin: bytes, piece: bytes, pause_s: float = 0.0) -> Behaviour:
    """Send a beginning, then the same piece again and again until the client has gone."""

    def behave(exchange: Exchange) -> None:
        exchange.send(begin)
        while not exchange.closing.wait(pause_s):
            exchange.send(piece)
        exchange.close()

    return behave


def led_by(begin: bytes) -> Behaviour:
    """Send these bytes, then the good answer."""

    def behave(exchange: Exchange) -> None:
        exchange.send(begin)
        ok(exchange)

    return behave


def typed(content_type: str, body: bytes | None = None) -> Behaviour:
    """Answer 200 with this media type and body; without one, with the resource."""

    def behave(exchange: Exchange) -> None:
        data = exchange.resource.body if body is None else body
        exchange.head(200, {"Content-Type": content_type, "Content-Length": str(len(data))})
        exchange.send(data)

    return behave


def misannounced(difference: int, *, stay: bool = False) -> Behaviour:
    """Announce so many bytes more or less than come; with ``stay`` the connection is left open afterwards."""

    def behave(exchange: Exchange) -> None:
        body = exchange.resource.body
        exchange.head(200, {"Content-Type": "image/jpeg", "Content-Length": str(len(body) + difference)})
        exchange.send(body)
        if stay:
            exchange.closing.wait()
        exchange.close()

    return behave


def unmarked_end(exchange: Exchange) -> None:
    """Send half of the body without any length and end the connection: nobody can tell that there was more."""
    exchange.head(200, {"Content-Type": "image/jpeg"})
    exchange.send(exchange.resource.body[: len(exchange.resource.body) // 2])
    exchange.close()


def chunked(*chunks: bytes) -> Behaviour:
    """Send these bytes as the chunks of a chunked body, whatever they say."""
    return raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *chunks)


def to(location: bytes) -> Behaviour:
    """Redirect with exactly these bytes as Location."""
    return raw(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\nLocation: " + location + b"\r\n\r\n")


def to_own_host(exchange: Exchange) -> None:
    """Redirect to ``//host/there``, the protocol left out."""
    exchange.head(302, {"Location": f"//{exchange.handler.headers['Host']}/there", "Content-Length": "0"})


def until(code: int, seconds: float) -> Behaviour:
    """Answer with a status and a date in ``Retry-After`` that lies so far behind the request."""
    return lambda exchange: status(code, retry_after=http_date(seconds))(exchange)


def after_a_break(behaviour: Behaviour) -> Behaviour:
    """Break whole answers in the middle; ``behaviour`` answers who asks for the rest."""

    def behave(exchange: Exchange) -> None:
        if exchange.asked_from:
            behaviour(exchange)
            return
        body = exchange.resource.body
        exchange.head(200, {"Content-Length": str(len(body)), "ETag": exchange.resource.etag})
        exchange.send(body[: len(body) // 2])
        exchange.close()

    return behave


def partial_content(exchange: Exchange, headers: Mapping[str, str], body: bytes | None = None) -> None:
    """Answer 206 with the rest of the resource, or other bytes, under these headers and nothing else."""
    data = exchange.resource.body[exchange.asked_from :] if body is None else body
    exchange.head(206, {"Content-Length": str(len(data)), **headers})
    exchange.send(data)


def no_content_range(exchange: Exchange) -> None:
    """Answer 206 without saying which range it is."""
    partial_content(exchange, {})


def multipart(exchange: Exchange) -> None:
    """Answer 206 as ``multipart/byteranges``, as if several ranges had been asked for."""
    size, start = len(exchange.resource.body), exchange.asked_from
    head = f"--cut\r\nContent-Range: bytes {start}-{size - 1}/{size}\r\n\r\n".encode()
    body = head + exchange.resource.body[start:] + b"\r\n--cut--\r\n"
    partial_content(exchange, {"Content-Type": "multipart/byteranges; boundary=cut"}, body)


def another_total(exchange: Exchange) -> None:
    """Answer 206 with the right first byte of a longer file."""
    size = len(exchange.resource.body)
    partial_content(exchange, {"Content-Range": f"bytes {exchange.asked_from}-{size - 1}/{size + 1}"})


def unknown_total(exchange: Exchange) -> None:
    """Answer 206 with the right range of a file whose length the server does not know."""
    partial_content(exchange, {"Content-Range": f"bytes {exchange.asked_from}-{len(exchange.resource.body) - 1}/*"})


def from_the_start(exchange: Exchange) -> None:
    """Answer 206 with all of the file."""
    body = exchange.resource.body
    partial_content(exchange, {"Content-Range": f"bytes 0-{len(body) - 1}/{len(body)}"}, body)


def less_than_the_range(exchange: Exchange) -> None:
    """Answer 206 with the right range and fewer bytes than it has."""
    body, start = exchange.resource.body, exchange.asked_from
    partial_content(exchange, {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}, body[start:-1000])


def more_than_the_range(exchange: Exchange) -> None:
    """Answer 206 with the right range and more bytes than it has."""
    body, start = exchange.resource.body, exchange.asked_from
    partial_content(exchange, {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}, body[start:] + b"more")


def compressed_range(exchange: Exchange) -> None:
    """Answer 206 with the right range, compressed."""
    body, start = exchange.resource.body, exchange.asked_from
    span = f"bytes {start}-{len(body) - 1}/{len(body)}"
    partial_content(exchange, {"Content-Range": span, "Content-Encoding": "gzip"}, gzip.compress(body[start:]))


def unasked_range(exchange: Exchange) -> None:
    """Answer a request for the whole file with the first half."""
    half, size = len(exchange.resource.body) // 2, len(exchange.resource.body)
    partial_content(exchange, {"Content-Range": f"bytes 0-{half - 1}/{size}"}, exchange.resource.body[:half])


def endless_redirect(exchange: Exchange) -> None:
    """Redirect to ``/there`` with a body without end."""
    exchange.head(302, {"Location": "/there"})
    while not exchange.closing.is_set():
        exchange.send(bytes(65536))


def endless_header_line(exchange: Exchange) -> None:
    """Send one header line without end, until the client gives up."""
    exchange.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    exchange.handler.connection.settimeout(5)
    while not exchange.closing.is_set():
        exchange.send(b"a" * 65536)
    exchange.close()


def half_closed(exchange: Exchange) -> None:
    """Close the sending side after the headers and keep the connection."""
    exchange.head(200, {"Content-Length": "1000"})
    exchange.handler.wfile.flush()
    exchange.handler.connection.shutdown(socket.SHUT_WR)
    exchange.close()
