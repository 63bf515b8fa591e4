"""How many requests may run at once, per host and in total, and which hosts asked for a pause."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_Waiter = tuple[str, asyncio.Future[None]]


class HostGate:
    """Limits requests per host and in total.

    A request takes its host's slot and its share of the total in one step or waits without either, so a busy or
    pausing host never keeps the others from working.  Waiting requests start in the order in which they came, as far
    as their hosts allow it.  The empty host, local files, is limited by the total only.  For one event loop.

    Args:
        total: requests at once, over all hosts.
        per_host: requests at once to one host.
        clock: seconds that only grow; `time.monotonic` outside tests.
    """

    def __init__(self, total: int, per_host: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        if total < 1 or per_host < 1:
            raise ValueError(f"total = {total}, per_host = {per_host}: both must be at least 1")
        self._total = total
        self._per_host = per_host
        self._clock = clock
        self._active: Counter[str] = Counter()
        self._paused: dict[str, float] = {}
        self._waiting: deque[_Waiter] = deque()

    @asynccontextmanager
    async def slot(self, host: str) -> AsyncIterator[None]:
        """Hold one slot for ``host`` inside the block; waits for it first, through the host's pause too."""
        await self._acquire(host)
        try:
            yield
        finally:
            self._release(host)

    def pause(self, host: str, seconds: float) -> None:
        """Start no request to ``host`` for so many seconds; running ones go on, and a longer pause stays."""
        until = self._clock() + seconds
        if seconds <= 0 or until <= self._paused.get(host, 0.0):
            return
        self._paused[host] = until
        if any(name == host for name, _ in self._waiting):
            self._wake_at(until)

    def paused_until(self, host: str) -> float | None:
        """The instant, on the gate's clock, at which the host's pause ends; ``None`` when it is not paused."""
        until = self._paused.get(host)
        if until is not None and until <= self._clock():
            del self._paused[host]
            return None
        return until

    def free(self, host: str) -> int:
        """How many requests to ``host`` could start now; 0 during its pause."""
        if self.paused_until(host) is not None:
            return 0
        total = self._total - self._active.total()
        return total if host == "" else min(total, self._per_host - self._active[host])

    async def _acquire(self, host: str) -> None:
        if self.free(host) > 0:
            self._active[host] += 1
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (host, granted)
        self._waiting.append(waiter)
        until = self.paused_until(host)
        if until is not None:
            self._wake_at(until)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._release(host)
            else:
                self._waiting.remove(waiter)
            raise

    def _release(self, host: str) -> None:
        self._active[host] -= 1
        if not self._active[host]:
            del self._active[host]
        self._start_waiting()

    def _start_waiting(self) -> None:
        for waiter in list(self._waiting):
            host, granted = waiter
            if self.free(host) > 0 and not granted.done():
                self._waiting.remove(waiter)
                self._active[host] += 1
                granted.set_result(None)

    def _wake_at(self, until: float) -> None:
        def wake() -> None:
            # Timers of the loop may fire a clock tick early.
            if any(until == self.paused_until(host) for host, _ in self._waiting):
                self._wake_at(until)
            else:
                self._start_waiting()

        asyncio.get_running_loop().call_later(max(0.0, until - self._clock()), wake)
