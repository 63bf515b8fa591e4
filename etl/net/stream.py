"""The bytes of one connection, as httpcore2 wants them.

Its own streams go through anyio, which looks at the clock and at the socket so often that a small file cost more there
than all else that is done for it.
"""

import asyncio
import os
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore2

SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]

MOST_WAITING = 256 * 1024
"""Bytes received and not yet read, beyond which nothing more is taken from the socket."""

_INFO = {"client_addr": "sockname", "server_addr": "peername"}


class Stream(asyncio.Protocol, httpcore2.AsyncNetworkStream):
    """A connection of the event loop; what has come is handed over in one piece, however large.

    Raises httpcore2's own errors.
    """

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._size = 0
        self._ended = False
        self._error: Exception | None = None
        self._changed: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be told by the event loop of the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self._waiting.append(data)
        self._size += len(data)
        if self._size > MOST_WAITING:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """Be told that nothing more comes."""
        self._ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Be told that the connection is gone, and why."""
        self._ended = True
        self._error = exc
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 -- as httpcore2 calls it
        """Return all that has come, and wait for it where that is nothing; empty at the end.

        httpcore2 asks for 64 kB at a time, each of which costs its parser as much as the bytes themselves.
        """
        if not self._waiting and not self._ended:
            self._changed = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout):
                    await self._changed
            except TimeoutError as error:
                raise httpcore2.ReadTimeout from error
        if not self._waiting and self._error is not None:
            raise httpcore2.ReadError(_why(self._error)) from self._error
        data = b"".join(self._waiting)
        self._waiting.clear()
        if self._size > MOST_WAITING:
            self._transport.resume_reading()
        self._size = 0
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Send bytes, which are never many: the answer is waited for, not that they have gone."""
        if buffer:
            self._transport.write(buffer)

    async def aclose(self) -> None:
        """Close the connection at once, and without TLS's goodbye, which nobody waits for."""
        self._transport.abort()
        # The socket is closed in the next turn of the event loop.
        await asyncio.sleep(0)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Go on in TLS, over this connection."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                made = await loop.start_tls(self._transport, self, ssl_context, server_hostname=server_hostname)
        except BaseException as error:
            self._transport.abort()
            if isinstance(error, OSError):
                raise _connect_error(error) from error
            raise
        assert made is not None
        self._transport = made
        return self

    def get_extra_info(self, info: str) -> Any:
        """Return what the transport knows; ``is_readable`` without asking the system."""
        if info == "is_readable":
            return bool(self._waiting) or self._ended
        return self._transport.get_extra_info(_INFO.get(info, info))


class TcpBackend(httpcore2.AsyncNetworkBackend):
    """Opens such connections."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 -- the signature is httpcore2's
        socket_options: Iterable[SocketOption] | None = None,  # noqa: ARG002
    ) -> httpcore2.AsyncNetworkStream:
        """Dial one host."""
        try:
            async with asyncio.timeout(timeout):
                _, stream = await asyncio.get_running_loop().create_connection(Stream, host, port)
        except OSError as error:
            raise _connect_error(error) from error
        return stream


def _connect_error(error: OSError) -> Exception:
    kind = httpcore2.ConnectTimeout if isinstance(error, TimeoutError) else httpcore2.ConnectError
    return kind(_why(error))


def _why(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    # asyncio's own words name the address, too.
    return os.strerror(number) if number is not None and number > 0 else str(error)
