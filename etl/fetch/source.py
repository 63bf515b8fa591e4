"""One source becomes an image: asked for at its own address or at a mirror, politely, resumed, decoded."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from etl.clock import now_ms
from etl.domain.items import DecodedImage, FetchedImage, KnownImage, SourceItem
from etl.errors import FetchError, HostDownError, ItemError, TransientFetchError
from etl.fetch.hosts.limiter import HostGate, NotNowError
from etl.fetch.local_files import Roots, read_local
from etl.fetch.mirrors import Address, Mirrors
from etl.fetch.workers.base import Decoders, Downloads
from etl.images.cache import ImageCache
from etl.net.attempt import Validators
from etl.net.part import Download
from etl.net.urls import is_local
from etl.open_files import out_of_files
from etl.settings import Settings
from etl.state.sources import SourceQueue

log = logging.getLogger(__name__)

PROGRESS = 256 * 1024
"""Bytes that a connection must have brought before it broke for its file to be resumed at once, free of charge."""

RESUME_PAUSE_S = 0.5
"""Seconds before a broken connection is made anew."""


@dataclass(frozen=True)
class SourceFetcher:
    """Fetches sources, many at once; all state lies in its parts.

    Attributes:
        settings: of the run.
        queue: asked which images are there already, and for the records that mirrors are made from.
        gate: lets requests to a host begin.
        downloads, decoders: do the work, here or elsewhere.
        cache, mirrors: of the run.
        roots: where local files may lie.
        robots: awaited with the URL before it is asked for; raises a `FetchError` where that is not allowed.
        on_downloaded: called when a download has ended and another may begin, while its picture is decoded.
        is_stopping: whether broken downloads are no longer to be resumed.
    """

    settings: Settings
    queue: SourceQueue
    gate: HostGate
    downloads: Downloads
    decoders: Decoders
    cache: ImageCache
    mirrors: Mirrors
    roots: Roots
    robots: Callable[[str], Awaitable[None]] | None
    on_downloaded: Callable[[], None]
    is_stopping: Callable[[], bool]

    async def fetch(self, item: SourceItem) -> FetchedImage | KnownImage:
        """Get one source from the first address that gives a picture.

        Raises the `ItemError` of the first address whose failure may pass, else of the first one, and `NotNowError`
        when no host that has it may be asked now.
        """
        started = now_ms()
        errors: list[ItemError] = []
        not_now: NotNowError | None = None
        for address in self._open_addresses(item):
            try:
                return await self._from(address, item, started)
            except NotNowError as error:
                not_now = error
            except ItemError as error:
                if (fatal := out_of_files(error)) is not None:
                    raise fatal from error
                errors.append(error)
        if not_now is not None and not any(error.retryable for error in errors):
            raise not_now
        raise _combined(errors)

    def forget(self, item: SourceItem) -> None:
        """Remove what unfinished downloads of the source have left."""
        for address in self._addresses(item):
            if address.host:
                self.downloads.forget(self.cache.part_of(address.url))

    def _addresses(self, item: SourceItem) -> list[Address]:
        if not self.mirrors:
            return [Address(item.url, item.host, is_mirror=False)]
        line = self.queue.line(item.id) if self.mirrors.needs_record else None
        return self.mirrors.addresses(item.url, item.host, line)

    def _open_addresses(self, item: SourceItem) -> list[Address]:
        addresses = self._addresses(item)
        if not self.mirrors:
            return addresses
        ends = {address: self.gate.blocked_until_ms(address.host) for address in addresses}
        if found := [address for address, end in ends.items() if end is None]:
            return found
        waits = [end for address, end in ends.items() if end is not None and not self.gate.given_up(address.host)]
        if not waits:
            raise HostDownError("no host that has the picture gives a sign of life")
        raise NotNowError(min(waits))

    async def _from(self, address: Address, item: SourceItem, started: int) -> FetchedImage | KnownImage:
        if is_local(address.url):
            return await self._from_file(address, item, started)
        part = self.cache.part_of(address.url)
        download = await self._politely(address, part, _validators(item, address))
        # Another download can start while this one is decoded.
        self.on_downloaded()
        if download.not_modified and item.image is not None:
            return _known(item, address, download, item.image, started)
        try:
            keep = self.settings.keep_originals
            image = self._known_image(download.sha256, with_original=keep)
            if image is not None:
                return _known(item, address, download, image, started)
            decoded = await self.decoders.decode(part)
            if keep:
                await self.downloads.bring(part, download.sha256)
                await asyncio.to_thread(self.cache.keep_original, part, download.sha256)
            return _fetched(item, address, download, decoded, started, kept=keep)
        finally:
            self.downloads.forget(part)

    async def _from_file(self, address: Address, item: SourceItem, started: int) -> FetchedImage | KnownImage:
        async with self.gate.slot("", patient=False):
            path = await asyncio.to_thread(self.roots.checked, address.url)
            download = await asyncio.to_thread(read_local, path, max_bytes=self.settings.max_bytes)
        image = self._known_image(download.sha256, with_original=False)
        if image is not None:
            return _known(item, address, download, image, started)
        decoded = await self.decoders.decode(path)
        return _fetched(item, address, download, decoded, started, kept=False)

    def _known_image(self, sha256: str, *, with_original: bool) -> int | None:
        known = self.queue.known_image(sha256, with_original=with_original)
        if known is None or not self.cache.has_working(known[1]):
            return None
        return known[0]

    async def _politely(self, address: Address, part: Path, validators: Validators | None) -> Download:
        """Download one URL; a connection that breaks after bringing something costs no attempt.

        What a failed attempt leaves is kept, so the next one goes on from there.  Each request waits for a slot of
        its own, as the host may have asked for a pause meanwhile.
        """
        await self._ask_leave(address)
        while True:
            begun = self.downloads.rest_of(part)
            async with self.gate.slot(address.host, address.url, patient=False) as request:
                try:
                    download = await self.downloads.download(address.url, part, validators=validators)
                    self.gate.succeeded(request, download.size)
                    return download
                except TransientFetchError as error:
                    rest = self.downloads.rest_of(part)
                    before = begun.received if begun else 0
                    if rest is None or rest.received < before + PROGRESS or self.is_stopping():
                        raise
                    log.info("resuming at byte %d of %d: %s", rest.received, rest.total, error)
            await asyncio.sleep(RESUME_PAUSE_S)

    async def _ask_leave(self, address: Address) -> None:
        """Raise `RobotsError` for what may not be asked for, before it takes a slot and its interval."""
        if self.robots is None:
            return
        try:
            await self.robots(address.url)
        except TransientFetchError:
            # A host that does not give its robots.txt is in the same trouble as one that gives no pictures.
            async with self.gate.slot(address.host, address.url):
                raise


def _validators(item: SourceItem, address: Address) -> Validators | None:
    """Return what the server that gave the cached version said of it; another server's validators mean nothing."""
    if item.image is None or address.url != (item.mirror or item.url) or not (item.etag or item.last_modified):
        return None
    return Validators(item.etag, item.last_modified)


