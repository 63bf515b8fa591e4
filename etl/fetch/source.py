"""One source becomes an image: asked for at its own address or at a mirror, opened by its scheme, decoded."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from etl.clock import now_ms
from etl.domain.items import FetchedImage, KnownImage, SourceItem
from etl.errors import FetchError, HostDownError, ItemError
from etl.fetch.hosts.limiter import HostNotReadyError
from etl.fetch.image_services import ImageServices
from etl.fetch.mirrors import Address, Mirrors
from etl.fetch.schemes import Access
from etl.fetch.workers.base import Decoders
from etl.images.cache import ImageCache
from etl.net.attempt import Validators
from etl.net.part import Download
from etl.open_files import out_of_files
from etl.state.sources import SourceQueue


@dataclass(frozen=True, kw_only=True)
class SourceFetcher:
    """Fetches sources, many at once; all state lies in its parts.

    Attributes:
        queue: asked which images are there already, and for the records that mirrors are made from.
        access: what openers work with.
        decoders, local_decoders: of what the backend has downloaded, and of files of this machine.
        services: opens addresses.
        cache, mirrors: of the run.
        keep_originals: whether the bytes of the server are kept beside the working copy.
        on_downloaded: called when a download has ended and another may begin, while its picture is decoded.
    """

    queue: SourceQueue
    access: Access
    services: ImageServices
    decoders: Decoders
    local_decoders: Decoders
    cache: ImageCache
    mirrors: Mirrors
    keep_originals: bool
    on_downloaded: Callable[[], None]

    async def fetch(self, item: SourceItem) -> FetchedImage | KnownImage:
        """Get one source from the first address that gives a picture.

        Raises the `ItemError` of the first address whose failure may pass, else of the first one, and
        `HostNotReadyError` when no host that has it may be asked now.
        """
        started = now_ms()
        errors: list[ItemError] = []
        not_ready: HostNotReadyError | None = None
        for address in self._open_addresses(item):
            try:
                return await self._from(address, item, started)
            except HostNotReadyError as error:
                not_ready = error
            except ItemError as error:
                if (fatal := out_of_files(error)) is not None:
                    raise fatal from error
                errors.append(error)
        if not_ready is not None and not any(error.retryable for error in errors):
            raise not_ready
        raise _combined(errors)

    def forget(self, item: SourceItem) -> None:
        """Remove what unfinished downloads of the source have left."""
        for address in self._addresses(item):
            self.access.downloads.forget(self.cache.part_of(self.services.begun(address.url)))

    def _addresses(self, item: SourceItem) -> list[Address]:
        if not self.mirrors:
            return [Address(item.url, item.host, is_mirror=False)]
        line = self.queue.line(item.id) if self.mirrors.needs_record else None
        return self.mirrors.addresses(item.url, item.host, line)

    def _open_addresses(self, item: SourceItem) -> list[Address]:
        addresses = self._addresses(item)
        if not self.mirrors:
            return addresses
        limiter = self.access.limiter
        ends = {address: limiter.blocked_until_ms(address.host) for address in addresses}
        if found := [address for address, end in ends.items() if end is None]:
            return found
        waits = [end for address, end in ends.items() if end is not None and not limiter.given_up(address.host)]
        if not waits:
            raise HostDownError("no host that has the picture gives a sign of life")
        raise HostNotReadyError(min(waits))

    async def _from(self, address: Address, item: SourceItem, started: int) -> FetchedImage | KnownImage:
        opened = await self.services.open(address, _validators(item, address), item.iiif)
        # Another download can start while this one is decoded.
        self.on_downloaded()
        download, path = opened.download, opened.path
        if download.not_modified and item.image is not None:
            return KnownImage(image=item.image, **_told(item, address, download, started))
        keep = self.keep_originals and opened.is_part
        try:
            told = _told(item, address, download, started)
            image = self._known_image(download.sha256, with_original=keep)
            if image is not None:
                return KnownImage(image=image, **told)
            decoded = await (self.decoders if opened.by_backend else self.local_decoders).decode(opened.content)
            if keep:
                if opened.by_backend:
                    await self.access.downloads.bring(path, download.sha256)
                await asyncio.to_thread(self.cache.keep_original, opened.content, download.sha256)
            return FetchedImage(sha256=download.sha256, size=download.size, decoded=decoded, original_kept=keep, **told)
        finally:
            # What is in memory has left nothing.
            if opened.is_part and download.data is None:
                self.access.downloads.forget(path)

    def _known_image(self, sha256: str, *, with_original: bool) -> int | None:
        known = self.queue.known_image(sha256, with_original=with_original)
        if known is None or not self.cache.has_working(known[1]):
            return None
        return known[0]


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


def _told(item: SourceItem, address: Address, download: Download, started: int) -> dict[str, Any]:
    return {
        "source": item,
        "started_at": started,
        "http_status": download.http_status,
        "etag": download.etag,
        "last_modified": download.last_modified,
        "final_url": download.final_url,
        "mirror": address.url if address.is_mirror else None,
    }
