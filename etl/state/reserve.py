"""Room that a state keeps for itself: to free a full disk takes some, for SQLite's log and its index and the lock."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from etl.state.database import DATABASE_NAME

RESERVE_NAME = "reserve"
RESERVE_BYTES = 512 * 1024
"""The index of SQLite's log takes 32 KiB, the lock a block, and evicting 256 images, which frees as many files, about
ten pages of the log, of 16 KiB each."""


def keep(state: Path) -> None:
    """Make the reserve of a state where it is not there; where there is no room for it either, there is none."""
    path = state / RESERVE_NAME
    if _is_whole(path):
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        except OSError:
            # What could be had of it is better left to others.
            path.unlink()
        finally:
            os.close(descriptor)


@contextmanager
def lent(state: Path) -> Iterator[None]:
    """Give the room of the reserve to the block, and take it back at the end."""
    found = (state / DATABASE_NAME).exists() and _is_whole(state / RESERVE_NAME)
    if found:
        (state / RESERVE_NAME).unlink(missing_ok=True)
    try:
        yield
    finally:
        if found:
            keep(state)


def _is_whole(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == RESERVE_BYTES
