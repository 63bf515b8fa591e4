"""One node of a cluster that fetches: downloads, keeps the parts, decodes them, and sends the working copies.

The same downloader and the same confined decoders as on one machine, guard against private addresses included.  Knows
nothing of Ray, of the state or of hosts' limits: the driver says when each request may go out.  For one event loop.
"""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any

from etl import files
from etl.domain.items import DecodedImage
from etl.errors import EtlError, InternalError
from etl.fetch.workers.base import decoder_pool
from etl.fetch.workers.wire import Fields, error_fields, plain
from etl.images.cache import ImageCache
from etl.images.decoder_pool import DecoderPool
from etl.net import resume
from etl.net.attempt import Validators
from etl.net.client import Downloader
from etl.net.part import Download
from etl.net.robots import MAX_BYTES, Robots
from etl.ray_cluster.directory import own_directory
from etl.settings import Settings
from etl.version import __version__

log = logging.getLogger(__name__)


class FetchNode:
    """Fetches what it is given until it is closed or killed; every answer is plain values.

    ``config``: ``version`` of the driver, ``settings`` as `Settings.to_json` gives them, ``cpus`` of the node.

    Parts lie in a directory of its own on the disk for temporary files (``TMPDIR``), not in memory: they may have
    hundreds of megabytes each.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._root: Path | None = None
        self._downloader: Downloader | None = None
        self._pool: DecoderPool | None = None

    async def ready(self) -> Fields:
        """Make ready; return how many ``processes`` decode and whether there is a proxy (``proxied``), or ``error``."""
        try:
            if self._config["version"] != __version__:
                raise EtlError(f"this node has caption-etl {__version__}, the driver {self._config['version']}")
            settings = Settings.from_json(self._config["settings"])
            self._root = await asyncio.to_thread(own_directory, in_memory=False)
            self._cache = ImageCache(self._root / "images")
            processes = settings.decoders or max(1, int(self._config["cpus"]))
            self._pool = decoder_pool(settings, self._cache, processes)
            self._pool.start(processes)
            self._downloader = downloader = Downloader(settings)
            if settings.respect_robots:
                # The driver has asked for the URL itself; where a redirect leads is known here alone.
                downloader.may_follow = Robots(lambda url: downloader.read(url, max_bytes=MAX_BYTES)).check
            return {"error": None, "processes": processes, "proxied": downloader.proxied}
        except EtlError as error:
            return {"error": str(error)}

    async def beat(self) -> None:
        """Give a sign of life."""

    async def download(self, url: str, validators: Mapping[str, Any] | None) -> Fields:
        """Download one URL; return ``download``, or ``error`` and, where it can be resumed, the ``rest``."""
        answer = await _answer("download", self._download(url, validators))
        if "error" in answer:
            answer["rest"] = None
            # Where there can be no parts at all, nothing can be resumed.
            with contextlib.suppress(EtlError):
                answer["rest"] = plain(resume.rest_of(self._cache.part_of(url)))
        return answer

    async def _download(self, url: str, validators: Mapping[str, Any] | None) -> Download:
        assert self._downloader is not None
        known = Validators(**validators) if validators is not None else None
        return await self._downloader.download(url, self._cache.part_of(url), validators=known)

    async def decode(self, url: str) -> Fields:
        """Decode what was downloaded; return ``decoded`` and the bytes of its ``working`` copy, or ``error``."""
        working: list[bytes] = []
        answer = await _answer("decoded", self._decode(url, working))
        return answer | ({"working": working[0]} if working else {})

    async def _decode(self, url: str, working: list[bytes]) -> DecodedImage:
        assert self._pool is not None
        decoded, data = await self._pool.working_copy(self._cache.part_of(url))
        working.append(data)
        return decoded

    async def read(self, url: str, start: int, most: int) -> bytes:
        """Return so many bytes of what was downloaded; empty at its end."""
        return await asyncio.to_thread(_read, self._cache.part_of(url), start, most)

    async def forget(self, url: str) -> None:
        """Remove what there is of a download."""
        resume.forget(self._cache.part_of(url))

    async def close(self) -> None:
        """End the decoders and remove all files."""
        if self._pool is not None:
            await asyncio.to_thread(self._pool.close)
        if self._downloader is not None:
            await self._downloader.__aexit__(None, None, None)
        if self._root is not None:
            await asyncio.to_thread(shutil.rmtree, self._root, ignore_errors=True)


async def _answer(name: str, work: Awaitable[Any]) -> Fields:
    """Return what the work gives under its name, or the error that it ends with."""
    try:
        return {name: plain(await work)}
    except EtlError as error:
        return {"error": error_fields(error)}
    except Exception as error:
        log.exception("unexpected error")
        return {"error": error_fields(InternalError(f"on a node: {type(error).__name__}: {error}"[:500]))}


def _read(path: Path, start: int, most: int) -> bytes:
    with files.reading(path) as file:
        file.seek(start)
        return file.read(most)
