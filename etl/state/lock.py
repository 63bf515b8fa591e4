"""One writer for each state directory, held by a kernel lock.

The kernel drops a `flock` when its process ends, however it ends; a pid file would outlive a SIGKILL.
"""

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import IO

from etl.errors import DiskFullError, EtlError, StateError, StateLockedError

LOCK_NAME = "lock"
_PATIENCE_S = 1.0
"""A reader that asks `is_locked` holds the lock for an instant; a writer waits that out."""

NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"})
"""File systems on which SQLite's write-ahead log or `flock` does not work between machines."""


class StateLock:
    """Holds a state directory for writing; use as a context manager."""

    def __init__(self, state: Path) -> None:
        self.path = state / LOCK_NAME
        self._file: IO[str] | None = None

    def __enter__(self) -> "StateLock":
        """Create the directory if needed and take the lock.

        Raises `StateLockedError` when another process holds it, `StateError` when the directory cannot be used,
        `DiskFullError` when there is no room for it.
        """
        state = self.path.parent
        try:
            state.parent.mkdir(parents=True, exist_ok=True)
            # Private, as what is in it; one that is there already is its owner's choice.
            state.mkdir(mode=0o700, exist_ok=True)
            _check_owner(state)
            file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+")
        except OSError as error:
            raise _unusable(state, error) from error
        try:
            if (kind := file_system_of(state)) in NETWORK_FILE_SYSTEMS:
                raise StateError(f"{state} is on a network file system ({kind}); use a local disk for --state")
            self._take(file)
            _sign(file)
        except OSError as error:
            file.close()
            raise _unusable(state, error) from error
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @staticmethod
    def _take(file: IO[str]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StateLockedError(_who(file)) from None
                time.sleep(0.05)


def _check_owner(state: Path) -> None:
    """Raise `StateError` for a directory in which another user of the machine could put links for us to follow.

    Root may use a directory of another user, as in a container with a mounted volume.
    """
    status = state.stat()
    if status.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        raise StateError(f"the state directory {state} belongs to another user; give one of your own with --state")


def is_locked(state: Path) -> bool:
    """Tell whether a live process holds the state directory for writing."""
    try:
        with (state / LOCK_NAME).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def file_system_of(path: Path) -> str:
    """Return the type of the file system that holds ``path``; empty where the system does not tell."""
    best, kind = "", ""
    resolved = str(path.resolve())
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        _, mount, name, *_ = line.split(" ")
        inside = resolved == mount or resolved.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, name
    return kind


def _sign(file: IO[str]) -> None:
    """Write who holds the lock, unbuffered: what does not fit on a full disk must not be tried again at close."""
    holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
    os.ftruncate(file.fileno(), 0)
    os.pwrite(file.fileno(), holder, 0)


def _unusable(state: Path, error: OSError) -> EtlError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"the disk with {state} is full: free some space and run again")
    if error.errno == errno.ELOOP:
        return StateError(f"{state / LOCK_NAME} is a link, which is never followed; remove it")
    return StateError(f"the state directory {state} is not writable: {error.strerror}; give another one with --state")


def _who(file: IO[str]) -> str:
    try:
        file.seek(0)
        holder = json.load(file)
        return (
            f"another run holds this state directory (pid {holder['pid']} on {holder['host']}); "
            "wait for it, or end it with `etl stop`"
        )
    except (OSError, ValueError, KeyError):
        return "another run holds this state directory; wait for it, or end it with `etl stop`"
