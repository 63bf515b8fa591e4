"""Where an export goes: a file that appears whole or not at all, written by one process at a time.

    DIRECTORY/.NAME.0123456789abcdef.part    what is written before it gets its name

Its writer holds a lock of the kernel on it, which ends with the process however that ends: a part without one was left
behind, and the next writer of that name removes it.  While parts are looked at and made the directory itself is locked.
"""

import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from etl import files
from etl.errors import ConfigError, EtlError, TargetLockedError
from etl.failpoints import failpoint
from etl.files import disk_error, sync_chosen

_PART = re.compile(r"\.(.+)\.[0-9a-f]{16}\.part", re.DOTALL)
_LONGEST = 200
"""Bytes of a name that a part's own name still has room for."""

_PATIENCE_S = 1.0
"""Other writers hold the directory for an instant; who holds it longer does so for another reason, as a state's run."""


@contextmanager
def replaced(target: str) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of ``target`` at the end of the block, durably, or not at all.

    A pipe or a device is written itself.  Raises `ConfigError` for a directory, `TargetLockedError` while another
    process writes the same file, `DiskFullError` or `EtlError` when it cannot be written.
    """
    path = checked(target)
    with write_errors(target), _opened(path) as file:
        yield file


def checked(target: str) -> Path:
    """Return the file to write, resolved so that a link stays a link and the file behind it is replaced.

    What this process has open, such as ``/dev/stdout``, stays as it is: it is no name to be replaced.
    """
    path = resolved(target)
    if not target or path.is_dir():
        raise ConfigError(f"{target or 'the empty name'} is a directory, not a file; give the name of the export")
    return Path(target) if _is_open_already(target) else path


def resolved(target: str) -> Path:
    """Return where a name leads.  Raises `ConfigError` for one that can lead nowhere, or cannot be recorded."""
    try:
        target.encode()
        path = Path(target).resolve()
        path.exists()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the name {target!a} is not UTF-8, so it cannot be recorded; choose another one") from error
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or "its links go round in a circle"
        raise ConfigError(f"{target[:200]} cannot be written: {why}; choose another name") from error
    return path


def _is_open_already(target: str) -> bool:
    return os.path.abspath(target).startswith(("/dev/fd/", "/dev/stdout", "/dev/stderr", "/proc/"))  # noqa: PTH100


@contextmanager
def write_errors(target: str, when_full: str = "; the old file, if any, is untouched") -> Iterator[None]:
    """Say of an error of the system where it happened and what to do; of a full disk ``when_full`` says it."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        parent = Path(target).parent
        make = "" if parent.exists() else f"make the directory {parent}, or "
        other = EtlError(f"cannot write {target}: {error.strerror}; {make}choose another place")
        raise disk_error(error, f"no space left while writing {target}{when_full}", other) from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if _is_open_already(str(path)) or (path.exists() and not path.is_file()):
        # Behind what a shell has written there already.
        with path.open("ab" if path.is_file() else "wb") as device:
            yield device
        return
    with claimed(path.parent, path.name, path) as (part, file):
        if path.exists():
            # A file that was private stays so.
            os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
        failpoint("export.begun")
        yield file
        file.flush()
        failpoint("export.before_fsync")
        os.fsync(file.fileno())
        failpoint("export.before_rename")
        part.replace(path)
        failpoint("export.renamed")
        sync_chosen(path.parent)
        failpoint("export.synced")


@contextmanager
def claimed(directory: Path, name: str, what: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield a new file in the directory, and its path, to the only writer of ``name`` there.

    The path is gone at the end of the block, renamed or removed; what dead writers left is removed at its beginning.
    Raises `TargetLockedError`, which speaks of ``what``, while another writer is at work, and `OSError`.
    """
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    path = directory / f".{name}.{secrets.token_hex(8)}.part"
    with _held(directory):
        if not all([_cleared(other) for other in _parts(directory, name)]):
            raise _busy(what)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        file = os.fdopen(descriptor, "wb", 1 << 20)
        with suppress(OSError):
            # Where the file system has no locks, unlike names still keep what writers write apart.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        with file:
            yield path, file
    finally:
        path.unlink(missing_ok=True)


def put(path: Path, content: bytes, name: str, mode: int | None = None) -> None:
    """Give a small file its content, whole or not at all: through no link, and in the place of one under its own name.

    For many of them in one directory: their parts are those of ``name``, of which `claimed` removes dead ones.  The
    directory is still to be synced.  Raises `OSError`, and `NotPlainError` as `etl.files` does.
    """
    part = path.with_name(f".{name}.{secrets.token_hex(8)}.part")
    with open(files.open_plain(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:  # noqa: PTH123
        try:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            files.move(part, path)
        except BaseException:
            files.remove(part)
            raise


def is_part(name: str) -> bool:
    """Return whether a file's name is that of a part."""
    return _PART.fullmatch(name) is not None


def clear(directory: Path) -> None:
    """Remove every part in the directory that a dead writer left, whatever it was to become."""
    for part in _parts(directory):
        _cleared(part)


def _parts(directory: Path, name: str | None = None) -> list[Path]:
    """Return the parts in the directory, of one name or of all."""
    found = [(path, _PART.fullmatch(path.name)) for path in directory.iterdir()]
    return [path for path, matched in found if matched and name in (None, matched[1])]


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Hold the directory during the block, where its file system has such locks and it is no state's own."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
            except OSError:
                # Network file systems lock no directory.
                pass
            break
        yield
    finally:
        os.close(descriptor)


def _cleared(part: Path) -> bool:
    """Remove a part that a dead writer left; return whether no living one holds it."""
    try:
        # Opened for reading: it may have been given the mode of a file that nobody may write.
        descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        # It has its own name by now, or is another user's.
        return True
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    except OSError:
        # Without locks nobody can tell whether its writer lives.
        pass
    finally:
        os.close(descriptor)
    return True


def _busy(what: Path) -> TargetLockedError:
    return TargetLockedError(f"another command is writing {what}; wait for its end, then run this one again")
