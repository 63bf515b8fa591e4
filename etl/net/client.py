"""Downloads over HTTP, and the place where every exception of httpx2 gets its class (`transport` shares httpx2).

httpx2 has two faults that shape this module.  A request through a proxy that is cancelled at the wrong instant leaks
its place in the pool, so each request has a pool of its own (`etl.net.client_pool`).  And its time-outs count per read,
so a server that drips bytes would never be ended; a watchdog over the whole exchange does that.
"""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from etl.errors import (
    BodyTooLargeError,
    EtlError,
    FetchError,
    FetchTimeoutError,
    ProtocolError,
    TooManyRedirectsError,
    TruncatedBodyError,
)
from etl.images.formats import accept_header
from etl.net import resume
from etl.net.attempt import Attempt, Validators, deadline_of
from etl.net.client_pool import CONNECTIONS, ClientPool, ClientPools
from etl.net.errors import fetch_error
from etl.net.first_words import at_most, beginning_of, words_of
from etl.net.names import Names
from etl.net.object_stores import MOVED, Asked, ObjectStores, context_of, is_store
from etl.net.part import HELD, Download, PartWriter
from etl.net.request import as_written, check_scheme, request_of, user_agent, without_userinfo
from etl.net.responses import download_of, is_compressed, status_error
from etl.net.signatures import without_signature
from etl.net.transport import GuardedTransport, Routes, is_reusable, proxy_transports, send
from etl.net.urls import host_of
from etl.settings import Settings

__all__ = ["MAX_REDIRECTS", "Download", "Downloader", "Validators", "fetch_error"]

MAX_REDIRECTS = 5

_SUCCESS = (200, 203)
"""Statuses that carry the whole file; 206 would be a part that nobody asked for, 202 and 204 carry none."""

KEEPALIVE_S = 120.0
"""Seconds that an idle connection is kept: longer than the usual delay between requests, or each one reconnects."""

SIDE_CLIENTS = 4
"""Requests at once for small texts beside the downloads."""

POOL_TIMEOUT_S = 60.0
"""Never reached, since a client carries one request at a time; bounds the damage if it should be."""

_LIMITS = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE_S)

