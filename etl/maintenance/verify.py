"""Verify: database and image cache against each other, and the database against itself.

A picture that is gone or damaged goes back into the fetch queue; nothing that is right is touched.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from etl.export.check import ExportFound, compare_export
from etl.images.cache import ImageCache
from etl.images.cache_walk import CachedFile, Shard
from etl.images.working_copies import fault_of, holds
from etl.state.checks import EXAMPLES, deep_problems, problems, summed_up
from etl.state.images import Expected, evicted, originals_of, working_copies_of
from etl.state.presence import require_cache
from etl.state.read.reader import Reader
from etl.state.store import Store
from etl.units import count


@dataclass(frozen=True, kw_only=True)
class VerifySummary:
    """What was found.

    Attributes:
        images: working copies that the database knows.
        missing, damaged: of those, images whose file is gone or is not what its name says.
        evicted: images whose working copy was removed on purpose.
        requeued: sources that will be fetched again because of what is missing or damaged.
        originals: kept originals that the database knows.
        missing_originals, damaged_originals: the same of those; the database now knows that they are gone.
        orphans: files in the cache that no image owns, or ``deleted`` ones.
        parts: unfinished files that the next fetch resumes or removes.
        quick: sizes were compared, contents not read.
        problems: what is wrong with the database itself, or what `deep` found; empty for a sound one.
        deep: every row, line and picture was looked at, and the last export read again.
        export: with ``deep``, what became of that last comparison.
        revived: captions that had failed for want of a picture that is there, and are ready again.
    """

    images: int
    missing: int
    damaged: int
    evicted: int
    requeued: int
    originals: int
    missing_originals: int
    damaged_originals: int
    orphans: int
    deleted: bool
    parts: int
    quick: bool
    problems: tuple[str, ...]
    deep: bool = False
    export: ExportFound | None = None
    revived: int = 0

    @property
    def damage(self) -> int:
        """Files that were missing or damaged; what could be put right has been."""
        return self.missing + self.damaged + self.missing_originals + self.damaged_originals

    def lines(self) -> Iterator[str]:
        """Yield the findings for people."""
        gone = f"; {self.evicted:,} evicted" if self.evicted else ""
        yield f"images    {self.images:,} in the database, {self.missing:,} missing, {self.damaged:,} damaged{gone}"
        if self.requeued:
            ready = (
                f"{count(self.requeued, 'source')} {'is' if self.requeued == 1 else 'are'} ready to be fetched again"
            )
            yield f"put right {ready}: run `etl fetch`"
        if self.revived:
            yield f"captions  {self.revived:,} ready again, which had failed for want of a picture: run `etl caption`"
        if self.originals:
            yield (
                f"originals {self.originals:,} kept, {self.missing_originals:,} missing, "
                f"{self.damaged_originals:,} damaged"
            )
        if removed := self.damaged + self.damaged_originals:
            yield f"put right {count(removed, 'damaged file')} removed"
        yield f"orphans   {count(self.orphans, 'file')}" + (" deleted" if self.deleted and self.orphans else "")
        if self.parts:
            yield f"parts     {count(self.parts, 'unfinished file')}, which the next `etl fetch` resumes or removes"
        if self.quick:
            yield "contents  not read, sizes alone compared"
        if self.export is not None:
            yield f"export    {_EXPORT[self.export]}"
        yield from (f"problem   {problem}" for problem in self.problems)
        if not self.problems:
            yield "database  sound"


_EXPORT = {
    ExportFound.NONE: "none on record",
    ExportFound.GONE: "not compared: the last one is no longer where it was written",
    ExportFound.CHANGED: "not compared: the last one's file is not what was written",
    ExportFound.OLDER: "not compared: records or pictures may have changed since the last one",
    ExportFound.COMPARED: "the last one was read again and compared",
}


@dataclass
class _Findings:
    """What was found among the files of one kind."""

    expected: int = 0
    missing: list[Expected] = field(default_factory=list)
    damaged: list[Expected] = field(default_factory=list)
    orphans: list[CachedFile] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    faulty: int = 0

    def fault(self, what: str) -> None:
        """Note what is wrong with a file; the first few are kept in words."""
        self.faulty += 1
        self.faults += [what] if self.faulty <= EXAMPLES else []

    @property
    def lost(self) -> list[int]:
        """The images whose file is not there, or worth nothing."""
        return [one.image for one in (*self.missing, *self.damaged)]


def verify(
    store: Store,
    *,
    delete_orphans: bool = False,
    quick: bool = False,
    deep: bool = False,
    accept_missing: bool = False,
) -> VerifySummary:
    """Check everything; with ``quick`` compare the sizes of the files without reading them.

    With ``deep`` also look at every row and every stored line, decode each working copy, and read the last export
    again.  Removes damaged files, which are worth nothing; orphans only when asked.  Captions that failed for want of a
    picture that is there begin anew.

    Raises `CacheMissingError` when the cache as a whole is not there, unless with ``accept_missing``: then all that is
    not in it is to be fetched again.
    """
    cache = ImageCache.of_state(store.directory)
    working, originals = _Findings(), _Findings()
    depth = _size if quick else _content
    found = None
    if not accept_missing:
        with Reader(store.directory) as reader:
            require_cache(reader)
    with Reader(store.directory) as reader, ThreadPoolExecutor(os.cpu_count()) as threads:
        wrong = [*store.damage(), *problems(reader)]
        if deep:
            wrong += deep_problems(reader)
            found, differences = compare_export(reader)
            wrong += differences
        gone = evicted(reader)
        for shard in cache.working_shards():
            rows = working_copies_of(reader, shard.name)
            _check(working, cache, shard, rows, threads.map(_judge(shard, _working_copy if deep else depth), rows))
        for shard in cache.original_shards():
            rows = originals_of(reader, shard.name)
            _check(originals, cache, shard, rows, threads.map(_judge(shard, depth), rows))
    wrong += summed_up("working copies that are no good", working.faults, working.faulty)
    requeued = store.images().requeue_missing(working.lost)
    revived = store.images().revive_captions()
    store.images().drop_originals(originals.lost)
    orphans = [*working.orphans, *originals.orphans, *cache.strays()]
    if delete_orphans:
        for orphan in orphans:
            cache.remove(orphan.path)
    return VerifySummary(
        images=working.expected,
        missing=len(working.missing),
        damaged=len(working.damaged),
        evicted=gone,
        requeued=requeued,
        originals=originals.expected,
        missing_originals=len(originals.missing),
        damaged_originals=len(originals.damaged),
        orphans=len(orphans),
        deleted=delete_orphans,
        parts=len(cache.parts()),
        quick=quick,
        problems=tuple(wrong),
        deep=deep,
        export=found,
        revived=revived,
    )


_Test = Callable[[CachedFile, Expected], str | None]
"""Says what is wrong with a file: nothing for a sound one, and an empty text where it is just not what it was."""


def _judge(shard: Shard, test: _Test) -> Callable[[Expected], str | None]:
    """Return a function that tests the file of a row, in any thread; one that is not there passes."""

    def judged(row: Expected) -> str | None:
        file = shard.files.get(row.sha256)
        return None if file is None else test(file, row)

    return judged


def _size(file: CachedFile, row: Expected) -> str | None:
    return None if file.size == row.size else ""


def _content(file: CachedFile, row: Expected) -> str | None:
    return None if file.size == row.size and holds(file.path, row.sha256) else ""


def _working_copy(file: CachedFile, row: Expected) -> str | None:
    wrong = _content(file, row)
    return fault_of(file.path, row.width, row.height) if wrong is None else wrong


def _check(
    findings: _Findings, cache: ImageCache, shard: Shard, rows: list[Expected], verdicts: Iterable[str | None]
) -> None:
    """Compare one shard with what should be in it; remove what is damaged."""
    findings.expected += len(rows)
    findings.orphans += shard.strays
    wrong = list(zip(rows, verdicts, strict=True))
    bad = {row.sha256 for row, verdict in wrong if verdict is not None}
    for row, verdict in wrong:
        if row.sha256 not in shard.files:
            findings.missing.append(row)
        elif row.sha256 in bad:
            findings.damaged.append(row)
            if verdict:
                findings.fault(f"image {row.image} ({shard.files[row.sha256].path}: {verdict})")
    for sha256 in bad:
        # First, and were it left, the next fetch would take it for the finished file of its name.
        cache.remove(shard.files[sha256].path)
    owned = {row.sha256 for row in rows}
    findings.orphans += (file for sha256, file in shard.files.items() if sha256 not in owned)
