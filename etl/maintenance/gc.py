"""Garbage collection: what the image cache holds and nothing needs, archives and pictures whose records are gone.

Only for the holder of the state's lock: with no run at work every part was left behind, and every file without a row
is an orphan.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from etl.fetch.cache_limit import PAGE, ROOM, evict, size_of, survey
from etl.images.cache import ImageCache
from etl.images.cache_walk import CachedFile
from etl.ingest.manifest import ARCHIVES, kept_archive
from etl.net.resume import is_resumable
from etl.state.images import Candidate, EvictionReason
from etl.state.presence import require_cache
from etl.state.read.manifests import living_elsewhere
from etl.state.read.reader import Reader
from etl.state.store import Store

RESUMABLE_S = 7 * 86_400
"""Age in seconds from which on a part that could be resumed is given up."""


@dataclass(frozen=True)
class Removed:
    """How many files of one kind, and their bytes."""

    files: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class GcSummary:
    """What was removed, or with ``dry_run`` would be.

    Attributes:
        orphans: files that no image owns.
        parts: unfinished files that cannot be resumed, or are too old to be.
        unneeded: working copies that no active record needs.
        originals: kept originals.
        captioned: working copies whose captions under the current recipe are all done.
        pictures: those that stood in records, of which none is left; the database keeps their room for others.
        archives: those of pictures that lie elsewhere, of which no record is left.
        cache_bytes: bytes that the cache takes afterwards.
        limit: ``max_cache_size``; 0 means none.
    """

    orphans: Removed
    parts: Removed
    unneeded: Removed
    originals: Removed
    captioned: Removed
    archives: Removed
    pictures: Removed
    cache_bytes: int
    limit: int
    dry_run: bool


def gc(store: Store, *, captioned: bool = False, originals: bool = False, dry_run: bool = False) -> GcSummary:
    """Remove what nothing needs; of originals and captioned working copies all, if asked, else what the limit demands.

    The limit is the setting ``max_cache_size``; above it, the oldest are removed until `ROOM` of it is left.  Raises
    `CacheMissingError` where there is no cache to collect from.
    """
    cache = ImageCache.of_state(store.directory)
    with Reader(store.directory) as reader:
        require_cache(reader)
        found = survey(cache, reader)
        archives = _lost_archives(store.directory, reader)
    collection = _Collection(store, cache, found.size + sum(part.size for part in found.parts), dry_run=dry_run)
    own = store.drop_own_pictures(dry_run=dry_run)
    # In this order: what is worth least goes first, and the limit asks only for what is still above it.
    return GcSummary(
        orphans=collection.remove(found.orphans),
        parts=collection.remove(_dead_parts(found.parts)),
        unneeded=collection.evict(EvictionReason.UNNEEDED, all_of_them=True),
        originals=collection.evict(EvictionReason.ORIGINAL, all_of_them=originals),
        captioned=collection.evict(EvictionReason.CAPTIONED, all_of_them=captioned),
        # They count for no limit.
        archives=_Collection(store, cache, 0, dry_run=dry_run).remove(archives),
        pictures=Removed(len(own), sum(own)),
        cache_bytes=collection.used,
        limit=store.settings.max_cache_size,
        dry_run=dry_run,
    )


def _dead_parts(parts: Iterable[CachedFile]) -> list[CachedFile]:
    oldest_ns = time.time_ns() - RESUMABLE_S * 10**9
    return [part for part in parts if part.written_ns < oldest_ns or not is_resumable(part.path)]


def _lost_archives(state: Path, reader: Reader) -> list[CachedFile]:
    needed = {kept_archive(state, path) for path in living_elsewhere(reader)}
    lost = (path for path in (state / ARCHIVES).glob("*") if path not in needed and path.is_file())
    return [CachedFile(path, path.lstat().st_size, 0) for path in lost]


class _Collection:
    """One collection at work.

    Attributes:
        used: bytes that the cache takes, or with ``dry_run`` would take, after what was removed so far.
    """

    def __init__(self, store: Store, cache: ImageCache, used: int, *, dry_run: bool) -> None:
        self._images = store.images()
        self._limit = store.settings.max_cache_size
        self._cache = cache
        self._dry_run = dry_run
        self._sharers = self._images.shared() if dry_run else {}
        self._evicted: set[int] = set()
        self.used = used

    def remove(self, files: Iterable[CachedFile]) -> Removed:
        """Remove files that belong to nobody."""
        return self._removed([file.size if self._dry_run else self._cache.remove(file.path) for file in files])

    def evict(self, reason: EvictionReason, *, all_of_them: bool) -> Removed:
        """Evict whatever may go, or no more than what the limit demands, oldest first."""
        target = int(self._limit * ROOM)
        if all_of_them:
            target = -1
        elif not self._limit or self.used <= self._limit:
            return Removed()
        files, size, after = 0, 0, 0
        while self.used > target and (page := self._images.candidates(reason, after, PAGE)):
            chosen, surplus = list[Candidate](), self.used - target
            for candidate in page:
                if surplus <= 0:
                    break
                if candidate.may_go and (reason is EvictionReason.ORIGINAL or candidate.image not in self._evicted):
                    chosen.append(candidate)
                    surplus -= size_of(self._cache, reason, candidate.sha256)
            removed = self._evict(reason, chosen)
            files, size, after = files + removed.files, size + removed.bytes, page[-1].image
        return Removed(files, size)

    def _evict(self, reason: EvictionReason, chosen: list[Candidate]) -> Removed:
        if not self._dry_run:
            return self._removed(evict(self._images, self._cache, reason, [one.image for one in chosen]))
        if reason is not EvictionReason.ORIGINAL:
            self._evicted.update(one.image for one in chosen)
        return self._removed([size_of(self._cache, reason, sha) for _, sha, _ in chosen if self._is_last(reason, sha)])

    def _is_last(self, reason: EvictionReason, sha256: str) -> bool:
        """Tell for a dry run whether no other image would need the file any more."""
        if reason is EvictionReason.ORIGINAL or sha256 not in self._sharers:
            return True
        self._sharers[sha256] -= 1
        return self._sharers[sha256] == 0

    def _removed(self, sizes: Iterable[int | None]) -> Removed:
        gone = [size for size in sizes if size is not None]
        self.used -= sum(gone)
        return Removed(len(gone), sum(gone))