# httpx2 logs every URL, with its secrets, at INFO; httpcore2 the raw requests at DEBUG.
for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class Downloader:
    """Streams URLs to files; an async context manager, for one event loop.

    Attributes:
        proxied: whether the environment names a proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY; NO_PROXY excepts hosts).
            The proxy resolves and dials for us, so the guard against private addresses does not apply there.
        names: resolves the names of hosts that are dialled directly.
        may_follow: awaited with every URL that a download is redirected to; it may raise a `FetchError`.

    Raises `ConfigError` when the proxy or the contact address cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.names = Names(settings.connect_timeout)
        self.may_follow: Callable[[str], Awaitable[None]] | None = None
        self._settings = settings
        self._context = httpx2.create_ssl_context()
        self._user_agent = user_agent(settings.contact)
        self.proxied = bool(proxy_transports(self._context, _LIMITS))
        self._clients = ClientPools(self._client, settings.concurrency, is_reusable)
        self._stores = ObjectStores()
        # Of their own: what `may_follow` reads must not wait for a client that waits for it.
        self._side_clients = ClientPool(self._client, SIDE_CLIENTS, is_reusable)

    def _client(self, endpoint: str = "") -> httpx2.AsyncClient:
        settings, context = self._settings, context_of(endpoint, self._context)
        return httpx2.AsyncClient(
            transport=Routes(
                GuardedTransport(context, _LIMITS, (*settings.allow_host, *filter(None, [endpoint])), self.names),
                proxy_transports(context, _LIMITS),
            ),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(settings.read_timeout, connect=settings.connect_timeout, pool=POOL_TIMEOUT_S),
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
        await self._clients.aclose()
        await self._side_clients.aclose()

    async def read(self, url: str, *, max_bytes: int) -> bytes:
        """Return the beginning of a small text, at most ``max_bytes`` of it; redirects are always followed.

        Raises a `FetchError` as `download` does.
        """
        return (await self.page(url, "", max_bytes=max_bytes))[0]

    async def page(self, url: str, after: str, *, max_bytes: int) -> tuple[bytes, str]:
        """Return a page of what a store's folder holds, as `read` does, and what the server says of the next one.

        ``after`` is the mark at the end of the page before it.
        """
        attempt = Attempt.of(url)
        with attempt.errors():
            asked = await self._asked(url, after)
            pool = self._clients.of(asked.endpoint) if asked.store else self._side_clients
            async with pool.client_for(host_of(asked.url)) as client, self._watchdog(attempt) as watchdog:
                response = await self._open(client, attempt, asked, {}, watchdog)
                try:
                    await _check_status(response, watchdog, asked)
                    return await at_most(response, max_bytes), response.headers.get("link", "")
                finally:
                    await response.aclose()

    async def download(
        self,
        url: str,
        part: Path,
        *,
        validators: Validators | None = None,
        accept: str | None = None,
        in_memory: bool = False,
    ) -> Download:
        """Stream ``url`` into ``part``, neither fsynced nor renamed; ``in_memory``, what is small stays there.

        A part that an earlier attempt left is resumed where the server allows it, else overwritten.

        With ``validators``, the server may answer 304 instead: nothing is written and `Download.not_modified` is true.
        Pass them only while the bytes that they stand for are in the cache.  ``accept`` is for what is no picture.

        Raises a `FetchError` of the fitting class, whose ``http_status`` is the last status seen; `DiskFullError`
        or `StateError` when ``part`` cannot be written.  After a `TransientFetchError` or a cancellation, ``part``
        holds what came so far of a file that is not small; after any other error it is gone.
        """
        url = url.strip()
        attempt = Attempt.of(url, held=HELD if in_memory else 0)
        with attempt.errors():
            try:
                asked = await self._asked(url)
                async with self._clients.of(asked.endpoint).client_for(host_of(asked.url)) as client:
                    download = await self._fetch(client, attempt, asked, part, validators, accept or accept_header())
                resume.forget(part, note_only=True)
                return download
            except EtlError as error:
                if not (isinstance(error, FetchError) and error.retryable):
                    resume.forget(part)
                raise

    async def _asked(self, url: str, after: str = "") -> Asked:
        return await asyncio.to_thread(self._stores.asked, url, after) if is_store(url) else Asked(url)

    async def _fetch(
        self,
        client: httpx2.AsyncClient,
        attempt: Attempt,
        asked: Asked,
        part: Path,
        validators: Validators | None,
        accept: str,
    ) -> Download:
        async with self._watchdog(attempt) as watchdog:
            rest = resume.rest_of(part)
            asking = rest.headers if rest else validators.headers if validators else {}
            asking = {"Accept": accept, **asking}
            response = await self._open(client, attempt, asked, asking, watchdog, self.may_follow)
            try:
                if response.status_code == 304 and rest is None and validators is not None:
                    return _result(attempt, response, None)
                if rest is not None and response.status_code in (206, 416):
                    return await self._receive(attempt, response, part, watchdog, rest)
                await _check_status(response, watchdog, asked)
                return await self._receive(attempt, response, part, watchdog)
            finally:
                await response.aclose()

    @property
    def _answer_s(self) -> float:
        return self._settings.connect_timeout + self._settings.read_timeout

    @asynccontextmanager
    async def _watchdog(self, attempt: Attempt) -> AsyncIterator[asyncio.Timeout]:
        """End the block at the time to which its steps set the watchdog, with the error that this means."""
        try:
            async with asyncio.timeout(None) as watchdog:
                yield watchdog
        except TimeoutError as error:
            if attempt.writer is None:
                raise FetchTimeoutError(f"no answer within {self._answer_s:g} s") from error
            slow = f"slower than {self._settings.min_rate} bytes/s, given up after {attempt.received} bytes"
            raise FetchTimeoutError(slow) from error

    async def _open(
        self,
        client: httpx2.AsyncClient,
        attempt: Attempt,
        asked: Asked,
        headers: dict[str, str],
        watchdog: asyncio.Timeout,
        may_follow: Callable[[str], Awaitable[None]] | None = None,
    ) -> httpx2.Response:
        """Return the first answer that is no redirect, its body unread.  Each hop has `_answer_s` seconds."""
        loop = asyncio.get_running_loop()
        # Cookies live for one download and its redirects: no server may follow us, or set one that hinders others.
        client.cookies.clear()
        request = request_of(client, asked, headers)
        for _ in range(MAX_REDIRECTS + 1):
            check_scheme(request.url)
            watchdog.reschedule(loop.time() + self._answer_s)
            response = await send(client, request)
            attempt.status = response.status_code
            if (
                asked.store
                and response.status_code in MOVED
                and self._stores.has_moved(asked, attempt.url, response.headers, await beginning_of(response))
            ):
                await response.aclose()
                request = request_of(client, await self._asked(attempt.url, asked.after), headers)
                continue
            if response.next_request is None:
                if response.has_redirect_location:
                    await response.aclose()
                    raise ProtocolError("redirects to what is no URL")
                return response
            # Closed, not read: httpx2's own redirects would read the whole body into memory first.
            await response.aclose()
            request = as_written(response.next_request, response.headers["location"])
            attempt.current = str(request.url)
            if may_follow is not None:
                watchdog.reschedule(None)
                await may_follow(attempt.current)
        raise TooManyRedirectsError(f"more than {MAX_REDIRECTS} redirects")

    async def _receive(
        self,
        attempt: Attempt,
        response: httpx2.Response,
        part: Path,
        watchdog: asyncio.Timeout,
        rest: resume.Rest | None = None,
    ) -> Download:
        settings = self._settings
        noted = rest is not None
        if rest is None:
            resume.forget(part)
            noted = resume.take_note(part, response.headers)
        elif response.status_code == 416 or not rest.fits(response.headers):
            resume.forget(part)
            raise ProtocolError(f"asked for the rest from byte {rest.received}, the server sent something else")
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) > settings.max_bytes:
            raise BodyTooLargeError(f"{length} bytes announced, the limit is {settings.max_bytes}")
        begun = asyncio.get_running_loop().time()
        deadline = functools.partial(deadline_of, begun, settings.read_timeout, settings.min_rate)
        writer = PartWriter(
            part,
            max_bytes=settings.max_bytes,
            compressed=is_compressed(response.headers.get("content-encoding")),
            resumed_at=rest.received if rest else 0,
            # What can be resumed goes into a file from its first byte.
            held=0 if noted else attempt.held,
        )
        attempt.writer = writer
        if rest is not None:
            await asyncio.to_thread(writer.hash_earlier)
        with writer:
            async with aclosing(response.aiter_raw()) as chunks:
                earlier = writer.received
                watchdog.reschedule(deadline(0))
                async for chunk in chunks:
                    writer.write(chunk)
                    watchdog.reschedule(deadline(writer.received - earlier))
            writer.finish()
        if rest is not None and writer.size != rest.total:
            raise TruncatedBodyError(f"{writer.size} bytes of {rest.total} after resuming at {rest.received}")
        return _result(attempt, response, writer)


async def _check_status(response: httpx2.Response, watchdog: asyncio.Timeout, asked: Asked) -> None:
    """Raise the error that an answer without the whole file stands for, with the words that come with it."""
    if response.status_code not in _SUCCESS:
        watchdog.reschedule(None)
        body, headers = await beginning_of(response), response.headers
        words = asked.words(body, headers.get("date")) if asked.store else words_of(response, body)
        raise status_error(response.status_code, headers.get("retry-after"), headers.get("date"), words)


def _result(attempt: Attempt, response: httpx2.Response, writer: PartWriter | None) -> Download:
    # Where a store's file was found holds for an hour, and with a key.
    url = attempt.url if is_store(attempt.url) else without_userinfo(response.url)
    return download_of(response.status_code, response.headers, without_signature(url), writer)
