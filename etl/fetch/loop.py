"""The loop of a fetch: what is claimed when, what runs side by side, and when it is committed.

One event loop downloads, decoder processes make working copies, and threads store them.  All that ended since the
last look is committed in one transaction.  A file is durable under its content's name before its row is committed,
so a crash leaves at most an orphan file, never a row without its file.
"""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from etl.clock import now_ms
from etl.domain.items import FetchedImage, ItemFailure, KnownImage, SourceItem
from etl.domain.statuses import HostState
from etl.domain.views import StageSummary
from etl.errors import DecoderCrashedError, EtlError, FetchError, HostDownError, InternalError, ItemError
from etl.fetch.claims import Claims
from etl.fetch.disk_budget import DiskBudget
from etl.fetch.hosts.limiter import HostLimiter, HostNotReadyError
from etl.fetch.local_files import Roots
from etl.fetch.mirrors import Mirrors
from etl.fetch.pending import Pending
from etl.fetch.workers.base import FetchBackend, LostError
from etl.images.cache import ImageCache
from etl.net import resume
from etl.run_control import RunControl
from etl.settings import Settings
from etl.state.hosts import HostLog
from etl.state.sources import SourceQueue
from etl.state.waits import LONGEST_ASKED_WAIT_S

if TYPE_CHECKING:
    from etl.fetch.source import SourceFetcher

log = logging.getLogger(__name__)

LOOK_S = 0.2
"""Seconds between two looks at the queue while nothing ends."""

COMMIT_S = 0.05
"""Seconds between two commits, each of which waits for the disk and lets no download go on meanwhile."""

DECODE_AHEAD = 4
"""Downloaded pictures that may wait for each decoder; bounds the disk that parts take."""

MEMORY_AHEAD = 24
"""Pictures in memory, of 64 KiB at most, that may wait for each decoder beside these."""

REPORT_S = 1.0
"""Seconds between two reports of how the hosts fare."""


@dataclass
class _Ended:
    """What has ended since the last commit."""

    fetched: list[FetchedImage | KnownImage] = field(default_factory=list)
    failed: list[tuple[ItemFailure, SourceItem]] = field(default_factory=list)
    not_ready: list[tuple[int, int]] = field(default_factory=list)


