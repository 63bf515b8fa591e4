"""Downloads over HTTP, and the place where every exception of httpcore2 gets its class.

httpcore2's time-outs count per read, so a server that drips bytes would never be ended; a watchdog over the whole
exchange does that.
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
from etl.net.connections import Answer, Connections
from etl.net.errors import fetch_error
from etl.net.first_words import at_most, beginning_of, words_of
from etl.net.names import Names
from etl.net.object_stores import MOVED, Asked, ObjectStores, context_of, is_store
from etl.net.part import HELD, Download, PartWriter
from etl.net.redirects import redirected
from etl.net.request import Target, user_agent
from etl.net.responses import download_of, is_compressed, status_error
from etl.net.signatures import without_signature
from etl.settings import Settings

__all__ = ["MAX_REDIRECTS", "Download", "Downloader", "Validators", "fetch_error"]

MAX_REDIRECTS = 5

_SUCCESS = (200, 203)
"""Statuses that carry the whole file; 206 would be a part that nobody asked for, 202 and 204 carry none."""

_REDIRECTS = (301, 302, 303, 307, 308)

SIDE_SHARE = 4
"""One request at once for small texts beside so many downloads: of thousands of hosts, each has its robots.txt."""

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
        # Compressed, neither the length nor a range nor the hash would be the file's.
        self._headers = {"User-Agent": user_agent(settings.contact), "Accept-Encoding": "identity"}
        timeouts = {"connect": settings.connect_timeout, "read": settings.read_timeout}
        self._extensions = {"timeout": timeouts}
        self._connections: dict[str, Connections] = {}
        self.proxied = self._connections_of(Asked("")).proxied
        self._stores = ObjectStores()
        self._side_requests = asyncio.Semaphore(max(1, settings.concurrency // SIDE_SHARE))

    def _connections_of(self, asked: Asked) -> Connections:
        """Return those of the web, or of a store of the user's own at its endpoint, which they alone may reach.

        They share none, so that nothing of the web gets to such a store through a connection that is open.
        """
        if asked.endpoint not in self._connections:
            allowed, context = asked.allowed(self._settings.allow_host), context_of(asked, self._context)
            self._connections[asked.endpoint] = Connections(context, self._settings.concurrency, allowed, self.names)
        return self._connections[asked.endpoint]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connections in self._connections.values():
            await connections.aclose()

    async def read(self, url: str, *, max_bytes: int) -> bytes:
        """Return the beginning of a small text, at most ``max_bytes`` of it; redirects are always followed.

        Raises a `FetchError` as `download` does.
        """
        async with self._side_requests:
            return (await self.page(url, "", max_bytes=max_bytes))[0]

    async def page(
        self, url: str, after: str, *, max_bytes: int, may_follow: Callable[[str], Awaitable[None]] | None = None
    ) -> tuple[bytes, str]:
        """Return a page of what a store's folder holds, as `read` does, and what the server says of the next one.

        ``after`` is the mark at the end of the page before it; ``may_follow`` is as that of downloads.
        """
        attempt = Attempt.of(url)
        with attempt.errors():
            asked = await self._stores.asked(url, after)
            async with self._watchdog(attempt) as watchdog:
                answer = await self._open(attempt, asked, {"Accept": "*/*"}, watchdog, may_follow)
                try:
                    await _check_status(answer, watchdog, asked)
                    return await at_most(answer, max_bytes), answer.headers.get("link", "")
                finally:
                    await answer.aclose()

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
                download = await self._fetch(attempt, part, validators, accept or accept_header())
                if download.data is None:
                    resume.forget(part, note_only=True)
                return download
            except EtlError as error:
                if not (isinstance(error, FetchError) and error.retryable):
                    resume.forget(part)
                raise

    async def _fetch(self, attempt: Attempt, part: Path, validators: Validators | None, accept: str) -> Download:
        rest = resume.rest_of(part)
        attempt.begun = rest.received if rest else 0
        asked = await self._stores.asked(attempt.url)
        async with self._watchdog(attempt) as watchdog:
            asking = rest.headers if rest else validators.headers if validators else {}
            answer = await self._open(attempt, asked, {"Accept": accept, **asking}, watchdog, self.may_follow)
            try:
                if answer.status == 304 and rest is None and validators is not None:
                    return _result(attempt, answer, None)
                if rest is not None and answer.status in (206, 416):
                    return await self._receive(attempt, answer, part, watchdog, rest)
                await _check_status(answer, watchdog, asked)
                return await self._receive(attempt, answer, part, watchdog)
            finally:
                await answer.aclose()

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
        attempt: Attempt,
        asked: Asked,
        headers: dict[str, str],
        watchdog: asyncio.Timeout,
        may_follow: Callable[[str], Awaitable[None]] | None = None,
    ) -> Answer:
        """Return the first answer that is no redirect, its body unread.  Each hop has `_answer_s` seconds."""
        loop = asyncio.get_running_loop()
        target = Target.of(asked.url, whole=bool(asked.store))
        sent = {**self._headers, **headers, **asked.headers, **target.authorization}
        cookies: httpx2.Cookies | None = None
        for _ in range(MAX_REDIRECTS + 1):
            watchdog.reschedule(loop.time() + self._answer_s)
            answer = await self._connections_of(asked).send(target, sent, self._extensions)
            attempt.status = answer.status
            if await self._has_moved(asked, attempt.url, answer):
                await answer.aclose()
                asked = await self._stores.asked(attempt.url, asked.after)
                target = Target.of(asked.url, whole=True)
                sent = {**self._headers, **headers, **asked.headers}
                continue
            location = answer.headers.get("location") if answer.status in _REDIRECTS else None
            if location is None:
                return answer
            # Not read: a redirect may have a body without end.
            await answer.aclose()
            attempt.current = location
            # They live for one download and its redirects: no server may follow us, or set one that hinders others.
            cookies = cookies or httpx2.Cookies()
            target, sent = redirected(answer, location, sent, cookies)
            attempt.current = target.text
            if may_follow is not None:
                watchdog.reschedule(None)
                await may_follow(attempt.current)
        raise TooManyRedirectsError(f"more than {MAX_REDIRECTS} redirects")

    async def _has_moved(self, asked: Asked, url: str, answer: Answer) -> bool:
        if not asked.store or answer.status not in MOVED:
            return False
        try:
            return self._stores.has_moved(asked, url, answer.headers, await beginning_of(answer))
        except BaseException:
            await answer.aclose()
            raise

    async def _receive(
        self,
        attempt: Attempt,
        answer: Answer,
        part: Path,
        watchdog: asyncio.Timeout,
        rest: resume.Rest | None = None,
    ) -> Download:
        settings = self._settings
        length, coding = answer.headers.get("content-length", ""), answer.headers.get("content-encoding")
        announced = int(length) if length.isdecimal() else None
        noted = rest is not None
        # What stays in memory touches no file, where there is none that counts.
        if rest is None and (attempt.begun or coding or announced is None or announced >= attempt.held):
            resume.forget(part)
            noted = resume.take_note(part, answer.headers)
        elif rest is not None and (answer.status == 416 or not rest.fits(answer.headers)):
            resume.forget(part)
            raise ProtocolError(f"asked for the rest from byte {rest.received}, the server sent something else")
        if announced is not None and announced > settings.max_bytes:
            raise BodyTooLargeError(f"{announced} bytes announced, the limit is {settings.max_bytes}")
        begun = asyncio.get_running_loop().time()
        deadline = functools.partial(deadline_of, begun, settings.read_timeout, settings.min_rate)
        writer = PartWriter(
            part,
            max_bytes=settings.max_bytes,
            compressed=is_compressed(coding),
            resumed_at=rest.received if rest else 0,
            # What can be resumed goes into a file from its first byte.
            held=0 if noted else attempt.held,
        )
        attempt.writer = writer
        if rest is not None:
            await asyncio.to_thread(writer.hash_earlier)
        with writer:
            async with aclosing(answer.chunks()) as chunks:
                earlier = writer.received
                watchdog.reschedule(deadline(0))
                async for chunk in chunks:
                    writer.write(chunk)
                    watchdog.reschedule(deadline(writer.received - earlier))
            writer.finish()
        if rest is not None and writer.size != rest.total:
            raise TruncatedBodyError(f"{writer.size} bytes of {rest.total} after resuming at {rest.received}")
        return _result(attempt, answer, writer)


async def _check_status(answer: Answer, watchdog: asyncio.Timeout, asked: Asked) -> None:
    """Raise the error that an answer without the whole file stands for, with the words that come with it."""
    if answer.status not in _SUCCESS:
        watchdog.reschedule(None)
        body, headers = await beginning_of(answer), answer.headers
        words = asked.words(body, headers.get("date")) if asked.store else words_of(answer, body)
        raise status_error(answer.status, headers.get("retry-after"), headers.get("date"), words)


def _result(attempt: Attempt, answer: Answer, writer: PartWriter | None) -> Download:
    # Where a store's file was found holds for an hour, and with a key.
    url = attempt.url if is_store(attempt.url) else answer.target.text
    return download_of(answer.status, answer.headers, without_signature(url), writer)
