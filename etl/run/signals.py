"""Signals that end the program: noticed at once, whatever the main thread is doing.

The first SIGINT, SIGTERM or SIGHUP asks for an orderly end.  A second one, or an end that takes too long, is met by a
thread of its own: it gives the work in hand back, ends the child processes and then this one.  Python runs signal
handlers in the main thread alone, which may be inside SQLite or torch for longer than a spot machine has left; so the
thread is told by the system's own handler, through a socket.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

from etl import processes
from etl.errors import Interrupted

log = logging.getLogger(__name__)

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends the program: Ctrl-C, a service manager or spot machine, a terminal that has gone."""

PATIENCE_S = 23.0
"""Seconds from the first signal to the end of the process, however far its work has come."""

ONE_WISH_S = 0.3
"""Signals so close together count as one: a shell that loses its terminal and `timeout` both send theirs twice."""

Result = TypeVar("Result")

_RELEASE_S = 1.0
"""Longest wait for what is given back at a forced end; the next run takes back what is left."""


class Signals:
    """What signals have come.  Any thread may look.

    Attributes:
        first: the signal that asked for the end, if one did.
        release: called with the reason before a forced end.
        on_stop: called as soon as the first one has come, whatever the main thread is doing, in a thread of its own,
            so that a terminal which takes no words keeps nobody waiting.
    """

    def __init__(self, *, interrupt: bool = False, on_stop: Callable[[], None] = lambda: None) -> None:
        self.first: int | None = None
        self.on_stop = on_stop
        self.release: Callable[[str], None] = lambda _why: None
        self._interrupt = interrupt
        self._leaving = threading.Lock()

    def __bool__(self) -> bool:
        return self.first is not None

    def note(self, number: int) -> None:
        """Remember a signal, if it is the first."""
        if self.first is None:
            self.first = number

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal in the main thread.  Raises `Interrupted` where that is wanted, once."""
        self.note(number)
        if self._interrupt:
            self._interrupt = False
            raise Interrupted(number)

    def unless_interrupted(self, work: Callable[[], Result]) -> Result | None:
        """Do what may be cut off anywhere; return ``None`` when a signal has come before or comes meanwhile."""
        try:
            self._interrupt = True
            return None if self else work()
        except Interrupted:
            return None
        finally:
            self._interrupt = False

    def leave(self, why: str, number: int | None = None) -> None:
        """Give everything back and end the process and its children now, with the exit code of a signal.

        Returns only where another thread is about to do the same.
        """
        if not self._leaving.acquire(blocking=False):
            return
        # In a thread that may be left behind: the database may be busy, and nobody may be reading what we say.
        last = threading.Thread(target=self._give_back, args=(why,), name="leaving", daemon=True)
        last.start()
        last.join(_RELEASE_S)
        processes.kill_all()
        os._exit(128 + (number or self.first or signal.SIGTERM))

    def _give_back(self, why: str) -> None:
        try:
            self.release(why)
            log.warning("leaving at once: %s; unfinished work was given back", why)
        except Exception as error:
            log.warning("leaving at once: %s; the next run takes back what was unfinished (%s)", why, error)


class _Guard(threading.Thread):
    """Reads the numbers of signals as they come, and sees to it that the end comes too."""

    def __init__(self, signals: Signals, wake: socket.socket) -> None:
        super().__init__(name="signals", daemon=True)
        self._signals = signals
        self._wake = wake

    def run(self) -> None:
        first_at: float | None = None
        while True:
            self._wake.settimeout(None if first_at is None else max(0.0, first_at + PATIENCE_S - time.monotonic()))
            try:
                numbers = self._wake.recv(64)
            except (TimeoutError, BlockingIOError):
                self._signals.leave("the work in hand did not end in time")
                return
            if not numbers:
                return
            for number in numbers:
                if number not in STOPS:
                    continue
                now = time.monotonic()
                self._signals.note(number)
                if first_at is None:
                    first_at = now
                    threading.Thread(target=self._signals.on_stop, name="stopping", daemon=True).start()
                elif now - first_at > ONE_WISH_S:
                    self._signals.leave("a second signal", number)


@contextlib.contextmanager
def watch_signals(*, interrupt: bool = False, on_stop: Callable[[], None] = lambda: None) -> Iterator[Signals]:
    """Collect signals instead of dying of them, and force the end when it does not come by itself.

    ``on_stop`` is called when the first one has come, see `Signals`.

    With ``interrupt`` the first one raises `Interrupted` in the main thread, for work that may be cut off anywhere and
    has nobody who looks.  SIGHUP stays ignored where it is, as `nohup` wants it.  Outside the main thread (in a test)
    there is nothing to collect.
    """
    signals = Signals(interrupt=interrupt, on_stop=on_stop)
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    wanted = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP]
    reading, writing = socket.socketpair()
    with reading, writing:
        writing.setblocking(False)
        guard = _Guard(signals, reading)
        guard.start()
        wake = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        before: dict[int, Any] = {number: signal.signal(number, signals.handle) for number in wanted}
        try:
            yield signals
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wake)
            writing.shutdown(socket.SHUT_WR)
            guard.join()
