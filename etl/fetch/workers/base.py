"""What the fetch stage needs of whoever downloads and decodes for it, and this machine's own downloader and decoders.

Whoever it is, the stage itself decides what is asked for and when (`etl.fetch.hosts.limiter`), and what is committed.
"""

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from etl.domain.items import DecodedImage
from etl.errors import ItemError
from etl.images.cache import ImageCache
from etl.images.decoder_pool import DecoderPool
from etl.net import resume
from etl.net.part import Download
from etl.net.resume import Rest
from etl.settings import Settings

if TYPE_CHECKING:
    from etl.net.attempt import Validators
    from etl.net.client import Downloader


class LostError(Exception):
    """The machine that had a source in hand is gone, and with it what it had of the source.

    Attributes:
        charge: what the source fails with; ``None`` where it is not to blame and begins anew, elsewhere.
    """

    def __init__(self, message: str, charge: ItemError | None = None) -> None:
        super().__init__(message)
        self.charge = charge


class Downloads(Protocol):
    """Bring files to where they are decoded.  ``part`` names a file all along, and is its path on this machine."""

    async def download(self, url: str, part: Path, *, validators: "Validators | None" = None) -> Download:
        """Download one URL, as `etl.net.client.Downloader.download` does.

        Raises `LostError`, and `HostNotReadyError` where nobody can do it at the moment.
        """
        ...

    def is_known(self, host: str) -> bool:
        """Return whether a download from the host would not have to wait for its name."""
        ...

    def rest_of(self, part: Path) -> Rest | None:
        """Return what is still to come of a download that broke; ``None`` where it must begin anew."""
        ...

    def forget(self, part: Path) -> None:
        """Remove what there is of a file."""
        ...

    async def bring(self, part: Path, sha256: str) -> None:
        """See to it that a finished download, whose content has this hash, lies at ``part``.  Raises `LostError`."""
        ...


class Decoders(Protocol):
    """Make working copies."""

    async def decode(self, original: Path | bytes) -> DecodedImage:
        """Decode a finished download into the cache, as `DecoderPool.decode` does with one of this machine.

        Raises `LostError`.
        """
        ...


class FetchBackend(Protocol):
    """Downloads and decodes for one fetch stage."""

    @property
    def machines(self) -> int:
        """How many machines download now; each may have ``concurrency`` downloads at once."""
        ...

    @property
    def processes(self) -> int:
        """How many pictures can be decoded at once."""
        ...

    @property
    def in_memory(self) -> int:
        """How many pictures in hand are in memory, and take no disk."""
        ...

    @property
    def local_decoders(self) -> Decoders:
        """Decode files of this machine."""
        ...

    def are_ready(self) -> bool:
        """Return whether anybody can take work now.  Raises `ClusterError` when nobody could for too long."""
        ...

    def begin(self, due: int) -> None:
        """Make ready for so many sources, beside the caller."""
        ...

    def at_work(self, downloader: "Downloader") -> AbstractAsyncContextManager[tuple[Downloads, Decoders]]:
        """Yield what downloads and decodes; ``downloader`` is this machine's own."""
        ...

    def close(self) -> None:
        """End all that was started."""
        ...


class LocalBackend:
    """This machine's downloader and decoder processes."""

    machines = 1

    def __init__(self, settings: Settings, cache: ImageCache) -> None:
        self.processes = settings.decoders or os.cpu_count() or 1
        self.local_decoders = decoder_pool(settings, cache, self.processes)

    @property
    def in_memory(self) -> int:
        """How many pictures are with the decoders and in memory."""
        return self.local_decoders.in_memory

    def are_ready(self) -> bool:
        """Return that this machine is here."""
        return True

    def begin(self, due: int) -> None:
        """Start as many decoders as will be needed."""
        self.local_decoders.start(min(self.processes, due))

    @asynccontextmanager
    async def at_work(self, downloader: "Downloader") -> AsyncIterator[tuple[Downloads, Decoders]]:
        """Yield the downloader and the decoders."""
        yield _LocalDownloads(downloader), self.local_decoders

    def close(self) -> None:
        """End the decoders."""
        self.local_decoders.close()


class _LocalDownloads:
    def __init__(self, downloader: "Downloader") -> None:
        self._downloader = downloader

    async def download(self, url: str, part: Path, *, validators: "Validators | None" = None) -> Download:
        return await self._downloader.download(url, part, validators=validators, in_memory=True)

    def is_known(self, host: str) -> bool:
        # A proxy resolves names itself, and this machine may not be able to; a store's is known when it is asked.
        return "://" in host or self._downloader.proxied or self._downloader.names.is_known(host)

    def rest_of(self, part: Path) -> Rest | None:
        return resume.rest_of(part)

    def forget(self, part: Path) -> None:
        resume.forget(part)

    async def bring(self, part: Path, sha256: str) -> None:
        """Do nothing: it lies there."""


def decoder_pool(settings: Settings, cache: ImageCache, processes: int) -> DecoderPool:
    """Return so many decoders for a cache; none is started yet."""
    return DecoderPool(
        cache.root,
        processes=processes,
        memory_bytes=settings.decoder_memory,
        longest_edge=settings.longest_edge,
        max_pixels=settings.max_pixels,
        accept_truncated=settings.accept_truncated,
        cache_made=cache.made,
    )