def _combined(errors: list[ItemError]) -> ItemError:
    chosen = next((error for error in errors if error.retryable), errors[0])
    if len(errors) == 1:
        return chosen
    combined = type(chosen)("; mirror: ".join(map(str, errors)), retry_after_s=chosen.retry_after_s)
    if isinstance(chosen, FetchError) and isinstance(combined, FetchError):
        combined.http_status = chosen.http_status
    return combined


def _fetched(
    item: SourceItem, address: Address, download: Download, decoded: DecodedImage, started: int, *, kept: bool
) -> FetchedImage:
    return FetchedImage(
        source=item,
        sha256=download.sha256,
        size=download.size,
        decoded=decoded,
        original_kept=kept,
        started_at=started,
        http_status=download.http_status,
        etag=download.etag,
        last_modified=download.last_modified,
        final_url=download.final_url,
        mirror=_mirror(address),
    )


def _known(item: SourceItem, address: Address, download: Download, image: int, started: int) -> KnownImage:
    return KnownImage(
        source=item,
        image=image,
        started_at=started,
        http_status=download.http_status,
        etag=download.etag,
        last_modified=download.last_modified,
        final_url=download.final_url,
        mirror=_mirror(address),
    )


def _mirror(address: Address) -> str | None:
    return address.url if address.is_mirror else None
