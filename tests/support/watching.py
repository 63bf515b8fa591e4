"""Looking at processes through /proc, and waiting for what they do."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path


def children(parent: int) -> set[int]:
    """Return the process ids of the living children of a process."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, ppid = stat.read_text().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and state != "Z":
                found.add(int(stat.parent.name))
    return found


def exists(pid: int) -> bool:
    """Return whether a process lives."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], object], timeout_s: float = 60.0, pause_s: float = 0.01) -> None:
    """Return once the condition holds; fail the test when it does not come to hold in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(pause_s)
