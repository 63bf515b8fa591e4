"""The downloads and decoders of a cluster: what is asked of which node, and what comes back from it.

What a node has downloaded stays there until it is decoded or forgotten, so a broken download is resumed where its
beginning lies, and a picture travels as its working copy, which is smaller than the original.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from etl.clock import now_ms
from etl.domain.items import DecodedImage
from etl.errors import NodeFailedError
from etl.fetch.hosts.limiter import HostNotReadyError
from etl.fetch.workers.base import Decoders, Downloads, LostError, decoder_pool
from etl.fetch.workers.peers import LOOK_S, Cluster, Worker, WorkerPool
from etl.fetch.workers.wire import Fields, NodeFaultError, error_of, plain
from etl.images.cache import ImageCache
from etl.net import resume
from etl.net.part import Download, PartWriter
from etl.net.resume import Rest
from etl.settings import Settings

if TYPE_CHECKING:
    from etl.net.attempt import Validators
    from etl.net.client import Downloader

CHUNK = 4 * 2**20
"""Bytes of an original that travel at a time."""


@dataclass(frozen=True, slots=True)
class _Held:
    """What a node holds of one URL.

    Attributes:
        rest: what is still to come of it; ``None`` for a finished download.
    """

    worker: Worker
    url: str
    rest: Rest | None


class ClusterBackend:
    """The nodes of a cluster as downloaders and decoders; pictures of this machine's disk are decoded here."""

    in_memory = 0

    def __init__(self, settings: Settings, cache: ImageCache, cluster: Cluster, *, look_s: float = LOOK_S) -> None:
        self._settings = settings
        self._cache = cache
        self._cluster = cluster
        self._workers = WorkerPool(
            cluster, patience_s=settings.endpoint_patience, silence_s=settings.ray_timeout, look_s=look_s
        )
        self.local_decoders = decoder_pool(settings, cache, settings.decoders or os.cpu_count() or 1)
        self._held: dict[Path, _Held] = {}

    @property
    def machines(self) -> int:
        """How many nodes take part."""
        return max(1, len(self._workers.workers))

    @property
    def processes(self) -> int:
        """How many pictures they decode at once."""
        return max(1, sum(worker.processes for worker in self._workers.workers))

    def are_ready(self) -> bool:
        """Return whether a node takes part.  Raises `ClusterError` when none did for ``endpoint_patience``."""
        return self._workers.are_ready()

    def begin(self, due: int) -> None:
        """Do nothing: nodes are looked for once the event loop runs."""

    @asynccontextmanager
    async def at_work(self, downloader: "Downloader") -> AsyncIterator[tuple[Downloads, Decoders]]:  # noqa: ARG002
        """Let nodes take part during the block; this machine's own ``downloader`` brings no pictures."""
        await self._workers.open()
        try:
            yield self, self
        finally:
            await self._workers.close()

    def close(self) -> None:
        """End this machine's decoders, and all actors."""
        self.local_decoders.close()
        self._cluster.close()

    async def download(self, url: str, part: Path, *, validators: "Validators | None" = None) -> Download:
        """Let a node download one URL: the one that holds its beginning, else the emptiest."""
        held = self._held.pop(part, None)
        worker = held.worker if held is not None and not held.worker.is_lost else self._workers.emptiest()
        if worker is None:
            raise HostNotReadyError(now_ms())
        answer = await self._workers.ask(worker, url, "download", url, plain(validators))
        if "error" in answer:
            if answer["rest"] is not None:
                self._held[part] = _Held(worker, url, Rest(**answer["rest"]))
            raise self._error(worker, answer["error"])
        download = Download(**answer["download"])
        if download.not_modified:
            worker.peer.node.fruitless = 0
        else:
            self._held[part] = _Held(worker, url, None)
        return download

    def is_known(self, host: str) -> bool:  # noqa: ARG002 -- nodes have name servers of their own
        """Return that nothing is known against it."""
        return True

    def rest_of(self, part: Path) -> Rest | None:
        """Return what is still to come of a download that broke, if its node is there."""
        held = self._held.get(part)
        return None if held is None or held.worker.is_lost else held.rest

    def forget(self, part: Path) -> None:
        """Let the node that holds something of a file remove it."""
        held = self._held.pop(part, None)
        if held is not None and not held.worker.is_lost:
            self._workers.do(self._forget(held))
        resume.forget(part)

    async def _forget(self, held: _Held) -> None:
        # A node that is lost has nothing left to remove.
        with suppress(LostError):
            await self._workers.ask(held.worker, None, "forget", held.url)

    async def decode(self, original: Path | bytes) -> DecodedImage:
        """Let the node that has downloaded a file decode it, and put the working copy into the cache."""
        assert isinstance(original, Path), "a node keeps its downloads in files"
        held = self._holder(original)
        answer = await self._workers.ask(held.worker, held.url, "decode", held.url)
        if "error" in answer:
            raise self._error(held.worker, answer["error"])
        decoded = DecodedImage.from_fields(answer["decoded"])
        if hashlib.sha256(answer["working"]).hexdigest() != decoded.working.sha256:
            raise _damaged(held.worker, "the working copy")
        await asyncio.to_thread(self._cache.put_working, answer["working"])
        # Not for a download alone: a process that dies over every second picture would go on for ever.
        held.worker.peer.node.fruitless = 0
        return decoded

    async def bring(self, part: Path, sha256: str) -> None:
        """Bring an original from its node.  Raises `DiskFullError` and `StateError` where it cannot be written here."""
        held = self._holder(part)
        with PartWriter(part, max_bytes=self._settings.max_bytes) as writer:
            while data := await self._workers.ask(held.worker, held.url, "read", held.url, writer.size, CHUNK):
                await asyncio.to_thread(writer.write, data)
        if writer.sha256 != sha256:
            raise _damaged(held.worker, "the original")

    def _holder(self, part: Path) -> _Held:
        held = self._held.get(part)
        if held is None or held.worker.is_lost:
            raise LostError("the node that had downloaded it was lost")
        return held

    def _error(self, worker: Worker, fields: Fields) -> Exception:
        """Return the error that a node met; one of the node itself means that others do its work."""
        error = error_of(fields)
        if not isinstance(error, NodeFaultError):
            return error
        self._workers.fault(worker, str(error))
        return LostError(f"node {worker.peer.node.name} cannot fetch: {error}")


def _damaged(worker: Worker, what: str) -> LostError:
    why = f"{what} was damaged on its way from node {worker.peer.node.name}"
    return LostError(why, NodeFailedError(why))
