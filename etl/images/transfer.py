"""Bringing files of one image cache into another: linked where both are on one file system, else copied.

A file of the cache is never written to again, so two names for it are as good as two files.
"""

import errno
import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from etl import files
from etl.images.cache import ImageCache, disk_errors

_NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS})


@dataclass
class CacheTransfer:
    """Takes files out of ``origin`` into ``target``; nothing in ``origin`` is changed.

    Attributes:
        check: compare the content of every file with its name, not only its size with the one on record.
        linked, copied: files brought, by how.
        bytes: of these, copied ones alone.
    """

    origin: ImageCache
    target: ImageCache
    check: bool = False
    linked: int = 0
    copied: int = 0
    bytes: int = 0
    _directories: set[Path] = field(default_factory=set)

    def working(self, sha256: str, size: int) -> bool:
        """Bring a working copy; return whether a file of this size, or with ``check`` this hash, is there now."""
        return self._bring(self.origin.working_path(sha256), self.target.working_path(sha256), sha256, size)

    def original(self, sha256: str, size: int) -> bool:
        """Bring an original, as `working` does."""
        return self._bring(self.origin.original_path(sha256), self.target.original_path(sha256), sha256, size)

    def sync(self) -> None:
        """Make the names of all that was brought durable; only then may a row promise them."""
        for directory in sorted(self._directories):
            with disk_errors(directory):
                files.sync(directory)
        self._directories.clear()

    def _bring(self, origin: Path, target: Path, sha256: str, size: int) -> bool:
        if self._is_sound(target, sha256, size):
            # Left by a merge that was killed before its commit, perhaps before the name was durable.
            self._directories.add(target.parent)
            return True
        if not self._is_sound(origin, sha256, size):
            return False
        with disk_errors(target):
            for directory in (target.parent.parent, target.parent):
                files.make_directory(directory)
            # Only what is damaged or cut short can be in the way.
            files.remove(target)
            try:
                files.link(origin, target)
                self.linked += 1
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._copy(origin, target)
                self.copied, self.bytes = self.copied + 1, self.bytes + size
        self._directories.add(target.parent)
        return True

    def _copy(self, origin: Path, target: Path) -> None:
        part = self.target.new_part()
        try:
            with files.reading(origin) as source, files.creating(part) as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
            files.sync(part)
            files.move(part, target)
        finally:
            files.remove(part)

    def _is_sound(self, path: Path, sha256: str, size: int) -> bool:
        try:
            if files.plain_size(path) != size:
                return False
            if not self.check:
                return True
            with files.reading(path) as content:
                return hashlib.file_digest(content, "sha256").hexdigest() == sha256
        except OSError:
            # Not there, or the disk cannot give it back.
            return False
