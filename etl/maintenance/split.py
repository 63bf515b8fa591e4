"""Split: a state's work dealt out to parts, each a state directory of its own, for machines that share nothing.

    DIRECTORY/part-1 ... DIRECTORY/part-N

A part appears whole or not at all: it is made beside its name, made durable, and renamed.  What goes where is decided
and committed first, so a split that was killed goes on with the same parts.
"""

import dataclasses
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from etl.errors import ConfigError, EtlError, StateSplitError
from etl.files import sync_chosen
from etl.images.cache import ImageCache, disk_errors
from etl.images.transfer import CacheTransfer
from etl.output_file import resolved
from etl.state.database import DATABASE_NAME
from etl.state.lock import LOCK_NAME
from etl.state.log import RunLog
from etl.state.parts.split import Split, is_part, latest_split
from etl.state.presence import require_cache
from etl.state.read.manifests import all_manifests
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.state.store import Store
from etl.units import count

PAGE = 5_000
"""Images whose files are brought at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadePart:
    """One part.

    Attributes:
        path: its state directory.
        sources, records: what it was given; ``records`` is 0 for a part that was there already.
        pending: records that it has to fetch or caption; as ``records``.
        linked, copied: files of pictures that it was given, by how; as ``records``.
        lost: files of pictures that this state itself has lost; `etl verify` puts them back into the queue.
        made: ``False`` for a part that was there already.
    """

    number: int
    path: Path
    sources: int
    records: int = 0
    pending: int = 0
    linked: int = 0
    copied: int = 0
    lost: int = 0
    made: bool = False


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """What one split made."""

    directory: Path
    parts: tuple[MadePart, ...]

    def lines(self) -> Iterator[str]:
        """Yield the parts for people."""
        for part in self.parts:
            head = f"part {part.number:<4} {part.path}: {count(part.sources, 'source')}"
            if not part.made:
                yield f"{head}; made before"
                continue
            files = part.linked + part.copied
            line = f"{head}, {count(part.records, 'record')}, {part.pending:,} of them to do"
            if files:
                line += f"; {count(files, 'file')} of pictures, {part.copied:,} of them copied"
            if part.lost:
                line += f"; {count(part.lost, 'file')} lost: run `etl verify --state {shlex.quote(str(part.path))}`"
            yield line


def split(
    store: Store,
    parts: int,
    directory: Path,
    *,
    force: bool = False,
    on_part: Callable[[MadePart], None] = lambda _: None,
) -> SplitSummary:
    """Split the state into ``parts`` parts below ``directory``, or finish a split that was cut short.

    Raises `StateSplitError` where it was split otherwise and parts have not come back, unless with ``force``;
    `ConfigError` when there is nothing to split, or something else in the place of a part; `CacheMissingError` where
    the pictures to be given are not there.
    """
    directory = resolved(str(directory))
    found = _latest(store)
    if found is not None and found.is_open and (found.directory, found.of) != (str(directory), parts) and not force:
        raise StateSplitError(
            f"this state is already split into {found.of} parts in {found.directory}; bring them back with "
            "`etl merge`, or split it anew with --force: what is not merged yet may then be done twice"
        )
    if found is None or not found.is_open or (found.directory, found.of) != (str(directory), parts):
        _check(store, parts, directory)
        with RunLog(store.directory):
            store.begin_split(parts, directory)
        found = _latest(store)
        assert found is not None
    made = []
    for part in found.parts:
        result = MadePart(number=part.number, path=directory / f"part-{part.number}", sources=part.sources)
        if not part.made:
            result = _make(store, found, result)
            store.note_made(found, part.number)
        made.append(result)
        on_part(result)
    return SplitSummary(directory, tuple(made))


def _latest(store: Store) -> Split | None:
    with Reader(store.directory) as reader:
        return latest_split(reader)


def _check(store: Store, parts: int, directory: Path) -> None:
    """Refuse what cannot be split, before anything is written."""
    with Reader(store.directory) as reader:
        manifests, progress = all_manifests(reader), read_progress(reader)
        require_cache(reader)
    if not any(progress.records.values()):
        raise ConfigError("there are no records to split; run `etl ingest` first")
    for _, path, _, complete in manifests:
        if not complete:
            raise ConfigError(f"{path} was not read to its end; finish `etl ingest` first")
    for number in range(1, parts + 1):
        if os.path.lexists(there := directory / f"part-{number}"):
            raise ConfigError(f"{there} is there already; choose another directory")
    try:
        str(directory).encode()
        directory.mkdir(parents=True, exist_ok=True)
    except UnicodeEncodeError as error:
        raise ConfigError(f"the name {directory} is not UTF-8, so it cannot be recorded; choose another one") from error
    except OSError as error:
        raise EtlError(f"cannot make {directory}: {error.strerror}; choose another place for the parts") from error


def _make(store: Store, found: Split, part: MadePart) -> MadePart:
    """Make one part, unless a split that was killed has done it."""
    if part.path.exists():
        if not is_part(part.path, found, part.number):
            raise ConfigError(f"{part.path} is there already and is not part {part.number} of this split; move it away")
        return part
    new = part.path.with_name(f".{part.path.name}.new")
    with disk_errors(new):
        if new.is_symlink() or (new.exists() and not _is_begun(new)):
            raise ConfigError(f"{new} is in the way and was not made by a split; move it away")
        shutil.rmtree(new, ignore_errors=True)
    settings = dataclasses.replace(store.settings, state=new)
    with Store.open(settings) as made:
        made.fill_part(store.directory, found, part.number)
        transfer, lost = _bring_files(store.directory, made)
        with Reader(new) as reader:
            progress = read_progress(reader)
    with disk_errors(part.path):
        sync_chosen(new)
        new.rename(part.path)
        sync_chosen(part.path.parent)
    return dataclasses.replace(
        part,
        records=sum(progress.records.values()),
        pending=progress.outcomes.get("pending", 0),
        linked=transfer.linked,
        copied=transfer.copied,
        lost=lost,
        made=True,
    )


def _is_begun(new: Path) -> bool:
    """Return whether a directory is what a split that was killed has left."""
    return (new / DATABASE_NAME).exists() or {path.name for path in new.iterdir()} <= {LOCK_NAME}


def _bring_files(whole: Path, part: Store) -> tuple[CacheTransfer, int]:
    """Bring the files of the part's images; return what was brought and how many the state itself has lost."""
    transfer = CacheTransfer(ImageCache.of_state(whole), ImageCache.of_state(part.directory))
    lost, after = 0, 0
    while rows := part.cached_images(after, PAGE):
        if not after:
            transfer.target.prepare()
        for _, sha256, size, kept, working, working_size, present in rows:
            lost += bool(present) and not transfer.working(working, working_size)
            lost += bool(kept) and not transfer.original(sha256, size)
        after = rows[-1][0]
    transfer.sync()
    return transfer, lost
