"""Keeping the image cache below a limit: what may go, in which order, and never under another thread's hands.

First what is worth nothing (orphan files, parts that nobody can resume), then originals, then working copies that no
record needs, then those whose captions are done; never one that is still to be captioned.  The row is committed
before its file is removed, so a crash between the two leaves an orphan, which the next scan finds.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from etl import files
from etl.domain.items import FetchedImage, KnownImage
from etl.images.cache import ImageCache
from etl.images.cache_walk import CachedFile
from etl.net.resume import is_resumable
from etl.state.images import EvictionReason, Images, originals_of, working_copies_of
from etl.state.read.reader import Reader
from etl.state.store import Store

ROOM = 0.9
"""Part of the limit down to which room is made, so that it is made seldom."""

PAGE = 256
"""Images looked at and evicted at once; other writers wait meanwhile, for some hundredths of a second."""

PAGES = 16
"""Pages looked at in one call for each reason: a call stays cheap where most must stay."""

EVICT_S = 0.05
"""Seconds after which a call that evicts leaves the rest to the next: it may be the network's loop that calls."""

PATIENCE_S = 1.0
"""Seconds between two calls that look for what may go, when the first found nothing."""

MEASURE_S = 1.0
"""Seconds for which what the unfinished files take is taken for granted."""


@dataclass(frozen=True)
class Survey:
    """What the cache directory holds.

    Attributes:
        size: bytes of all files but the parts.
        orphans: of those, the files that no image owns.
        parts: unfinished files and their notes.
    """

    size: int
    orphans: list[CachedFile]
    parts: list[CachedFile]


def survey(cache: ImageCache, reader: Reader) -> Survey:
    """Walk over the cache once and compare it with the database."""
    orphans = list(cache.strays())
    size = sum(file.size for file in orphans)
    for shards, expected in (
        (cache.working_shards(), working_copies_of),
        (cache.original_shards(), originals_of),
    ):
        for shard in shards:
            owned = {row.sha256 for row in expected(reader, shard.name)}
            size += sum(file.size for file in (*shard.files.values(), *shard.strays))
            orphans += shard.strays
            orphans += (file for sha256, file in shard.files.items() if sha256 not in owned)
    return Survey(size, orphans, cache.parts())


def path_of(cache: ImageCache, reason: EvictionReason, sha256: str) -> Path:
    """Return the file that such a reason speaks of."""
    return cache.original_path(sha256) if reason is EvictionReason.ORIGINAL else cache.working_path(sha256)


def size_of(cache: ImageCache, reason: EvictionReason, sha256: str) -> int:
    """Return the bytes of the file that such a reason speaks of; 0 where there is none."""
    return files.plain_size(path_of(cache, reason, sha256)) or 0


def evict(images: Images, cache: ImageCache, reason: EvictionReason, chosen: Sequence[int]) -> list[int]:
    """Evict as far as the reason still holds: first the rows, then the files; return the bytes of each file removed."""
    removed = [cache.remove(path_of(cache, reason, sha256)) for sha256 in images.evict(reason, chosen)]
    return [size for size in removed if size is not None]


