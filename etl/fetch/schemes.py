"""How a source is opened, by the scheme of its URL.  A new one is an opener here and a line of `etl.net.urls.SCHEMES`.

An opener asks its host only within a slot of the limiter, and writes what it brings to the cache's part for the URL.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from etl.data_urls import data_of
from etl.domain.items import SIGNED
from etl.errors import InvalidUrlError, PendingError, TransientFetchError
from etl.fetch.archives import Archives, archive_above
from etl.fetch.hosts.limiter import HostLimiter
from etl.fetch.local_files import Roots, read_local
from etl.fetch.mirrors import Address
from etl.fetch.pending import Pending
from etl.fetch.workers.base import Downloads
from etl.images.cache import ImageCache
from etl.net.attempt import Validators
from etl.net.object_stores import is_store
from etl.net.part import HELD, Download, PartWriter
from etl.net.signatures import newest
from etl.state.sources import SourceQueue

log = logging.getLogger(__name__)

PROGRESS = 256 * 1024
"""Bytes that a connection must have brought before it broke for its file to be resumed at once, free of charge."""

RESUME_PAUSE_S = 0.5
"""Seconds before a broken connection is made anew."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """What openers work with.

    Attributes:
        limiter: lets requests to a host begin.
        downloads: download over HTTP, here or elsewhere.
        cache: gives each URL its part.
        roots: where local files may lie.
        archives: those that pictures are read from.
        queue: has the records' lines, and the pictures that stood in them.
        robots: awaited with the URL before it is asked for; raises a `FetchError` where that is not allowed.
        max_bytes: that a file may have.
        pending: pictures that hosts are making ready.
        is_stopping: whether broken downloads are no longer to be resumed.
    """

    limiter: HostLimiter
    downloads: Downloads
    cache: ImageCache
    roots: Roots
    archives: Archives
    queue: SourceQueue
    robots: Callable[[str], Awaitable[None]] | None
    max_bytes: int
    pending: Pending
    is_stopping: Callable[[], bool]


@dataclass(frozen=True)
class Opened:
    """The bytes of a source, whole.

    Attributes:
        download: their hash and size, and what the server said of them.
        path: where they lie, if not in memory (`Download.data`).
        by_backend: whether `Downloads` brought them, and so has them; else they lie on this machine.
        is_part: whether they lie in a part of the cache, which is removed or kept as an original; else they stay.
    """

    download: Download
    path: Path
    by_backend: bool = False
    is_part: bool = True

    @property
    def content(self) -> Path | bytes:
        """What is to be decoded."""
        return self.path if self.download.data is None else self.download.data


Opener = Callable[[Access, Address, Validators | None], Awaitable[Opened]]
"""Opens an address; where there are validators, what they stand for is in the cache and may be told unchanged.

Raises an `ItemError`, and `HostNotReadyError` when the host may not be asked now.
"""


async def open_http(access: Access, address: Address, validators: Validators | None) -> Opened:
    """Download one URL of the web or of a store; a connection that breaks after bringing something costs no attempt.

    What a failed attempt leaves is kept, so the next one goes on from there.  Each request waits for a slot of its own,
    as the host may have asked for a pause meanwhile.
    """
    part, url = access.cache.part_of(address.url), address.url
    if url.endswith(SIGNED):
        url = newest(url, access.queue.lines_of(url))
    await ask_leave(access, address)
    while True:
        async with access.limiter.slot(address.host, address.url, patient=False) as request:
            try:
                download = await access.downloads.download(url, part, validators=validators)
                access.limiter.succeeded(request, download.size)
                return Opened(download, part, by_backend=True)
            except PendingError as error:
                # The host did what it could; the others need not wait for this one.
                access.limiter.succeeded(request)
                access.pending.put_off(address.url, error)
                raise
            except TransientFetchError as error:
                rest = access.downloads.rest_of(part)
                if rest is None or error.begun is None or access.is_stopping():
                    raise
                if rest.received < error.begun + PROGRESS:
                    raise
                log.info("resuming at byte %d of %d: %s", rest.received, rest.total, error)
        await asyncio.sleep(RESUME_PAUSE_S)


async def ask_leave(access: Access, address: Address) -> None:
    """Raise `RobotsError` for what may not be asked for, before it takes a slot and its interval."""
    # A store is no web site: whoever has its URL and its key was let in.
    if access.robots is None or is_store(address.url):
        return
    try:
        await access.robots(address.url)
    except TransientFetchError:
        # A host that does not give its robots.txt is in the same trouble as one that gives no pictures.
        async with access.limiter.slot(address.host, address.url):
            raise


async def open_file(access: Access, address: Address, _: Validators | None) -> Opened:
    """Read a local file where it lies, or one of an archive."""
    async with access.limiter.slot("", patient=False):
        path = await asyncio.to_thread(access.roots.checked, address.url)
        if (archive := await asyncio.to_thread(archive_above, path)) is not None:
            part, name = access.cache.part_of(address.url), path.relative_to(archive).as_posix()
            async with access.archives.lock:
                found = await asyncio.to_thread(access.archives.extract, archive, name, part, access.max_bytes)
            return Opened(found, part)
        download = await asyncio.to_thread(read_local, path, max_bytes=access.max_bytes)
    return Opened(download, path, is_part=False)


async def open_data(access: Access, address: Address, _: Validators | None) -> Opened:
    """Take a picture that stood in its own record."""
    async with access.limiter.slot("", patient=False):
        data, lines = access.queue.own_picture(address.url), access.queue.lines_of(address.url)
        if data is None and not lines:
            raise InvalidUrlError("no record holds the picture any more")
        part = access.cache.part_of(address.url)
        data = data_of(address.url, lines[0]) if data is None else data
        download = await asyncio.to_thread(_written, data, part, access.max_bytes)
    return Opened(download, part)


def _written(data: bytes, part: Path, max_bytes: int) -> Download:
    with PartWriter(part, max_bytes=max_bytes, held=HELD) as writer:
        writer.write(data)
    return Download(sha256=writer.sha256, size=writer.size, data=writer.data)


OPENERS: dict[str, Opener] = {
    "http": open_http,
    "https": open_http,
    "s3": open_http,
    "gs": open_http,
    "hf": open_http,
    "file": open_file,
    "data": open_data,
}
