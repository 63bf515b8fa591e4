"""The image cache: files named by the SHA-256 of their content, never half written.

    working/ab/<sha256>.jpg   what the model will see
    original/ab/<sha256>      original bytes, where they are kept
    parts/                    unfinished files; swept at start

The names come from hashes alone: nothing that a manifest or a server says ends up in a path.  The cache may have been
copied here from a stranger: `etl.files` sees to it that nothing in it is followed anywhere.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from etl import files, nameless_files
from etl.errors import EtlError, NotAHashError, StateError
from etl.failpoints import failpoint
from etl.images.cache_walk import SHA256, SHARDS, CachedFile, Shard, below, listed, shards

MAX_WORKING_PIXELS = 16384 * 16384
"""Of a working copy: the longest edge that can be asked for, squared."""

MAX_WORKING_BYTES = 2 * MAX_WORKING_PIXELS


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
                for shard in SHARDS:
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
        (stored,) = self.put_all([data])
        if isinstance(stored, EtlError):
            raise stored
        return stored

    def put_all(self, copies: Sequence[bytes]) -> list[str | EtlError]:
        """Store working copies as `put_working` does, but together, so that they share the waits for the disk.

        Returns the hash of each, or what `put_working` would raise for it.
        """
        hashes = [hashlib.sha256(data).hexdigest() for data in copies]
        targets = [self.working_path(sha256) for sha256 in hashes]
        errors = self._put(list(zip(targets, copies, strict=True)))
        return [error or sha256 for error, sha256 in zip(errors, hashes, strict=True)]

    def keep_original(self, part: Path | bytes, sha256: str) -> Path:
        """Put an original, whose content has this hash, under its name, durably; return that name.

        A finished part is moved.

        Raises `DiskFullError` and `StateError` as `put_working` does; the part is then still there.
        """
        target = self.original_path(sha256)
        if isinstance(part, bytes):
            if (error := self._put([(target, part)])[0]) is not None:
                raise error
            return target
        with disk_errors(target):
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
        return shards(self.root / "working", ".jpg")

    def original_shards(self) -> Iterator[Shard]:
        """Yield all 256 shards of originals, in order; a shard that has no directory is empty."""
        return shards(self.root / "original", "")

    def parts(self) -> list[CachedFile]:
        """Return the unfinished files, and what is noted of them."""
        return [CachedFile.of(entry) for entry in listed(self._parts)]

    def strays(self) -> Iterator[CachedFile]:
        """Yield the files that lie neither in a shard nor among the parts."""
        for entry in listed(self.root):
            if entry.path.name in ("working", "original") and entry.is_directory:
                yield from below(e for e in listed(entry.path) if e.path.name not in SHARDS or not e.is_directory)
            elif entry.path != self._parts:
                yield from below([entry])

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

    def _put(self, wanted: Sequence[tuple[Path, bytes]]) -> list[EtlError | None]:
        """Make files, unless they are there, in the order of `_move`; return what went wrong with each."""
        made = nameless_files.create_durably(wanted) if self.made else [None] * len(wanted)
        errors: list[EtlError | None] = []
        for (target, data), error in zip(wanted, made, strict=True):
            try:
                with disk_errors(target):
                    if not self.made or nameless_files.needs_a_name(error):
                        self._put_named(data, target)
                    elif error is not None:
                        raise error
                errors.append(None)
            except EtlError as what:
                errors.append(what)
        return errors

    def _put_named(self, data: bytes, target: Path) -> None:
        if files.plain_size(target) == len(data):
            # Whoever has put it there may not have come to make its name last.
            files.sync(target.parent)
            return
        # Where something damaged has the name, that is to be there until the whole file is.
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
    if not SHA256.fullmatch(sha256):
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