class CacheLimit:
    """Knows how many bytes the cache takes, and makes room when these are more than ``limit_bytes``.

    Make it before the first decoder starts: what is there is counted once, and from then on what is `added` and what
    is evicted.  `make_room` may run in another thread than the one that commits what was fetched, if that one does it
    within `hold`.  With ``limit_bytes`` 0 nothing is counted and nothing evicted.  ``clock`` gives seconds that only
    grow.
    """

    def __init__(
        self, store: Store, cache: ImageCache, limit_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._images = store.images()
        self._cache = cache
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._after = dict.fromkeys(EvictionReason, 0)
        # Two, because each is written by one thread: where pictures are fetched, and where room is made.
        self._added, self._kept = 0, 0
        self._parts, self._measured_at = 0, float("-inf")
        self._making, self._wait_until = False, float("-inf")
        self._leftovers: list[CachedFile] = []
        if limit_bytes:
            with Reader(store.directory) as reader:
                found = survey(cache, reader)
            self._kept = found.size
            self._leftovers = found.orphans + [part for part in found.parts if not is_resumable(part.path)]

    @property
    def used(self) -> int:
        """The bytes that the cache takes; 0 without a limit."""
        if not self._limit:
            return 0
        if self._clock() - self._measured_at >= MEASURE_S:
            self._parts = sum(part.size for part in self._cache.parts())
            self._measured_at = self._clock()
        return self._kept + self._added + self._parts

    @property
    def is_full(self) -> bool:
        """Whether the cache takes more than it may."""
        return self.used > self._limit

    def added(self, fetched: Iterable[FetchedImage | KnownImage]) -> None:
        """Count what was put into the cache; for images that it held already, that is nothing."""
        for image in fetched:
            if isinstance(image, FetchedImage):
                self._added += image.decoded.working.size + (image.size if image.original_kept else 0)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let nothing be evicted during the block, in which is committed what `is_whole` was asked about."""
        with self._lock:
            yield

    def is_whole(self, image: FetchedImage | KnownImage) -> bool:
        """Return whether the files of a fetched image are there still.

        A picture that came a second time is not written a second time; its file may have been evicted since.
        """
        if not self._limit or isinstance(image, KnownImage):
            return True
        return self._cache.has_working(image.decoded.working.sha256) and (
            not image.original_kept or self._cache.has_original(image.sha256)
        )

    def make_room(self, *, captioned: bool = True, thorough: bool = False) -> bool:
        """When the cache is full, evict until it takes `ROOM` of its limit; return whether it is below the limit now.

        Cheap enough to be called at every look: a call does a part of it, the next one goes on.  Only with
        ``thorough`` does False mean that nothing at all may go; ask so before giving up.  Without ``captioned`` no
        working copy that has its captions is touched, for as long as the recipe by which they count is not known.
        """
        if thorough:
            self._measured_at = self._wait_until = float("-inf")
        self._making = self.is_full or (self._making and self._surplus > 0)
        if self._making and self._clock() >= self._wait_until:
            until, freed = self._clock() + EVICT_S, 0
            for step in self._steps(captioned=captioned, pages=sys.maxsize if thorough else PAGES):
                freed += step
                if self._surplus <= 0 or (freed and not thorough and self._clock() > until):
                    break
            else:
                if not freed:
                    self._wait_until = self._clock() + PATIENCE_S
        return not self.is_full

    @property
    def _surplus(self) -> int:
        return self.used - int(self._limit * ROOM)

    def _steps(self, *, captioned: bool, pages: int) -> Iterator[int]:
        """Do one page of work after the other, what is worth least first; yield the bytes that each has freed."""
        while self._leftovers:
            yield self._remove_leftovers()
        for reason in EvictionReason:
            if captioned or reason is not EvictionReason.CAPTIONED:
                yield from self._evict(reason, pages)

    def _remove_leftovers(self) -> int:
        """Remove what was worth nothing at the start, unless somebody has found a use for it since."""
        page, self._leftovers = self._leftovers[:PAGE], self._leftovers[PAGE:]
        with self._lock:
            working, originals = self._images.owned([file.path.stem for file in page])
            owned = {self._cache.working_path(sha256) for sha256 in working}
            owned |= {self._cache.original_path(sha256) for sha256 in originals}
            removed = [
                (file, self._cache.remove(file.path) or 0)
                for file in page
                if file.path not in owned and _is_untouched(file)
            ]
        parts = sum(size for file, size in removed if self._cache.is_part(file.path))
        freed = sum(size for _, size in removed)
        self._parts -= parts
        self._kept -= freed - parts
        return freed

    def _evict(self, reason: EvictionReason, pages: int) -> Iterator[int]:
        """Go on behind the image where the last call stopped, and once around, by so many pages at most."""
        wrapped = self._after[reason] == 0
        for _ in range(pages):
            page = self._images.candidates(reason, self._after[reason], PAGE)
            chosen, surplus = list[int](), self._surplus
            for candidate in page:
                if surplus <= 0:
                    break
                self._after[reason] = candidate.image
                if candidate.may_go:
                    chosen.append(candidate.image)
                    surplus -= size_of(self._cache, reason, candidate.sha256)
            with self._lock:
                freed = sum(evict(self._images, self._cache, reason, chosen)) if chosen else 0
            self._kept -= freed
            at_end = len(page) < PAGE and (not page or self._after[reason] == page[-1].image)
            if at_end:
                self._after[reason] = 0
            yield freed
            if at_end and wrapped:
                return
            wrapped |= at_end


def _is_untouched(file: CachedFile) -> bool:
    entry = files.look_at(file.path)
    return entry is not None and entry.written_ns == file.written_ns
