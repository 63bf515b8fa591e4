"""Merge: what the parts of a state have done comes back to it, files first, then rows in one transaction for each part.

So a merge that was killed leaves at most files that no image owns yet; merged again, they are found there.
"""

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from etl.errors import ConfigError, StateError, StateLockedError
from etl.images.cache import ImageCache
from etl.images.transfer import CacheTransfer
from etl.output_file import resolved
from etl.state.checks import problems
from etl.state.database import DATABASE_NAME
from etl.state.log import RunLog, journal
from etl.state.parts.merge import Merge, Merged
from etl.state.presence import require_cache
from etl.state.read.reader import Reader
from etl.state.store import Store
from etl.units import count

PAGE = 5_000
"""Images whose files are brought at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSummary:
    """What merging one part brought.

    Attributes:
        path: the part's state directory.
        rows: what changed in the database.
        linked, copied: files of pictures that came, by how.
        copied_bytes: of the copied ones.
        lost: pictures whose file the part has not, or not whole; they will be fetched again.
        lost_originals: the same of originals that were kept; nothing needs them.
    """

    path: Path
    rows: Merged
    linked: int
    copied: int
    copied_bytes: int
    lost: int
    lost_originals: int

    def lines(self) -> Iterator[str]:
        """Yield what came, for people."""
        rows = self.rows
        name = f"part {rows.number}" if rows.number else "state"
        if not rows.changed and not self.linked + self.copied:
            yield f"{name}  {self.path}: nothing new, {count(rows.pending, 'record')} still to do in it"
        else:
            head = f"{count(rows.records, 'record')}, " if rows.records else ""
            yield (
                f"{name}  {self.path}: {head}{rows.fetched:,} fetched, {rows.captioned:,} captioned, "
                f"{rows.fetch_failed + rows.caption_failed:,} failed; {count(rows.pending, 'record')} still to do in it"
            )
            yield (
                f"          {count(rows.runs, 'run')}, {count(rows.attempts, 'attempt')}, "
                f"{count(self.linked + self.copied, 'file')} of pictures, {self.copied:,} of them copied"
            )
        yield from (f"          {line}" for line in self._warnings())

    def _warnings(self) -> Iterator[str]:
        rows = self.rows
        if rows.different:
            yield (
                f"{count(rows.different, 'caption')} also there with other words: the one made again, else the later "
                "one, counts; the other stays in its part"
            )
        if rows.other_recipe:
            yield f"{count(rows.other_recipe, 'caption')} of another recipe than the current one: `etl export --recipe`"
        if rows.unknown:
            yield f"{count(rows.unknown, 'record')} left out, not in this state"
        if self.lost:
            yield f"{count(self.lost, 'picture')} missing or damaged there: `etl fetch` brings what is needed again"
        if self.lost_originals:
            yield f"{count(self.lost_originals, 'original')} missing or damaged there"


def merge(
    store: Store,
    parts: Sequence[Path],
    *,
    check: bool = False,
    final: bool = False,
    on_part: Callable[[MergeSummary], None] = lambda _: None,
) -> list[MergeSummary]:
    """Merge state directories into this one; again whenever they have done more.

    With ``check`` the content of every picture and the soundness of every part's database are checked first.  With
    ``final`` the parts count as finished, and what they left undone is this state's own again.

    Raises `ConfigError` for a directory that does not belong here, `StateLockedError` for one at which a run is at
    work, `StateError` for a damaged one, `CacheMissingError` where pictures are to be brought and a cache is not there;
    those before it are merged then.
    """
    for part in parts:
        if resolved(str(part)) == store.directory.resolve():
            raise ConfigError(f"{part} is the state itself; name the parts to merge into it")
        if not (part / DATABASE_NAME).exists():
            raise ConfigError(f"there is no state database in {part}; name the directories of the parts")
    summaries = []
    with RunLog(store.directory):
        for part in parts:
            summaries.append(_merge_one(store, part, check=check, final=final))
            journal.info("merged %s: %d rows changed", part, summaries[-1].rows.changed)
            on_part(summaries[-1])
    return summaries


def _merge_one(store: Store, path: Path, *, check: bool, final: bool) -> MergeSummary:
    with _held(store, path):
        if check:
            _check(path)
        with store.attached(path):
            try:
                found = store.merge()
            except ConfigError as error:
                raise ConfigError(f"{path} cannot be merged: {error}") from error
            except StateError as error:
                raise StateError(f"{path} cannot be merged: {error}") from error
            transfer, lost, lost_originals = _bring_files(store.directory, path, found, check=check)
            rows = found.take(final=final)
    return MergeSummary(
        path=path,
        rows=rows,
        linked=transfer.linked,
        copied=transfer.copied,
        copied_bytes=transfer.bytes,
        lost=lost,
        lost_originals=lost_originals,
    )


@contextmanager
def _held(store: Store, path: Path) -> Iterator[None]:
    """Hold a part while it is read: no run is at work on it, and what dead runs held there is settled."""
    try:
        part = Store.open(dataclasses.replace(store.settings, state=path), create=False)
    except StateLockedError as error:
        raise StateLockedError(
            f"a run is at work on {path}; merge it when that has ended, or end it with "
            f"`etl stop --state {shlex.quote(str(path))}`"
        ) from error
    with part:
        yield


def _check(path: Path) -> None:
    with Reader(path) as reader:
        for problem in problems(reader):
            raise StateError(f"{path} is not sound: {problem}; run `etl verify --state {shlex.quote(str(path))}`")


def _bring_files(state: Path, part: Path, found: Merge, *, check: bool) -> tuple[CacheTransfer, int, int]:
    """Bring the files that the state lacks; note and count the working copies and originals that the part lacks."""
    if found.wanted_files(0, 1):
        for directory in (state, part):
            with Reader(directory) as reader:
                require_cache(reader)
    transfer = CacheTransfer(ImageCache.of_state(part), ImageCache.of_state(state), check=check)
    lost, lost_originals, after = 0, 0, 0
    while images := found.wanted_files(after, PAGE):
        if not after:
            transfer.target.prepare()
        working = [i.image for i in images if i.working and not transfer.working(i.working_sha256, i.working_size)]
        originals = [i.image for i in images if i.original and not transfer.original(i.sha256, i.size)]
        found.note_lost(working, originals)
        lost, lost_originals, after = lost + len(working), lost_originals + len(originals), images[-1].image
    transfer.sync()
    return transfer, lost, lost_originals
