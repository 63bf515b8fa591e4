"""When the system opens no more files: what looks like a lack of rights, a dead host or a lost name then is none."""

import contextlib
import errno
import os
import resource

from etl.errors import OpenFilesError

_WANTED = 65_536

LEAST = 64
"""Below this nothing begins: the program would only fail in the middle."""

_NO_MORE = (errno.EMFILE, errno.ENFILE)


def raise_limit() -> None:
    """Let this process open as many files as it may: the usual limit is a default of the shell, not anybody's wish.

    Raises `OpenFilesError` where that is too few to begin with.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(soft, _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < LEAST:
        raise OpenFilesError(f"no more than {limit} files may be open: raise `ulimit -n` to {LEAST} or more")


def out_of_files(error: BaseException) -> OpenFilesError | None:
    """Return what an error means if the system opened no more files, itself or one that led to it; else ``None``.

    To be asked while that lasts: the resolver and SQLite do not say why they could not open something.
    """
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        # The resolver's own numbers are negative.
        unclear = (number is not None and number < 0) or hasattr(cause, "sqlite_errorcode")
        if number in _NO_MORE or (unclear and _none_left()):
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return OpenFilesError(f"too many open files: raise `ulimit -n`, which is {limit} here, and run again")
        cause = cause.__cause__ or cause.__context__
    return None


def _none_left() -> bool:
    with contextlib.ExitStack() as opened:
        try:
            # SQLite wants so many at once, and has given them back by now.
            for _ in range(4):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            return error.errno in _NO_MORE
    return False