class FetchLoop:
    """One fetch stage at work."""

    def __init__(
        self,
        queue: SourceQueue,
        host_log: HostLog,
        settings: Settings,
        control: RunControl,
        cache: ImageCache,
        backend: FetchBackend,
        mirrors: Mirrors,
        roots: Roots,
        budget: DiskBudget,
    ) -> None:
        self._queue = queue
        self._host_log = host_log
        self._settings = settings
        self._control = control
        self._cache = cache
        self._backend = backend
        self._mirrors = mirrors
        self._roots = roots
        self._budget = budget
        self._limiter = HostLimiter(
            settings.concurrency,
            settings.per_host,
            rate=settings.host_rate,
            patience_s=settings.host_patience,
            pause_s=min(settings.backoff, settings.backoff_cap),
            longest_pause_s=LONGEST_ASKED_WAIT_S,
            longest_wait_s=settings.backoff_cap,
        )
        self._claims = Claims(queue, self._limiter, settings.per_host if mirrors else 0)
        self._in_flight: dict[asyncio.Task[None], SourceItem] = {}
        self._changed = asyncio.Event()
        self._ended = _Ended()
        self._report_at = self._commit_at = 0.0
        self._done = self._retried = self._dead = 0

    async def run(self) -> StageSummary:
        """Fetch until nothing is left or the run stops; return what was done."""
        # Only now: the HTTP client takes a tenth of a second to import, in which the decoders start.
        from etl.fetch.archives import Archives
        from etl.fetch.image_services import ImageServices, edge_of
        from etl.fetch.robots import obeying
        from etl.fetch.schemes import Access
        from etl.fetch.source import SourceFetcher
        from etl.net.client import Downloader

        for host, info in self._host_log.pauses().items():
            # What the host asked for is kept; whether it is still dead, whoever starts a run wants to know at once.
            left = ((info.until or 0) - now_ms()) / 1000 if info.state is HostState.PAUSED else 0.0
            self._limiter.restore(host, info.state, min(left, LONGEST_ASKED_WAIT_S), info.reason)
        async with Downloader(self._settings) as downloader:
            downloader.names.on_answer = self._changed.set
            if downloader.proxied:
                log.info("a proxy is set: it resolves names, so private addresses are not refused")
            if self._settings.respect_robots:
                downloader.may_follow = obeying(downloader, self._limiter)
            archives = Archives(self._cache, lambda: self._control.stopping)
            async with self._backend.at_work(downloader) as (downloads, decoders):
                access = Access(
                    limiter=self._limiter,
                    downloads=downloads,
                    cache=self._cache,
                    roots=self._roots,
                    archives=archives,
                    queue=self._queue,
                    robots=downloader.may_follow,
                    max_bytes=self._settings.max_bytes,
                    pending=Pending.of(self._settings),
                    is_stopping=lambda: self._control.stopping,
                )
                fetcher = SourceFetcher(
                    queue=self._queue,
                    access=access,
                    services=ImageServices(access, downloader.read, edge_of(self._settings)),
                    decoders=decoders,
                    local_decoders=self._backend.local_decoders,
                    cache=self._cache,
                    mirrors=self._mirrors,
                    keep_originals=self._settings.keep_originals,
                    on_downloaded=self._changed.set,
                )
                try:
                    await self._loop(fetcher)
                finally:
                    released = await self._give_back(fetcher)
                    archives.close()
        return StageSummary(self._done, self._retried, self._dead, released)

    async def _loop(self, fetcher: "SourceFetcher") -> None:
        while not self._control.should_abandon():
            self._report_hosts()
            accepting = self._control.accepting_work and self._budget.may_grow(busy=bool(self._in_flight))
            accepting = accepting and self._backend.are_ready()
            self._limiter.total = self._settings.concurrency * self._backend.machines
            self._limiter.closed = not accepting
            if accepting:
                await self._claim(fetcher)
            if not self._in_flight and (self._control.stopping or await self._rest()):
                return
            await self._look(fetcher)

    async def _look(self, fetcher: "SourceFetcher") -> None:
        """Wait until a slot becomes free or something ends, then commit all that has ended."""
        if self._in_flight:
            await self._wait(LOOK_S)
            # While others wait at the limiter, no slot stays empty for want of a claim.
            while self._limiter.waiting and (left := self._commit_at - time.monotonic()) > 0:
                await self._wait(left)
            ended = [task for task in self._in_flight if task.done()]
            for task in ended:
                del self._in_flight[task]
            # All are asked, and before the commit that may fail: asyncio logs an error that nobody asked for.
            errors = [error for task in ended if (error := task.exception()) is not None]
            self._commit(fetcher)
            self._commit_at = time.monotonic() + COMMIT_S
            if errors:
                raise errors[0]

    async def _wait(self, seconds: float) -> None:
        """Wait until something has changed, at most so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
        self._changed.clear()

    async def _claim(self, fetcher: "SourceFetcher") -> None:
        """Claim what can start now, and some more; in one transaction, since each waits for the disk."""
        spared = min(self._backend.in_memory, MEMORY_AHEAD * self._backend.processes)
        under_way = len(self._in_flight) - self._limiter.waiting - spared
        free = self._limiter.total + DECODE_AHEAD * self._backend.processes - under_way
        if not (wanted := self._claims.wanted(free, fetcher.access.downloads.is_known)):
            return
        for item in self._queue.claim_of(wanted):
            task = asyncio.create_task(self._fetch(fetcher, item))
            task.add_done_callback(lambda _: self._changed.set())
            self._in_flight[task] = item
        # The new tasks take their slots before hosts are looked at again.
        await asyncio.sleep(0)

    async def _rest(self) -> bool:
        """With nothing in flight: wait a little for what is due later; return whether nothing is left at all."""
        due = self._queue.next_due_ms()
        if due is None and not self._control.model_is_loading:
            return True
        # A new model wants pictures back that were evicted when the last one had captioned them.
        wait = LOOK_S if due is None else (due - now_ms()) / 1000
        # Due, and yet not claimed: its host is pausing, its name not known yet, or the cache is full.
        await self._wait(min(wait, LOOK_S) if wait > 0 else LOOK_S)
        return False

    def _report_hosts(self) -> None:
        """Report how the hosts fare, and give up those that were dead for too long."""
        if time.monotonic() < self._report_at:
            return
        self._report_at = time.monotonic() + REPORT_S
        hosts = self._limiter.hosts()
        if hosts:
            self._host_log.record(hosts)
        for info in hosts:
            # A mirror may have what a dead host had.
            if self._limiter.given_up(info.host) and not self._mirrors:
                message = f"{info.host} gives no sign of life: {info.reason}"
                self._dead += self._queue.give_up(info.host, HostDownError.slug, message)

    def _commit(self, fetcher: "SourceFetcher") -> None:
        ended, self._ended = self._ended, _Ended()
        if ended.fetched:
            self._done += self._budget.commit(ended.fetched)
        if ended.not_ready:
            self._queue.postpone(ended.not_ready)
        if ended.failed:
            # Not theirs to answer for, where the cache was taken away under them.
            self._budget.require_cache()
            dead = self._queue.fail([failure for failure, _ in ended.failed])
            for (_, item), gone in zip(ended.failed, dead, strict=True):
                if gone:
                    fetcher.forget(item)
            self._dead += sum(dead)
            self._retried += len(dead) - sum(dead)

    async def _give_back(self, fetcher: "SourceFetcher") -> int:
        """Cancel what is still in flight, commit what has ended, and release the rest."""
        for task in self._in_flight:
            task.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)
        self._commit(fetcher)
        self._report_at = 0.0
        self._report_hosts()
        self._cache.sweep_parts(keep=resume.is_resumable)
        return self._queue.release_all()

    async def _fetch(self, fetcher: "SourceFetcher", item: SourceItem) -> None:
        started = now_ms()
        try:
            # Two steps: `_ended` is replaced at every commit, also while this waits.
            fetched = await fetcher.fetch(item)
            self._ended.fetched.append(fetched)
        except HostNotReadyError as blocked:
            self._ended.not_ready.append((item.id, blocked.until_ms))
        except LostError as lost:
            if lost.charge is None:
                self._ended.not_ready.append((item.id, now_ms()))
            else:
                self._ended.failed.append((_failure(item, lost.charge, started), item))
        except ItemError as error:
            self._ended.failed.append((_failure(item, error, started), item))
        except EtlError:
            raise
        except Exception as error:
            # A fault of ours must not end a night's run; it is logged whole and tried again.
            log.exception("unexpected error while fetching %s", item.id)
            fault = InternalError(f"{type(error).__name__}: {error}"[:500])
            self._ended.failed.append((_failure(item, fault, started), item))


def _failure(item: SourceItem, error: ItemError, started: int) -> ItemFailure:
    return ItemFailure(
        id=item.id,
        slug=error.slug,
        message=str(error),
        retryable=error.retryable,
        started_at=started,
        retry_after_s=error.retry_after_s,
        http_status=error.http_status if isinstance(error, FetchError) else None,
        crashed=isinstance(error, DecoderCrashedError),
    )
