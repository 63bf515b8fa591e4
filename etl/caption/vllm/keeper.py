"""Runs a command in a process group of its own, and leaves nothing of it behind.

A program of its own, which imports nothing of ours: ``python -I keeper.py SECONDS DIRECTORY COMMAND...``.  It holds
its standard input, whose other end whoever started it has: once that is closed, and be it by kill -9, the group is
told to end (SIGTERM) and after so many seconds killed, and the directory, which was the command's, is removed.  When
the command ends by itself, what it left of its group is killed, as an engine without its server would keep the GPU.
Ends with the command's exit code, 128 and the signal for one that was killed.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

_SET_PDEATHSIG = 1


def _die_with_keeper() -> None:
    # Only Linux knows it.  For a keeper that is itself killed; the server then ends its engines.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _end_with_parent(group: int, seconds: float, gone: threading.Event) -> None:
    # Not through a buffer, whose lock would hold up the end of this process.
    while os.read(0, 4096):
        pass
    gone.set()
    _signal(group, signal.SIGTERM)
    time.sleep(seconds)
    _signal(group, signal.SIGKILL)


def main(seconds: float, spare: str, command: list[str]) -> int:
    """Run the command to its end; return its exit code as a shell does."""
    gone = threading.Event()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_die_with_keeper)
    threading.Thread(target=_end_with_parent, args=(child.pid, seconds, gone), daemon=True).start()
    # Not yet reaped, its number cannot have become another group's.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    _signal(child.pid, signal.SIGKILL)
    code = child.wait()
    if gone.is_set():
        shutil.rmtree(spare, ignore_errors=True)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2], sys.argv[3:]))
