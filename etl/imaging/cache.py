"""The image cache: files named by the SHA-256 of their content, never half written.

    working/ab/<sha256>.jpg   what the model will see
    original/ab/<sha256>      original bytes, where they are kept
    parts/                    unfinished files; swept at start

The names come from hashes alone: nothing that a manifest or a server says ends up in a path.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from etl.errors import DiskFullError, StateError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise an `OSError` of the block as `DiskFullError` (no space, quota, file size) or else `StateError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"no room to write {path} ({error.strerror}): free some space, or move the state directory to a "
                "larger disk, and run the same command again; what was done so far is kept"
            ) from error
        raise StateError(f"cannot write {path}: {error.strerror or error}") from error


class ImageCache:
    """The files below ``root``; directories appear as they are needed.

    Any number of processes may put the same or different files at once.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._parts = root / "parts"

    @classmethod
    def of_state(cls, state: Path) -> "ImageCache":
        """Return the cache of a state directory."""
        return cls(state / "images")

    def working_path(self, sha256: str) -> Path:
        """Return where the working copy with this hash lies, or would lie; ValueError for anything but a hash."""
        return self.root / "working" / _checked(sha256)[:2] / f"{sha256}.jpg"

    def original_path(self, sha256: str) -> Path:
        """Return where the original with this hash lies, or would lie; ValueError for anything but a hash."""
        return self.root / "original" / _checked(sha256)[:2] / sha256

    def new_part(self) -> Path:
        """Return a path for a new unfinished file; it is not created, and nobody else is given it."""
        with disk_errors(self._parts):
            self._parts.mkdir(parents=True, exist_ok=True)
        return self._parts / f"{uuid.uuid4().hex}.part"

    def put_working(self, data: bytes) -> str:
        """Store a working copy durably and return its hash; nothing is written when it is already there.

        Raises `DiskFullError` when there is no room and `StateError` when the cache cannot be written.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        target = self.working_path(sha256)
        with disk_errors(target):
            if _has_size(target, len(data)):
                return sha256
            part = self.new_part()
            try:
                part.write_bytes(data)
                self._move(part, target)
            finally:
                part.unlink(missing_ok=True)
        return sha256

    def keep_original(self, part: Path, sha256: str) -> Path:
        """Move a finished part, whose content has this hash, to its name, durably; return that name.

        Raises `DiskFullError` and `StateError` as `put_working` does; the part is then still there.
        """
        target = self.original_path(sha256)
        with disk_errors(target):
            if _has_size(target, part.stat().st_size):
                part.unlink()
            else:
                self._move(part, target)
        return target

    def part_of(self, url: str) -> Path:
        """Return the path of the unfinished file of one source: always the same, so that it can be resumed."""
        with disk_errors(self._parts):
            self._parts.mkdir(parents=True, exist_ok=True)
        return self._parts / f"{hashlib.sha256(url.encode()).hexdigest()}.part"

    def is_part(self, path: Path) -> bool:
        """Tell whether a file is an unfinished one."""
        return path.parent == self._parts

    def sweep_parts(self, keep: Callable[[Path], bool] = lambda _: False) -> int:
        """Remove what earlier processes left unfinished, but for what to ``keep``; return how many files that were.

        Only for the holder of the state lock, before it starts decoders or downloads.
        """
        if not self._parts.is_dir():
            return 0
        leftovers = [path for path in self._parts.iterdir() if not keep(path)]
        with disk_errors(self._parts):
            for leftover in leftovers:
                leftover.unlink(missing_ok=True)
        return len(leftovers)

    def free_bytes(self) -> int:
        """Return the bytes that can still be written on the cache's disk."""
        existing = self.root.absolute()
        while not existing.exists():
            existing = existing.parent
        return shutil.disk_usage(existing).free

    def _move(self, part: Path, target: Path) -> None:
        """Make the content durable before the name, and the name before anybody relies on it."""
        _fsync(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        for directory in (target.parent, target.parent.parent, self.root):
            _fsync(directory)


def _checked(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"not a SHA-256 in hex: {sha256!r}")
    return sha256


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
