"""Verify: database and image cache against each other, and the database against itself.

A picture that is gone or damaged goes back into the fetch queue; nothing that is right is touched.
"""

import errno
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from etl.errors import StateError
from etl.imaging.cache import CachedFile, ImageCache, Shard
from etl.state.images import Expected, evicted, originals_of, working_copies_of
from etl.state.integrity import problems
from etl.state.queries import Reader
from etl.state.store import Store


@dataclass(frozen=True)
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
        problems: what is wrong with the database itself; empty for a sound one.
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

    def lines(self) -> Iterator[str]:
        """Yield the findings for people."""
        gone = f"; {self.evicted:,} evicted" if self.evicted else ""
        yield f"images    {self.images:,} in the database, {self.missing:,} missing, {self.damaged:,} damaged{gone}"
        if self.requeued:
            yield f"          {self.requeued:,} sources are ready to be fetched again: run `etl fetch`"
        if self.originals:
            yield (
                f"originals {self.originals:,} kept, {self.missing_originals:,} missing, "
                f"{self.damaged_originals:,} damaged"
            )
        yield f"orphans   {self.orphans:,} files" + (" deleted" if self.deleted and self.orphans else "")
        if self.parts:
            yield f"parts     {self.parts:,} unfinished files, which the next `etl fetch` resumes or removes"
        if self.quick:
            yield "contents  not read, sizes alone compared"
        yield from (f"problem   {problem}" for problem in self.problems)
        if not self.problems:
            yield "database  sound"


@dataclass
class _Findings:
    """What was found among the files of one kind."""

    expected: int = 0
    missing: list[Expected] = field(default_factory=list)
    damaged: list[Expected] = field(default_factory=list)
    orphans: list[CachedFile] = field(default_factory=list)

    @property
    def lost(self) -> list[int]:
        """The images whose file is not there, or worth nothing."""
        return [one.image for one in (*self.missing, *self.damaged)]


def verify(store: Store, *, delete_orphans: bool = False, quick: bool = False) -> VerifySummary:
    """Check everything; with ``quick`` compare the sizes of the files without reading them.

    Removes damaged files, which are worth nothing; orphans only when asked.
    """
    cache = ImageCache.of_state(store.directory)
    working, originals = _Findings(), _Findings()
    with Reader(store.directory) as reader:
        wrong = tuple(problems(reader))
        gone = evicted(reader)
        for shard in cache.working_shards():
            _check(working, cache, shard, working_copies_of(reader, shard.name), quick=quick)
        for shard in cache.original_shards():
            _check(originals, cache, shard, originals_of(reader, shard.name), quick=quick)
    requeued = store.requeue_missing_images(working.lost)
    store.images().drop_originals(originals.lost)
    orphans = [*working.orphans, *originals.orphans, *cache.strays()]
    if delete_orphans:
        for orphan in orphans:
            cache.remove(orphan.path)
    return VerifySummary(
        working.expected, len(working.missing), len(working.damaged), gone, requeued, originals.expected,
        len(originals.missing), len(originals.damaged), len(orphans), delete_orphans, len(cache.parts()), quick, wrong,
    )  # fmt: skip


def _check(findings: _Findings, cache: ImageCache, shard: Shard, rows: list[Expected], *, quick: bool) -> None:
    """Compare one shard with what should be in it; remove what is damaged."""
    findings.expected += len(rows)
    findings.orphans += shard.strays
    bad, owned = set[str](), set[str]()
    for row in rows:
        file = shard.files.get(row.sha256)
        if file is None:
            findings.missing.append(row)
            continue
        if row.sha256 not in owned and not (file.size == row.size and (quick or _is_sound(file, row.sha256))):
            bad.add(row.sha256)
            # First, and were it left, the next fetch would take it for the finished file of its name.
            cache.remove(file.path)
        owned.add(row.sha256)
        if row.sha256 in bad:
            findings.damaged.append(row)
    findings.orphans += (file for sha256, file in shard.files.items() if sha256 not in owned)


def _is_sound(file: CachedFile, sha256: str) -> bool:
    try:
        with file.path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == sha256
    except OSError as error:
        if error.errno == errno.EIO:
            # The disk itself cannot give it back: damaged as any other.
            return False
        raise StateError(f"cannot read {file.path}: {error.strerror or error}") from error
