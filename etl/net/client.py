"""Downloads over HTTP, and the place where every exception of httpx gets its class (`transport` shares httpx).

httpx 0.28 has two faults that shape this module.  A request that is cancelled at the wrong instant leaks its place in
the pool, so each request has a pool of its own (`etl.net.lanes`).  And its time-outs count per read, so a server that
drips bytes would never be ended; a watchdog over the whole exchange does that.
"""

import asyncio
import importlib.metadata
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import httpcore
import httpx

from etl.config import Settings, redact_url
from etl.errors import (
    BodyTooLargeError,
    BrokenConnectionError,
    ConfigError,
    ConnectError,
    DnsError,
    EtlError,
    FetchError,
    FetchTimeoutError,
    InvalidUrlError,
    ProtocolError,
    TlsError,
    TooManyRedirectsError,
    TransientFetchError,
    TruncatedBodyError,
)
from etl.net.answers import is_compressed, status_error
from etl.net.lanes import CONNECTIONS, Lanes
from etl.net.local import host_of
from etl.net.part import Download, PartWriter
from etl.net.transport import GuardedTransport, Routes, proxy_transports

__all__ = ["MAX_REDIRECTS", "Download", "Downloader", "fetch_error"]

MAX_REDIRECTS = 5

_SUCCESS = (200, 203)
"""Statuses that carry the whole file; 206 would be a part that nobody asked for, 202 and 204 carry none."""

KEEPALIVE_S = 120.0
"""Seconds that an idle connection is kept: longer than the usual politeness delay, or each request reconnects."""

POOL_TIMEOUT_S = 60.0
"""Never reached, since a lane carries one request at a time; bounds the damage if it should be."""

_LIMITS = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE_S)

MAX_SHOWN_URL = 500
"""Characters of a URL in an error message."""

# httpx logs every URL, with its secrets, at INFO; httpcore the raw requests at DEBUG.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass
class _Attempt:
    """How far one download has come, for its error message."""

    url: str
    current: str
    status: int | None = None
    writer: PartWriter | None = None

    @property
    def received(self) -> int:
        return self.writer.received if self.writer else 0

    def where(self) -> str:
        shown = _shown(self.url)
        return shown if self.current == self.url else f"{shown} (redirected to {_shown(self.current)})"


