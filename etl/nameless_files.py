"""Files that have their content, and that on the disk, before they have a name (``O_TMPFILE``)."""

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from etl import files
from etl.errors import NotPlainError
from etl.failpoints import failpoint

_NEEDS_A_NAME = frozenset({errno.EEXIST, errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT})
"""The name is taken; the file system, the kernel or a missing /proc do not let a file be named later."""


def create_durably(wanted: Sequence[tuple[Path, bytes]]) -> list[OSError | NotPlainError | None]:
    """Make new files, their owner's alone, that are on the disk before they have their names, and with them on return.

    Returns what went wrong with each; `needs_a_name` tells whether it is to be made under a name instead.
    Making, changing and removing the name of a part is most of what a small file costs otherwise, and the waits for the
    disk are shared by all: a journal writes them out together.
    """
    nameless = [_Nameless(path, data) for path, data in wanted]
    try:
        for step in (_Nameless.write, _Nameless.sync, _Nameless.link, _Nameless.sync_name):
            for file in nameless:
                file.take(step)
    finally:
        for file in nameless:
            file.close()
    return [file.error for file in nameless]


def needs_a_name(error: Exception | None) -> bool:
    """Return whether `create_durably` failed because the name is taken, or files are not to be had without one here."""
    return isinstance(error, OSError) and error.errno in _NEEDS_A_NAME


class _Nameless:
    """A file that is made before it has a name (``O_TMPFILE``).

    Attributes:
        error: what went wrong so far.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        self._path = path
        self._data = data
        self._open: list[int] = []
        self.error: OSError | NotPlainError | None = None

    def take(self, step: "Callable[[_Nameless], None]") -> None:
        """Take one more step, unless one went wrong."""
        if self.error is None:
            try:
                step(self)
            except (OSError, NotPlainError) as error:
                self.error = error

    def write(self) -> None:
        self._open.append(directory_of := files.open_directory(self._path.parent))
        self._open.append(new := os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory_of))
        rest = memoryview(self._data)
        while rest:
            rest = rest[os.write(new, rest) :]
        # Lets the disk begin, so that files which are waited for one after the other are written side by side.
        with suppress(OSError):
            os.posix_fadvise(new, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        failpoint("cache.before_fsync")
        os.fsync(self._open[1])

    def link(self) -> None:
        failpoint("cache.before_rename")
        directory_of, new = self._open
        os.link(f"/proc/self/fd/{new}", self._path.name, dst_dir_fd=directory_of, follow_symlinks=True)
        failpoint("cache.renamed")

    def sync_name(self) -> None:
        os.fsync(self._open[0])
        failpoint("cache.synced")

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop())
