"""Reading the state in a thread, and sending commands from one."""

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from textual.message import Message

from etl.domain.views import FailureFilter
from etl.errors import EtlError
from etl.state import commands as control
from etl.state.read.reader import Reader
from tui.messages import CommandAnswered, ReadingBroke, SnapshotTaken
from tui.snapshot import Snapshot
from tui.snapshot_reader import SnapshotReader

Post = Callable[[Message], object]


class Poller:
    """Takes a snapshot each time it is woken and posts it when it differs from the one before.

    The database is opened anew each time: so a missing, replaced or locked one is found again by itself, and
    no read is ever open for long.
    """

    def __init__(self, state: Path, post: Post, *, price: float = 0.0) -> None:
        self._state = state
        self._post = post
        self._wake = threading.Event()
        self._stopped = False
        self._busy_since: float | None = None
        self._last: Snapshot | None = None
        self._snapshots = SnapshotReader(price)
        # A daemon: SQLite may wait ten seconds for a locked database, and quitting must not.
        self._thread = threading.Thread(target=self._work, name="poller", daemon=True)

    def start(self) -> None:
        """Begin with a first snapshot at once."""
        self.wake()
        self._thread.start()

    def wake(self) -> None:
        """Ask for a snapshot; while one is being taken, one more follows, however often this is called."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread; waits a moment for a read in progress, but not for a locked database."""
        self._stopped = True
        self._wake.set()
        self._thread.join(timeout=0.5)

    def blocked_s(self) -> float:
        """Return for how many seconds the present read has lasted; 0 between reads."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopped:
                return
            self._busy_since = time.monotonic()
            try:
                message = self._news()
            except Exception as error:
                message = ReadingBroke(error)
            self._busy_since = None
            if message is not None and not self._stopped:
                self._post(message)

    def _news(self) -> Message | None:
        snapshot = self.take()
        if snapshot == self._last:
            return None
        self._last = snapshot
        return SnapshotTaken(snapshot)

    def take(self) -> Snapshot:
        """Read the state once; a state that cannot be read becomes a snapshot that says why."""
        try:
            with Reader(self._state) as reader:
                return self._snapshots.read(reader)
        except (EtlError, sqlite3.Error, OSError) as error:
            return Snapshot(problem=in_words(error))


def in_words(error: Exception) -> str:
    """Return why a state cannot be read, for people."""
    if "locked" in str(error):
        return "The database is locked by another process; it will be shown as soon as it is free."
    words = str(error) or type(error).__name__
    return words[0].upper() + words[1:]


def send_command(state: Path, name: str, chosen: FailureFilter, post: Post) -> None:
    """Send a command from a thread of its own; its answer comes as `CommandAnswered`."""

    def deliver() -> None:
        try:
            message = CommandAnswered(name, answer=control.send(state, name, chosen))
        except (EtlError, sqlite3.Error, OSError) as error:
            message = CommandAnswered(name, problem=str(error))
        post(message)

    threading.Thread(target=deliver, name=f"send-{name}", daemon=True).start()
