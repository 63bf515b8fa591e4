"""One writer for each state directory, held by a kernel lock.

The kernel drops a `flock` when its process ends, however it ends; a pid file would outlive a SIGKILL.  It is taken on
the directory itself, which nobody can remove beside a run as a file in it; the file ``lock`` says who has it.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from etl import files
from etl.errors import EtlError, NotPlainError, StateError, StateLockedError
from etl.state.file_systems import file_system_of, is_shared
from etl.text import clean

LOCK_NAME = "lock"
_PATIENCE_S = 1.0
"""A reader that asks `is_locked` holds the lock for an instant; a writer waits that out."""

_NOTE_BYTES = 4096
"""As much is read of what says who holds the lock."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class StateLock:
    """Holds a state directory for writing; use as a context manager."""

    def __init__(self, state: Path) -> None:
        self.path = state / LOCK_NAME
        self._directory: int | None = None

    def __enter__(self) -> "StateLock":
        """Create the directory if needed and take the lock.

        Raises `StateLockedError` when another process holds it, `StateError` when the directory cannot be used,
        `DiskFullError` when there is no room for it.
        """
        state = self.path.parent
        with contextlib.ExitStack() as undo, _explained(state):
            state.parent.mkdir(parents=True, exist_ok=True)
            # Private, as what is in it; one that is there already is its owner's choice.
            state.mkdir(mode=0o700, exist_ok=True)
            _check_owner(state)
            if is_shared(kind := file_system_of(state)):
                raise StateError(
                    f"{state} is on a network file system, or another that is shared ({kind}); "
                    "use a local disk for --state"
                )
            directory = os.open(state, _DIRECTORY)
            undo.callback(os.close, directory)
            self._take(directory)
            _sign(self.path)
            self._directory = directory
            self.check()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the lock."""
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None

    def check(self) -> None:
        """Raise `StateError` when the directory that is held lies no longer where it did: another may be there."""
        state = self.path.parent
        with contextlib.suppress(OSError):
            if self._directory is not None and os.path.samestat(os.fstat(self._directory), state.stat()):
                return
        raise StateError(f"the state directory {state} was moved, removed or replaced; put it back and run again")

    def _take(self, directory: int) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StateLockedError(_who(self.path)) from None
                time.sleep(0.05)


def _check_owner(state: Path) -> None:
    """Raise `StateError` for a directory in which another user of the machine could put links for us to follow.

    Root may use a directory of another user, as in a container with a mounted volume.
    """
    status = state.stat()
    if status.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        raise StateError(f"the state directory {state} belongs to another user; give one of your own with --state")


def is_locked(state: Path) -> bool:
    """Return whether a live process holds the state directory for writing."""
    try:
        directory = os.open(state, _DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(directory)
    return False


def _sign(path: Path) -> None:
    """Write who holds the lock, unbuffered: what does not fit on a full disk must not be tried again at close."""
    holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
    descriptor = files.open_plain(files.real(path), os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder, 0)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(state: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unusable(state, error) from error


def _unusable(state: Path, error: OSError) -> EtlError:
    other = StateError(f"the state directory {state} is not writable: {error.strerror}; give another one with --state")
    return files.disk_error(error, f"the disk with {state} is full: free some space and run again", other)


def _who(path: Path) -> str:
    """Return who holds the lock, by what stands in its file, which may be gone or anybody's."""
    try:
        with files.reading(files.real(path)) as file:
            holder = json.loads(file.read(_NOTE_BYTES))
        who = f" (pid {holder['pid']} on {holder['host']})"
    except (NotPlainError, OSError, ValueError, KeyError, TypeError, RecursionError):
        who = ""
    return f"another run holds this state directory{clean(who, 100)}; wait for it, or end it with `etl stop`"
