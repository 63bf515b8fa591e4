"""Opening files that somebody else may have put there: plain ones alone, and never waiting for what is none."""

import errno
import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a plain file, private where ``flags`` make it; a link is not followed.

    Raises `OSError`, for anything but a plain file with words for people: "a FIFO, not a plain file".
    """
    # A device is not even opened, which may do something; a FIFO that takes the file's place meanwhile does not wait.
    try:
        check_plain(path.lstat())
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        check_plain(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_plain(status: os.stat_result) -> None:
    """Raise `OSError`, as `open_plain` does, for what is no plain file."""
    if not stat.S_ISREG(status.st_mode):
        kind = next((words for is_it, words in _KINDS if is_it(status.st_mode)), "something else")
        raise OSError(errno.EINVAL, f"{kind}, not a plain file")
