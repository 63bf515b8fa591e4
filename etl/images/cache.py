"""The image cache: files named by the SHA-256 of their content, never half written.

    working/ab/<sha256>.jpg   what the model will see
    original/ab/<sha256>      original bytes, where they are kept
    parts/                    unfinished files; swept at start

The names come from hashes alone: nothing that a manifest or a server says ends up in a path.  The cache may have been
copied here from a stranger: `etl.files` sees to it that nothing in it is followed anywhere.
A walk over the cache goes from shard to shard, the two digits that hashes begin with, and holds one in memory.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from etl import files
from etl.errors import NotAHashError, StateError
from etl.failpoints import failpoint

_SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_WORKING_PIXELS = 16384 * 16384
"""Of a working copy: the longest edge that can be asked for, squared."""

MAX_WORKING_BYTES = 2 * MAX_WORKING_PIXELS

_SHARDS = tuple(f"{number:02x}" for number in range(256))


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file below the cache's root.

    Attributes:
        size: bytes.
        written_ns: when it was last written to, Unix nanoseconds.
    """

    path: Path
    size: int
    written_ns: int


@dataclass(frozen=True, slots=True)
class Shard:
    """The finished files of one kind whose hashes begin with the same two digits.

    Attributes:
        name: the two digits.
        files: by hash, the files that are where they ought to be.
        strays: whatever else lies in the directory.
    """

    name: str
    files: dict[str, CachedFile] = field(default_factory=dict)
    strays: list[CachedFile] = field(default_factory=list)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise an `OSError` of the block as `DiskFullError` (no space, quota, file size) or else `StateError`."""
    try:
        yield
    except OSError as error:
        full = (
            f"no room to write {path} ({error.strerror}): free some space, or move the state directory to a "
            "larger disk, and run the same command again; what was done so far is kept"
        )
        why = error.strerror or str(error)
        if error.errno == errno.EXDEV:
            why = "something is mounted inside the image cache, whose files must lie on one file system: mount that at "
            why += "the directory images/ of the state instead, with its files, and run the same command again"
        raise files.disk_error(error, full, StateError(f"cannot write {path}: {why}")) from error


class ImageCache:
    """The files below ``root``; directories appear as they are needed, unless they are ``made``.

    Any number of processes may put the same or different files at once.  What is no plain file or directory where one
    belongs raises `NotPlainError` in every method; the directory that holds ``root`` is the user's choice, link or not.

    Attributes:
        made: the directories are there; one that has gone since was taken away with all that is in it, and none is
            made in its place.
    """

    def __init__(self, root: Path, *, made: bool = False) -> None:
        self.root = files.real(root)
        self.made = made
        self._parts = self.root / "parts"

    @classmethod
    def of_state(cls, state: Path) -> "ImageCache":
        """Return the cache of a state directory."""
        return cls(state / "images")

    def prepare(self, *, originals: bool = True) -> None:
        """Make the directories of working copies and ``originals``, durably, so that no file need wait for its own.

        Raises `DiskFullError` and `StateError` as `put_working` does.
        """
        self._make_parts()
        with disk_errors(self.root):
            for kind in ("working", "original") if originals else ("working",):
                files.make_directory(self.root / kind)
                there = {entry.path.name for entry in files.entries(self.root / kind) if entry.is_directory}
                for shard in _SHARDS:
                    if shard not in there:
                        files.make_directory(self.root / kind / shard)
                files.sync(self.root / kind)
            files.sync(self.root)
            files.sync(self.root.parent)
            self.made = True
            failpoint("cache.prepared")

    def working_path(self, sha256: str) -> Path:
        """Return where the working copy with this hash lies, or would lie; `NotAHashError` for anything but a hash."""
        return self.root / "working" / _checked(sha256)[:2] / f"{sha256}.jpg"

    def original_path(self, sha256: str) -> Path:
        """Return where the original with this hash lies, or would lie; `NotAHashError` for anything but a hash."""
        return self.root / "original" / _checked(sha256)[:2] / sha256

    def has_working(self, sha256: str) -> bool:
        """Return whether there is a file for the working copy with this hash."""
        return files.plain_size(self.working_path(sha256)) is not None

    def has_original(self, sha256: str) -> bool:
        """Return whether there is a file for the original with this hash."""
        return files.plain_size(self.original_path(sha256)) is not None

    def _make_parts(self) -> None:
        """Make the directory of unfinished files; the root is its owner's alone, for pictures may be private."""
        if self.made:
            return
        with disk_errors(self._parts):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            files.make_directory(self.root, 0o700)
            files.make_directory(self._parts)

    def new_part(self) -> Path:
        """Return a path for a new unfinished file; it is not created, and nobody else is given it."""
        self._make_parts()
        return self._parts / f"{uuid.uuid4().hex}.part"

    def put_working(self, data: bytes) -> str:
        """Store a working copy durably and return its hash; nothing is written when it is already there.

        Raises `DiskFullError` when there is no room and `StateError` when the cache cannot be written.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        target = self.working_path(sha256)
        with disk_errors(target):
            self._put(data, target)
        return sha256

    def keep_original(self, part: Path | bytes, sha256: str) -> Path:
        """Put an original, whose content has this hash, under its name, durably; return that name.

        A finished part is moved.

        Raises `DiskFullError` and `StateError` as `put_working` does; the part is then still there.
        """
        target = self.original_path(sha256)
        with disk_errors(target):
            if isinstance(part, bytes):
                self._put(part, target)
                return target
            size = files.plain_size(part)
            if size is not None and files.plain_size(target) == size:
                files.sync(target.parent)
                files.remove(part)
            else:
                self._move(part, target)
        return target

    def part_of(self, url: str) -> Path:
        """Return the path of the unfinished file of one source: always the same, so that it can be resumed."""
        self._make_parts()
        return self._parts / f"{hashlib.sha256(url.encode()).hexdigest()}.part"

    def is_part(self, path: Path) -> bool:
        """Return whether a file is an unfinished one."""
        return path.parent == self._parts

    def sweep_parts(self, keep: Callable[[Path], bool] = lambda _: False) -> int:
        """Remove what earlier processes left unfinished, but for what to ``keep``; return how many files that were.

        Only for the holder of the state lock, before it starts decoders or downloads.
        """
        with disk_errors(self._parts):
            leftovers = [entry.path for entry in files.entries(self._parts) if not keep(entry.path)]
            for leftover in leftovers:
                files.remove(leftover)
        return len(leftovers)

    def working_shards(self) -> Iterator[Shard]:
        """Yield all 256 shards of working copies, in order; a shard that has no directory is empty."""
        return _shards(self.root / "working", ".jpg")

    def original_shards(self) -> Iterator[Shard]:
        """Yield all 256 shards of originals, in order; a shard that has no directory is empty."""
        return _shards(self.root / "original", "")

    def parts(self) -> list[CachedFile]:
        """Return the unfinished files, and what is noted of them."""
        return [_file(entry) for entry in _entries(self._parts)]

    def strays(self) -> Iterator[CachedFile]:
        """Yield the files that lie neither in a shard nor among the parts."""
        for entry in _entries(self.root):
            if entry.path.name in ("working", "original") and entry.is_directory:
                yield from _below(e for e in _entries(entry.path) if e.path.name not in _SHARDS or not e.is_directory)
            elif entry.path != self._parts:
                yield from _below([entry])

    def remove(self, path: Path) -> int | None:
        """Remove a file; return the bytes that it took, or ``None`` where there was none.

        Raises `StateError` when it cannot be removed.
        """
        with disk_errors(path):
            failpoint("cache.before_remove")
            return files.remove(path)

    def free_bytes(self) -> int:
        """Return the bytes that can still be written on the cache's disk."""
        existing = self.root.absolute()
        while not existing.exists():
            existing = existing.parent
        return shutil.disk_usage(existing).free

    def _put(self, data: bytes, target: Path) -> None:
        """Make a file, unless it is there, in the order of `_move`."""
        # Asked of the system first: to look without following links costs a tenth of all that is done for a file.
        if os.path.lexists(target) and files.plain_size(target) == len(data):
            # Whoever has put it there may not have come to make its name last.
            files.sync(target.parent)
        # Where something damaged has the name, that is to be there until the whole file is.
        elif not (self.made and files.create_durably(target, data)):
            part = self.new_part()
            try:
                files.write(part, data)
                self._move(part, target)
            finally:
                files.remove(part)

    def _move(self, part: Path, target: Path) -> None:
        """Make the content durable before the name, and the name before anybody relies on it."""
        failpoint("cache.before_fsync")
        files.sync(part)
        directories = () if self.made else (target.parent.parent, target.parent)
        made = [path for path in directories if files.make_directory(path)]
        failpoint("cache.before_rename")
        files.move(part, target)
        failpoint("cache.renamed")
        # Directories that were there were made by `prepare`, which has seen to it that they last.
        for directory in (target.parent, *((target.parent.parent, self.root) if made else ())):
            files.sync(directory)
        failpoint("cache.synced")


