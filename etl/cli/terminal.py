"""Words to a terminal that may go away: an SSH session that breaks must not end the run that it showed."""

import io
import os
import sys


class _Lasting(io.FileIO):
    """A descriptor that, once nobody can be written to any more, takes everything and keeps nothing."""

    def write(self, data: "io.ReadableBuffer") -> int:  # type: ignore[name-defined]
        try:
            return super().write(data)
        except OSError:
            # EPIPE or EIO, for good; a full disk under a redirected log loses lines, which ends no run either.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


def outlive_the_terminal() -> None:
    """Let what is said on stderr be lost, instead of ending the program, when nobody is there any more.

    Where stdout or stderr were closed from the beginning, their descriptors are taken, so that no other file gets them.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8"))
    # Where somebody has put something else in its place, they look after it.
    own = sys.__stderr__
    if own is not None and sys.stderr is own:
        stream = io.BufferedWriter(_Lasting(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(stream, own.encoding, "backslashreplace", line_buffering=True)
