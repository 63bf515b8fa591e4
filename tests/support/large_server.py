"""A `FaultServer` in a process of its own: beside a client's event loop its threads would hold the interpreter's lock.

Serves one large picture whose connection breaks again and again, and some small ones beside it.
"""

import fcntl
import multiprocessing
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from support.fault_server import Exchange, FaultServer

Piece = tuple[int, int]
"""First byte that was asked for, and the byte behind the last one that was sent."""


@dataclass(frozen=True)
class LargeServer:
    """The running server.

    Attributes:
        urls: the large picture's, then those of the small ones.
        process: the server's process.
    """

    urls: list[str]
    process: psutil.Process
    _pipe: Connection

    def pieces(self) -> list[Piece]:
        """Return what was sent of the large picture so far, request by request."""
        self._pipe.send("pieces")
        pieces: list[Piece] = self._pipe.recv()
        return pieces


@contextmanager
def large_server(large: Path, small: list[Path], breaks: int) -> Iterator[LargeServer]:
    """Serve a picture that breaks so many times, at equal distances, and small ones without a fault."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, large, small, breaks))
    process.start()
    try:
        yield LargeServer(here.recv(), psutil.Process(process.pid), here)
    finally:
        here.send("end")
        process.join(30)
        process.kill()


def _serve(pipe: Connection, large: Path, small: list[Path], breaks: int) -> None:
    pieces: list[Piece] = []
    body = large.read_bytes()
    length = -(-len(body) // (breaks + 1))

    def breaking(exchange: Exchange) -> None:
        start = exchange.asked_from
        end = min(start + length, len(body))
        head = {"Content-Length": str(len(body) - start), "ETag": exchange.resource.etag}
        if start:
            head["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        exchange.head(206 if start else 200, head)
        exchange.send(body[start:end])
        pieces.append((start, end))
        if end < len(body):
            _drain(exchange)
            # Every other break is a reset.
            exchange.close(reset=len(pieces) % 2 == 1)

    with FaultServer() as server:
        server.add("/large.tif", body, "image/tiff")
        urls = [server.fail("/large.tif", breaking)]
        urls += [server.add(f"/{path.name}", path.read_bytes()) for path in small]
        pipe.send(urls)
        while pipe.recv() == "pieces":
            pipe.send(pieces)


def _drain(exchange: Exchange) -> None:
    """Wait until the other side has everything: RST would take back what is still to be sent."""
    exchange.handler.wfile.flush()
    while struct.unpack("i", fcntl.ioctl(exchange.handler.connection, termios.TIOCOUTQ, bytes(4)))[0]:
        time.sleep(0.005)
