"""Files of a directory that a stranger may have filled: reached through no link, and plain.

A state directory may have been copied here, and whoever made it can put a link, a FIFO or a device under each of its
names.  So nothing below it is opened by its path.  Every function here walks from directory to directory by descriptor,
none of which may be a link (``O_NOFOLLOW``), and looks at what it has opened, not at what the name meant a moment ago:
whoever swaps a directory for a link in between gains nothing.

Paths must be absolute, with the links that the user chose resolved (`real`): a state directory may lie behind a link,
what is in it may not.  What is neither a plain file nor a directory is a `NotPlainError` that names it; else errors are
the system's own `OSError`.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path

from etl.errors import DiskFullError, EtlError, NotPlainError

_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_PLAIN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""A FIFO that nobody writes to is opened at once, and then refused for what it is."""

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a file",
}

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_disk_full(error: OSError) -> bool:
    """Return whether a write failed because the disk, the user's quota or the largest size of a file is reached."""
    return error.errno in _FULL


def disk_error(error: OSError, full: str, other: EtlError) -> EtlError:
    """Return `DiskFullError` with the message ``full`` where a write failed for want of room, else ``other``."""
    return DiskFullError(full) if is_disk_full(error) else other


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies under one name of a directory.

    Attributes:
        kind: ``stat.S_IFREG``, ``stat.S_IFDIR``, ...; a link is a link, wherever it leads.
        size: bytes.
        written_ns: when it was last written to, Unix nanoseconds.
    """

    path: Path
    kind: int
    size: int
    written_ns: int

    @property
    def is_file(self) -> bool:
        """Whether it is a plain file."""
        return self.kind == stat.S_IFREG

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory itself, and not a link to one."""
        return self.kind == stat.S_IFDIR


def real(path: Path) -> Path:
    """Return the absolute path of something whose directory the user has chosen; its own name is taken as it is."""
    return path.parent.resolve() / path.name


@contextmanager
def directory(path: Path) -> Iterator[int]:
    """Yield a descriptor for ``dir_fd`` of a directory.  Raises `NotPlainError` where a part of the path is a link."""
    descriptor = _opened_at_once(path)
    steps = () if descriptor is not None else path.parts[1:]
    if descriptor is None:
        descriptor = os.open(path.anchor, _STEP)
    try:
        for depth, name in enumerate(steps, start=2):
            try:
                below = os.open(name, _STEP, dir_fd=descriptor)
            except OSError as error:
                here = Path(*path.parts[:depth])
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise _not_plain(here, os.lstat(name, dir_fd=descriptor).st_mode) from error
                raise OSError(error.errno, error.strerror, str(here)) from error
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _opened_at_once(path: Path, flags: int = _STEP) -> int | None:
    """Return a descriptor of a directory if the system says that what it opened has this very path, so without links.

    A tenth of the way step by step, which says what is wrong, or goes where there is no /proc.
    """
    descriptor = None
    try:
        descriptor = os.open(path, flags)
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(path):  # noqa: PTH115 -- no path is wanted
            return descriptor
    except (OSError, ValueError):
        pass
    if descriptor is not None:
        os.close(descriptor)
    return None


def open_directory(path: Path) -> int:
    """Return a descriptor of a directory that can be synced, too; raises as `directory` does."""
    if (descriptor := _opened_at_once(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)) is not None:
        return descriptor
    with directory(path) as there:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=there)


def look_at(path: Path) -> Entry | None:
    """Return what lies under a name, whatever it is; ``None`` for nothing, also where its directory is not there."""
    try:
        with directory(path.parent) as parent:
            return _entry(path, os.lstat(path.name, dir_fd=parent))
    except FileNotFoundError:
        return None


def plain_size(path: Path) -> int | None:
    """Return the bytes of a plain file; ``None`` where there is none.  Raises `NotPlainError` for anything else."""
    entry = look_at(path)
    if entry is None:
        return None
    if not entry.is_file:
        raise _not_plain(path, entry.kind)
    return entry.size


def open_plain(path: Path, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """Return a descriptor of a plain file, opened with ``flags``; with ``O_CREAT`` it is made where there is none.

    Never waits: a FIFO, a device or a socket raises `NotPlainError`, as a link and a directory do.
    """
    with directory(path.parent) as parent:
        try:
            descriptor = os.open(path.name, flags | _PLAIN, mode, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV):
                raise _not_plain(path, os.lstat(path.name, dir_fd=parent).st_mode) from error
            raise OSError(error.errno, error.strerror, str(path)) from error
    found = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(found):
        os.close(descriptor)
        raise _not_plain(path, found)
    return descriptor


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """Yield a plain file, open for reading."""
    with open(open_plain(path), "rb") as file:
        yield file


def read(path: Path) -> bytes:
    """Return the content of a plain file."""
    with reading(path) as file:
        return file.read()


def write(path: Path, data: bytes) -> None:
    """Write a plain file, its owner's alone if it is new."""
    with open(open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        file.write(data)


@contextmanager
def creating(path: Path) -> Iterator[BufferedWriter]:
    """Yield a new plain file, its owner's alone, open for writing; `FileExistsError` where the name is taken."""
    with open(open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        yield file


def entries(path: Path) -> list[Entry]:
    """Return what is in a directory, without ``.`` and ``..``; nothing where there is no directory."""
    try:
        with directory(path) as parent:
            descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return []
    found = []
    try:
        with os.scandir(descriptor) as listed:
            for entry in listed:
                try:
                    found.append(_entry(path / entry.name, entry.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue  # Gone since it was listed.
    finally:
        os.close(descriptor)
    return found


def make_directory(path: Path, mode: int = 0o777) -> bool:
    """Make a directory in one that is there; return whether it was not there before."""
    with directory(path.parent) as parent:
        try:
            os.mkdir(path.name, mode, dir_fd=parent)
            return True
        except FileExistsError:
            pass
    with directory(path):
        return False


def remove(path: Path) -> int | None:
    """Remove a file, or a link as the link that it is; return its bytes, ``None`` for nothing.

    Raises `NotPlainError` for a directory.
    """
    try:
        with directory(path.parent) as parent:
            found = os.lstat(path.name, dir_fd=parent)
            if stat.S_ISDIR(found.st_mode):
                raise _not_plain(path, found.st_mode)
            os.unlink(path.name, dir_fd=parent)
            return found.st_size
    except FileNotFoundError:
        return None


def move(source: Path, target: Path) -> None:
    """Give a file another name, in the place of whatever file or link has it."""
    with directory(source.parent) as old, directory(target.parent) as new:
        os.replace(source.name, target.name, src_dir_fd=old, dst_dir_fd=new)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, which must be free."""
    with directory(source.parent) as old, directory(target.parent) as new:
        os.link(source.name, target.name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)


def sync(path: Path) -> None:
    """Return when a plain file's content, or a directory's names, are on the disk; for what lies in a state."""
    with directory(path.parent) as parent:
        descriptor = os.open(path.name, os.O_RDONLY | _PLAIN, dir_fd=parent)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_chosen(path: Path) -> None:
    """Return when what lies where the user chose, such as an export, is on the disk: as `sync`, but through links."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def kind_of(status: os.stat_result) -> str:
    """Return in words what a name stands for: ``a link``, ``a FIFO``, ``a file``, ..."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "something else")


def _entry(path: Path, status: os.stat_result) -> Entry:
    return Entry(path, stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime_ns)


def _not_plain(path: Path, mode: int) -> NotPlainError:
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    return NotPlainError(
        f"{path} is {kind}, not what the state keeps under that name, so it is not followed or opened; remove it, or "
        "put the real one there"
    )
