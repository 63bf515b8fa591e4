"""Fetch: sources become images in the cache.

One event loop downloads; decoder processes make the working copies.  Everything that ended since the last
look is committed in one transaction.  A file is durable under its content's name before its row is committed,
so a crash leaves at most an orphan file, never a row without its file.
"""

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from etl.clock import now_ms
from etl.config import Settings
from etl.errors import (
    ConfigError,
    DecoderCrashedError,
    DiskFullError,
    EtlError,
    FetchError,
    InternalError,
    ItemError,
    TooManyRequestsError,
    TransientFetchError,
)
from etl.imaging.cache import ImageCache
from etl.imaging.pool import DecoderPool
from etl.models import DecodedImage, FetchedImage, ItemFailure, SourceItem, StageSummary
from etl.net import resume
from etl.net.client import Downloader
from etl.net.local import is_local, local_path, read_local
from etl.net.part import Download
from etl.net.politeness import HostGate
from etl.stages.flow import Flow
from etl.state.queries import Reader
from etl.state.sources import SourceQueue
from etl.state.store import Store
from etl.state.work_queue import LONGEST_ASKED_WAIT_S

log = logging.getLogger(__name__)

LOOK_S = 0.2
"""Seconds between two looks at the queue while nothing ends."""

PROGRESS = 256 * 1024
"""Bytes that a connection must have brought before it broke for its file to be resumed at once, free of charge."""

RESUME_PAUSE_S = 0.5
"""Seconds before a broken connection is made anew."""

DECODE_AHEAD = 4
"""Downloaded pictures that may wait for each decoder; bounds the disk that parts take."""


def fetch(store: Store, run: int, settings: Settings, flow: Flow) -> StageSummary:
    """Fetch every source that is due until none is left, waiting for those that will be tried again.

    Raises `ConfigError` when the state's working copies were made with another ``longest_edge``, and
    `DiskFullError` when the disk has less than ``min_free`` bytes; what was committed stays.
    """
    with Reader(store.directory) as reader:
        edges = reader.longest_edges()
    if edges and edges != [settings.longest_edge]:
        raise ConfigError(
            f"the working copies in {store.directory} have a longest edge of {edges[0]} pixels, not "
            f"{settings.longest_edge}; give --longest-edge {edges[0]} or another --state directory"
        )
    cache = ImageCache.of_state(store.directory)
    cache.sweep_parts(keep=resume.is_resumable)
    processes = settings.decoders or os.cpu_count() or 1
    with DecoderPool(
        cache.root, processes=processes, memory_bytes=settings.decoder_memory, longest_edge=settings.longest_edge,
        max_pixels=settings.max_pixels,
    ) as decoders:  # fmt: skip
        return asyncio.run(_Fetch(store.sources(run), settings, flow, cache, decoders, processes).run())


@dataclass
class _Ended:
    """What has ended since the last commit."""

    fetched: list[FetchedImage] = field(default_factory=list)
    failed: list[tuple[ItemFailure, SourceItem]] = field(default_factory=list)