class Downloader:
    """Streams URLs to files; an async context manager, for one event loop.

    Attributes:
        proxied: whether the environment names a proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY; NO_PROXY excepts hosts).
            The proxy resolves and dials for us, so the guard against private addresses does not apply there.

    Raises `ConfigError` when the proxy or the contact address cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context = httpx.create_ssl_context()
        self._user_agent = _user_agent(settings.contact)
        self.proxied = bool(proxy_transports(self._context, _LIMITS))
        self._lanes = Lanes(self._client, settings.concurrency)

    def _client(self) -> httpx.AsyncClient:
        settings = self._settings
        return httpx.AsyncClient(
            transport=Routes(
                GuardedTransport(self._context, _LIMITS, settings.allow_host), proxy_transports(self._context, _LIMITS)
            ),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(settings.read_timeout_s, connect=settings.connect_timeout_s, pool=POOL_TIMEOUT_S),
            headers={
                "User-Agent": self._user_agent,
                # Compressed, neither the length nor a range nor the hash would be the file's.
                "Accept-Encoding": "identity",
            },
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._lanes.aclose()

    async def download(self, url: str, part: Path, *, etag: str | None = None) -> Download:
        """Stream ``url`` into ``part``, which is overwritten; neither fsynced nor renamed.

        With ``etag``, the server may answer 304 instead: nothing is written and `Download.not_modified` is true.
        Pass it only while the bytes that it stands for are in the cache.

        Raises a `FetchError` of the fitting class, whose ``http_status`` is the last status seen; `DiskFullError`
        or `StateError` when ``part`` cannot be written.  After a `TransientFetchError`, ``part`` holds what came
        so far; after any other it is gone.
        """
        url = url.strip()
        attempt = _Attempt(url=url, current=url)
        try:
            async with self._lanes.lane(host_of(url)) as client:
                return await self._fetch(client, attempt, part, etag)
        except FetchError as error:
            if not error.retryable:
                _unlink_file(part)
            raise _located(error, attempt) from error
        except EtlError:
            _unlink_file(part)
            raise
        except Exception as error:  # Everything foreign gets a class; its cause stays attached.
            raise _located(fetch_error(error), attempt) from error

    async def _fetch(self, client: httpx.AsyncClient, attempt: _Attempt, part: Path, etag: str | None) -> Download:
        settings = self._settings
        answer_s = settings.connect_timeout_s + settings.read_timeout_s
        try:
            async with asyncio.timeout(None) as watchdog:
                response = await self._open(client, attempt, etag, watchdog, answer_s)
                try:
                    if response.status_code == 304 and etag is not None:
                        return _result(response, None)
                    if response.status_code not in _SUCCESS:
                        headers = response.headers
                        raise status_error(response.status_code, headers.get("retry-after"), headers.get("date"))
                    return await self._receive(attempt, response, part, watchdog)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            if attempt.writer is None:
                raise FetchTimeoutError(f"no answer within {answer_s:g} s") from error
            slow = f"slower than {settings.min_rate} bytes/s, given up after {attempt.received} bytes"
            raise FetchTimeoutError(slow) from error

    async def _open(
        self, client: httpx.AsyncClient, attempt: _Attempt, etag: str | None, watchdog: asyncio.Timeout, answer_s: float
    ) -> httpx.Response:
        """Return the first answer that is no redirect, its body unread.  Each hop has ``answer_s`` seconds."""
        loop = asyncio.get_running_loop()
        headers = {} if etag is None else {"If-None-Match": etag}
        request = client.build_request("GET", attempt.url, headers=headers)
        for _ in range(MAX_REDIRECTS + 1):
            _check_scheme(request.url)
            watchdog.reschedule(loop.time() + answer_s)
            response = await client.send(request, stream=True)
            attempt.status = response.status_code
            if response.next_request is None:
                return response
            # Closed, not read: httpx's own redirects would read the whole body into memory first.
            await response.aclose()
            request = response.next_request
            attempt.current = str(request.url)
        raise TooManyRedirectsError(f"more than {MAX_REDIRECTS} redirects")

    async def _receive(
        self, attempt: _Attempt, response: httpx.Response, part: Path, watchdog: asyncio.Timeout
    ) -> Download:
        settings = self._settings
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) > settings.max_bytes:
            raise BodyTooLargeError(f"{length} bytes announced, the limit is {settings.max_bytes}")
        loop = asyncio.get_running_loop()
        begun = loop.time()
        writer = PartWriter(
            part, max_bytes=settings.max_bytes, compressed=is_compressed(response.headers.get("content-encoding"))
        )
        attempt.writer = writer
        with writer:
            # httpx declares less than it returns: only a generator can be closed before its end.
            async with aclosing(cast(AsyncGenerator[bytes, None], response.aiter_raw())) as chunks:
                watchdog.reschedule(_deadline(settings, begun, 0))
                async for chunk in chunks:
                    writer.write(chunk)
                    watchdog.reschedule(_deadline(settings, begun, writer.received))
            writer.finish()
        return _result(response, writer)


def _deadline(settings: Settings, begun: float, received: int) -> float | None:
    """When a body that has come so far must have got further, on the loop's clock; it moves with every byte.

    At the end of a file this is ``begun + read_timeout_s + size / min_rate``, so no body can take longer.
    """
    if not settings.min_rate:
        return None
    return begun + settings.read_timeout_s + received / settings.min_rate


def _result(response: httpx.Response, writer: PartWriter | None) -> Download:
    mime = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Download(
        sha256=writer.sha256 if writer else "",
        size=writer.size if writer else 0,
        http_status=response.status_code,
        etag=response.headers.get("etag"),
        last_modified=response.headers.get("last-modified"),
        final_url=str(response.url.copy_with(userinfo=b"")),
        mime=mime or None,
    )


def _user_agent(contact: str) -> str:
    if not (contact.isascii() and (contact.isprintable() or not contact)):
        raise ConfigError(f"contact = {contact!r}: only printable ASCII characters can go into the User-Agent")
    try:
        version = importlib.metadata.version("caption-etl")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    return f"caption-etl/{version}" + (f" (+{contact})" if contact else "")


def _check_scheme(url: httpx.URL) -> None:
    if url.scheme not in ("http", "https"):
        raise InvalidUrlError(f"neither http nor https: a {url.scheme or 'relative'} URL")
    if not url.host:
        raise InvalidUrlError("the URL has no host")
    if url.port is not None and not 0 < url.port < 65536:
        raise InvalidUrlError(f"there is no port {url.port}")


# First match wins, so the narrower class stands before the wider one.
_FOREIGN: tuple[tuple[tuple[type[Exception], ...], type[FetchError], str], ...] = (
    ((httpx.ConnectTimeout, httpcore.ConnectTimeout), FetchTimeoutError, "no connection in time"),
    ((httpx.TimeoutException, httpcore.TimeoutException, TimeoutError), FetchTimeoutError, "no data in time"),
    ((httpx.ProxyError, httpcore.ProxyError), ConnectError, "the proxy refused"),
    ((httpx.ConnectError, httpcore.ConnectError, ConnectionRefusedError), ConnectError, "no connection"),
    ((httpx.NetworkError, httpcore.NetworkError, ConnectionError), BrokenConnectionError, "the connection broke"),
    ((httpx.UnsupportedProtocol, httpcore.UnsupportedProtocol), InvalidUrlError, "neither http nor https"),
    ((httpx.ProtocolError, httpcore.ProtocolError, httpx.DecodingError), ProtocolError, "the answer breaks HTTP"),
    ((httpx.TransportError,), BrokenConnectionError, "the exchange failed"),
    ((httpx.TooManyRedirects,), TooManyRedirectsError, "too many redirects"),
    ((httpx.InvalidURL, UnicodeError), InvalidUrlError, "malformed URL"),
    ((socket.gaierror,), DnsError, "the name cannot be resolved"),
    ((ssl.SSLError,), TlsError, "TLS failed"),
    ((OSError,), ConnectError, "no connection"),
    ((Exception,), TransientFetchError, "unexpected failure"),
)


def fetch_error(error: Exception) -> FetchError:
    """Return the `FetchError` that stands for an exception of httpx, httpcore, ssl or the system."""
    tls = next((each for each in _causes(error) if isinstance(each, ssl.SSLError)), None)
    # A connection that just ends during the handshake says nothing about the certificate, and may work next time.
    if tls and isinstance(error, httpx.ConnectError) and not isinstance(tls, ssl.SSLEOFError | ssl.SSLSyscallError):
        reason = getattr(tls, "verify_message", "") or tls.reason or str(tls)
        return TlsError(f"TLS failed: {_line(reason)}")
    text = str(error)
    if isinstance(error, httpx.RemoteProtocolError):
        if "peer closed connection" in text:
            return TruncatedBodyError(_line(text))
        if "disconnected" in text:
            return BrokenConnectionError("the server closed the connection without an answer")
    cls, phrase = next((cls, phrase) for kinds, cls, phrase in _FOREIGN if isinstance(error, kinds))
    if cls is TransientFetchError:
        phrase = f"{phrase} ({type(error).__name__})"
    return cls(f"{phrase}: {_line(text)}" if text else phrase)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or cause.__context__


def _located(error: FetchError, attempt: _Attempt) -> FetchError:
    located = type(error)(f"{error}: {attempt.where()}", retry_after_s=error.retry_after_s)
    located.http_status = attempt.status
    return located


def _line(text: str) -> str:
    """Make foreign text one printable line of bounded length."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if len(shown) <= MAX_SHOWN_URL else shown[:MAX_SHOWN_URL] + "..."


def _shown(url: str) -> str:
    return _line(redact_url(url))


def _unlink_file(part: Path) -> None:
    if part.is_file():
        part.unlink(missing_ok=True)