def _checked(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise NotAHashError(f"not a SHA-256 in hex: {sha256[:80]!r}; is the database damaged?")
    return sha256


def read_working(path: Path, sha256: str = "") -> bytes:
    """Return a working copy whose content is what its name says, or an original with this hash.

    Raises `ValueError` for another content, `NotPlainError` for what is no file, and `OSError` where it is not there or
    cannot be read.
    """
    with files.reading(path) as file:
        # A stranger's file may have terabytes.
        data = file.read() if os.fstat(file.fileno()).st_size <= MAX_WORKING_BYTES else b""
    if hashlib.sha256(data).hexdigest() != (sha256 or path.stem):
        raise ValueError("its content is not what its name says")
    return data


def _shards(directory: Path, suffix: str) -> Iterator[Shard]:
    for name in _SHARDS:
        shard = Shard(name)
        for entry in _entries(directory / name):
            sha256 = entry.path.name.removesuffix(suffix)
            rightly = entry.path.name == sha256 + suffix and sha256.startswith(name) and _SHA256.fullmatch(sha256)
            if rightly and entry.is_file:
                shard.files[sha256] = _file(entry)
            else:
                shard.strays.extend(_below([entry]))
        yield shard


def _below(entries: Iterable[files.Entry]) -> Iterator[CachedFile]:
    """Yield the files among the entries and below them; a link is a file, wherever it leads."""
    for entry in entries:
        if entry.is_directory:
            yield from _below(_entries(entry.path))
        else:
            yield _file(entry)


def _entries(directory: Path) -> list[files.Entry]:
    """Return what is in a directory; nothing where there is none."""
    try:
        return files.entries(directory)
    except OSError as error:
        raise StateError(f"cannot read {directory}: {error.strerror or error}") from error


def _file(entry: files.Entry) -> CachedFile:
    return CachedFile(entry.path, entry.size, entry.written_ns)