class _Fetch:
    """One fetch stage at work."""

    def __init__(
        self,
        queue: SourceQueue,
        settings: Settings,
        flow: Flow,
        cache: ImageCache,
        decoders: DecoderPool,
        processes: int,
    ) -> None:
        self._queue = queue
        self._settings = settings
        self._flow = flow
        self._cache = cache
        self._decoders = decoders
        self._gate = HostGate(settings.concurrency, settings.per_host)
        self._in_flight: dict[asyncio.Task[None], SourceItem] = {}
        self._limit = settings.concurrency + DECODE_AHEAD * processes
        self._changed = asyncio.Event()
        self._ended = _Ended()
        self._last_host = ""
        self._done = self._retried = self._dead = 0

    async def run(self) -> StageSummary:
        async with Downloader(self._settings) as downloader:
            if downloader.proxied:
                log.info("a proxy is set: it resolves names, so private addresses are not refused")
            try:
                await self._loop(downloader)
            finally:
                released = await self._give_back()
        return StageSummary(self._done, self._retried, self._dead, released)

    async def _loop(self, downloader: Downloader) -> None:
        while not self._flow.should_abandon():
            if self._flow.claiming:
                self._check_disk()
                await self._claim(downloader)
            if not self._in_flight and (self._flow.stopping or await self._rest()):
                return
            await self._look()

    async def _look(self) -> None:
        """Wait until a slot becomes free or something ends, then commit all that has ended."""
        if self._in_flight:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), LOOK_S)
            self._changed.clear()
            ended = [task for task in self._in_flight if task.done()]
            for task in ended:
                del self._in_flight[task]
            # All are asked, and before the commit that may fail: asyncio logs an error that nobody asked for.
            errors = [error for task in ended if (error := task.exception()) is not None]
            self._commit()
            if errors:
                raise errors[0]

    async def _claim(self, downloader: Downloader) -> None:
        """Claim as much as can start now, host after host, beginning behind the last one served."""
        hosts = self._queue.ready_hosts(after=self._last_host)
        if not hosts and self._last_host:
            hosts = self._queue.ready_hosts()
            self._last_host = ""
        for host in hosts:
            room = min(self._gate.free(host), self._limit - len(self._in_flight))
            if room > 0:
                for item in self._queue.claim(host, room):
                    task = asyncio.create_task(self._fetch(downloader, item))
                    task.add_done_callback(lambda _: self._changed.set())
                    self._in_flight[task] = item
                # The new tasks take their slots before the next host is looked at.
                await asyncio.sleep(0)
            self._last_host = host

    async def _rest(self) -> bool:
        """With nothing in flight: wait a little for what is due later; tell whether nothing is left at all."""
        due = self._queue.next_due_ms()
        if due is None:
            return True
        wait = (due - now_ms()) / 1000
        # Due, and yet not claimed: its host is pausing.
        await asyncio.sleep(min(wait, LOOK_S) if wait > 0 else LOOK_S)
        return False

    def _check_disk(self) -> None:
        free = self._cache.free_bytes()
        if free < self._settings.min_free:
            raise DiskFullError(
                f"only {free // 2**20} MiB are free for {self._cache.root}, fewer than min_free = "
                f"{self._settings.min_free // 2**20} MiB; free some space and run again, or lower min_free"
            )

    def _commit(self) -> None:
        ended, self._ended = self._ended, _Ended()
        if ended.fetched:
            self._done += self._queue.commit(ended.fetched, self._flow.recipe)
        if ended.failed:
            dead = self._queue.fail([failure for failure, _ in ended.failed])
            for (_, item), gone in zip(ended.failed, dead, strict=True):
                if gone:
                    resume.forget(self._cache.part_of(item.url))
            self._dead += sum(dead)
            self._retried += len(dead) - sum(dead)

    async def _give_back(self) -> int:
        """Cancel what is still in flight, commit what has ended, and release the rest."""
        for task in self._in_flight:
            task.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)
        self._commit()
        self._cache.sweep_parts(keep=resume.is_resumable)
        return self._queue.release_all()

    async def _fetch(self, downloader: Downloader, item: SourceItem) -> None:
        started = now_ms()
        try:
            # Two steps: `_ended` is replaced at every commit, also while this waits.
            fetched = await self._one(downloader, item, started)
            self._ended.fetched.append(fetched)
        except ItemError as error:
            self._ended.failed.append((self._failure(item, error, started), item))
        except EtlError:
            raise
        except Exception as error:
            # A fault of ours must not end a night's run; it is logged whole and tried again.
            log.exception("unexpected error while fetching %s", item.id)
            fault = InternalError(f"{type(error).__name__}: {error}"[:500])
            self._ended.failed.append((self._failure(item, fault, started), item))

    def _failure(self, item: SourceItem, error: ItemError, started: int) -> ItemFailure:
        if error.retry_after_s and item.host:
            self._gate.pause(item.host, min(error.retry_after_s, LONGEST_ASKED_WAIT_S))
        elif isinstance(error, TooManyRequestsError):
            self._gate.pause(item.host, min(self._settings.backoff_s, self._settings.backoff_cap_s))
        return ItemFailure(
            item.id, error.slug, str(error), error.retryable, started, error.retry_after_s,
            error.http_status if isinstance(error, FetchError) else None, isinstance(error, DecoderCrashedError),
        )  # fmt: skip

    async def _one(self, downloader: Downloader, item: SourceItem, started: int) -> FetchedImage:
        if is_local(item.url):
            async with self._gate.slot(""):
                download = await asyncio.to_thread(read_local, item.url, max_bytes=self._settings.max_bytes)
            decoded = await self._decoders.decode(local_path(item.url))
            return _fetched(item, download, decoded, started, kept=False)
        part = self._cache.part_of(item.url)
        async with self._gate.slot(item.host):
            download = await self._download(downloader, item.url, part)
        # Another download can start while this one is decoded.
        self._changed.set()
        try:
            decoded = await self._decoders.decode(part)
            if self._settings.keep_originals:
                await asyncio.to_thread(self._cache.keep_original, part, download.sha256)
            return _fetched(item, download, decoded, started, kept=self._settings.keep_originals)
        finally:
            resume.forget(part)

    async def _download(self, downloader: Downloader, url: str, part: Path) -> Download:
        """Download one URL; a connection that breaks after bringing something costs no attempt.

        What a failed attempt leaves is kept, so the next one goes on from there.
        """
        while True:
            before = _size(part)
            try:
                return await downloader.download(url, part)
            except TransientFetchError as error:
                rest = resume.rest_of(part)
                if rest is None or rest.received < before + PROGRESS or self._flow.stopping:
                    raise
                log.info("resuming at byte %d of %d: %s", rest.received, rest.total, error)
            await asyncio.sleep(RESUME_PAUSE_S)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _fetched(item: SourceItem, download: Download, decoded: DecodedImage, started: int, *, kept: bool) -> FetchedImage:
    return FetchedImage(
        item, download.sha256, download.size, decoded, kept, started, download.http_status, download.etag,
        download.last_modified, download.final_url,
    )  # fmt: skip
