"""Downloads over HTTP, and the place where every exception of httpx gets its class (`transport` shares httpx).

httpx 0.28 has two faults that shape this module.  A request that is cancelled at the wrong instant leaks its place in
the pool, so each request has a pool of its own (`etl.net.lanes`).  And its time-outs count per read, so a server that
drips bytes would never be ended; a watchdog over the whole exchange does that.
"""

import asyncio
import importlib.metadata
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import httpx

from etl.config import Settings, redact_url
from etl.errors import (
    BodyTooLargeError,
    ConfigError,
    EtlError,
    FetchError,
    FetchTimeoutError,
    InvalidUrlError,
    ProtocolError,
    TooManyRedirectsError,
    TruncatedBodyError,
)
from etl.net import resume
from etl.net.answers import is_compressed, status_error
from etl.net.foreign import fetch_error, one_line
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
        """Stream ``url`` into ``part``; neither fsynced nor renamed.

        A part that an earlier attempt left is resumed where the server allows it, else overwritten.

        With ``etag``, the server may answer 304 instead: nothing is written and `Download.not_modified` is true.
        Pass it only while the bytes that it stands for are in the cache.

        Raises a `FetchError` of the fitting class, whose ``http_status`` is the last status seen; `DiskFullError`
        or `StateError` when ``part`` cannot be written.  After a `TransientFetchError` or a cancellation, ``part``
        holds what came so far; after any other error it is gone.
        """
        url = url.strip()
        attempt = _Attempt(url=url, current=url)
        try:
            async with self._lanes.lane(host_of(url)) as client:
                download = await self._fetch(client, attempt, part, etag)
            resume.forget(part, note_only=True)
            return download
        except FetchError as error:
            if not error.retryable:
                resume.forget(part)
            raise _located(error, attempt) from error
        except EtlError:
            resume.forget(part)
            raise
        except Exception as error:  # Everything foreign gets a class; its cause stays attached.
            raise _located(fetch_error(error), attempt) from error

    async def _fetch(self, client: httpx.AsyncClient, attempt: _Attempt, part: Path, etag: str | None) -> Download:
        settings = self._settings
        answer_s = settings.connect_timeout_s + settings.read_timeout_s
        try:
            async with asyncio.timeout(None) as watchdog:
                rest = resume.rest_of(part) if etag is None else None
                response = await self._open(client, attempt, _asking(etag, rest), watchdog, answer_s)
                try:
                    if response.status_code == 304 and etag is not None:
                        return _result(response, None)
                    if rest is not None and response.status_code in (206, 416):
                        return await self._receive(attempt, response, part, watchdog, rest)
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
        self,
        client: httpx.AsyncClient,
        attempt: _Attempt,
        headers: dict[str, str],
        watchdog: asyncio.Timeout,
        answer_s: float,
    ) -> httpx.Response:
        """Return the first answer that is no redirect, its body unread.  Each hop has ``answer_s`` seconds."""
        loop = asyncio.get_running_loop()
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
        self,
        attempt: _Attempt,
        response: httpx.Response,
        part: Path,
        watchdog: asyncio.Timeout,
        rest: resume.Rest | None = None,
    ) -> Download:
        settings = self._settings
        if rest is None:
            resume.take_note(part, response.headers)
        elif response.status_code == 416 or not rest.fits(response.headers.get("content-range", "")):
            resume.forget(part)
            raise ProtocolError(f"asked for the rest from byte {rest.received}, the server sent another range")
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) > settings.max_bytes:
            raise BodyTooLargeError(f"{length} bytes announced, the limit is {settings.max_bytes}")
        loop = asyncio.get_running_loop()
        begun = loop.time()
        writer = PartWriter(
            part,
            max_bytes=settings.max_bytes,
            compressed=is_compressed(response.headers.get("content-encoding")),
            resumed_at=rest.received if rest else 0,
        )
        attempt.writer = writer
        if rest is not None:
            await asyncio.to_thread(writer.hash_earlier)
        with writer:
            # httpx declares less than it returns: only a generator can be closed before its end.
            async with aclosing(cast(AsyncGenerator[bytes, None], response.aiter_raw())) as chunks:
                earlier = writer.received
                watchdog.reschedule(_deadline(settings, begun, 0))
                async for chunk in chunks:
                    writer.write(chunk)
                    watchdog.reschedule(_deadline(settings, begun, writer.received - earlier))
            writer.finish()
        if rest is not None and writer.size != rest.total:
            raise TruncatedBodyError(f"{writer.size} bytes of {rest.total} after resuming at {rest.received}")
        return _result(response, writer)


def _asking(etag: str | None, rest: resume.Rest | None) -> dict[str, str]:
    """Return the headers that ask for a newer version, for the rest of a part, or for the whole file."""
    if etag is not None:
        return {"If-None-Match": etag}
    return rest.headers if rest is not None else {}


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


def _located(error: FetchError, attempt: _Attempt) -> FetchError:
    located = type(error)(f"{error}: {attempt.where()}", retry_after_s=error.retry_after_s)
    located.http_status = attempt.status
    return located


def _shown(url: str) -> str:
    return one_line(redact_url(url))
