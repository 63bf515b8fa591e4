"""Which requests may start now: limits per host and in total, pauses, and what hosts make necessary."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from etl.clock import now_ms
from etl.domain.statuses import HostState
from etl.domain.views import HostInfo
from etl.errors import HostDownError, ItemError
from etl.fetch.hosts.breaker import Request
from etl.fetch.hosts.host import Host, Terms

AHEAD_S = 0.5
"""`HostLimiter.free` looks so far ahead, or a host with a delay between starts would get one request per look at it."""


class HostNotReadyError(Exception):
    """The host may not be asked now; ``until_ms`` is when it may, Unix milliseconds."""

    def __init__(self, until_ms: int) -> None:
        super().__init__(f"the host may not be asked before {until_ms}")
        self.until_ms = until_ms


@dataclass(eq=False, slots=True)
class _Waiter:
    host: str
    source: Hashable
    patient: bool
    granted: asyncio.Future[Request]


class HostLimiter:
    """Limits requests per host and in total, and learns from how they end.

    A request takes its host's slot and its share of the total in one step or waits without either, so a busy or
    pausing host never keeps the others from working.  Waiting requests start in the order in which they came, as far
    as their hosts allow it.  For one event loop.

    A host may have ``per_host`` requests at once.  Overload (429, 503, time-outs, broken and refused connections)
    halves that, once for all requests of one bad moment, then puts growing delays between them; successes undo it
    step by step.  After a row of failures without a sign of life the host's circuit breaker opens: nothing starts
    until one probe has succeeded.  The empty host, local files, is limited by the total only; its reports are ignored.

    Args:
        total: requests at once, over all hosts.
        per_host: requests at once to one host.
        rate: requests per second to one host, evenly spread; 0 for no limit.
        patience_s: seconds for which a host may fail without a sign of life before it is given up.
        pause_s: pause of a host after a 429 that names none.
        longest_pause_s: the most that a host's Retry-After is obeyed for.
        longest_wait_s: the most that a host's breaker stays open, or a delay keeps it slow, of our own accord.
        clock: seconds that only grow; `time.monotonic` outside tests.
    """

    def __init__(
        self,
        total: int,
        per_host: int,
        *,
        rate: float = 0.0,
        patience_s: float = 1800.0,
        pause_s: float = 5.0,
        longest_pause_s: float = 86_400.0,
        longest_wait_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if total < 1 or per_host < 1:
            raise ValueError(f"total = {total}, per_host = {per_host}: both must be at least 1")
        self._total = total
        self._terms = Terms(
            per_host=per_host,
            interval_s=1 / rate if rate else 0.0,
            patience_s=patience_s,
            pause_s=pause_s,
            longest_pause_s=longest_pause_s,
            longest_wait_s=longest_wait_s,
        )
        self._clock = clock
        self._hosts: dict[str, Host] = {}
        self._intervals: dict[str, float] = {}
        self._active = 0
        self._numbers = itertools.count(1)
        self._waiting: dict[_Waiter, None] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    @property
    def total(self) -> int:
        """Requests at once, over all hosts; running ones go on where it becomes less."""
        return self._total

    @total.setter
    def total(self, total: int) -> None:
        if total != self._total:
            self._total = total
            self._start_waiting()

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        """Whether nothing new may start; who waits without patience is turned away."""
        return self._closed

    @closed.setter
    def closed(self, closed: bool) -> None:
        self._closed = closed
        self._turn_away_impatient()

    @asynccontextmanager
    async def slot(self, host: str, source: Hashable = None, *, patient: bool = True) -> AsyncIterator[Request]:
        """Hold one slot for ``host`` inside the block; waits for it first.

        Report how the request ended with `succeeded` or `failed` inside the block; what ends without a report, such
        as a cancelled request, says nothing about the host.  Where ``source`` names what is asked for, an `ItemError`
        that leaves the block counts as reported with `failed`.  A task that holds a slot must not ask for another:
        the host may have no second one.

        Raises `HostDownError` when the host is given up while this waits, and, unless ``patient``,
        `HostNotReadyError` when it is paused or does not answer, or the limiter closed.
        """
        request = await self._acquire(host, source, patient)
        try:
            yield request
        except ItemError as error:
            if source is not None:
                self.failed(request, error)
            raise
        finally:
            self._release(request)

    def succeeded(self, request: Request, size: int = 0) -> None:
        """Report that the request brought what was asked for, in ``size`` bytes.  A second report is ignored."""
        if self._take_report(request):
            self._host(request.host).succeeded(request, size)
            self._start_waiting()

    def failed(self, request: Request, error: ItemError) -> None:
        """Report how the request failed; the host pauses for the error's Retry-After.  A second report is ignored."""
        if self._take_report(request):
            host = self._host(request.host)
            host.failed(request, error, self._clock())
            if host.given_up:
                self._turn_away(host)
            self._turn_away_impatient()
            self._start_waiting()

    def pause(self, host: str, seconds: float, reason: str = "asked to wait") -> None:
        """Start no request to ``host`` for so many seconds; running ones go on, and a longer pause stays."""
        if host:
            self._host(host).pause(seconds, reason, self._clock())
            self._turn_away_impatient()

    def restore(self, host: str, state: HostState, seconds: float, reason: str | None) -> None:
        """Pause ``host``, or hold its breaker open, for what an earlier run left; other states leave nothing."""
        if state is HostState.PAUSED:
            self.pause(host, seconds, reason or "asked to wait")
        elif state is HostState.NOT_ANSWERING and host:
            self._host(host).restore_breaker(seconds, reason or "failed in an earlier run", self._clock())

    def set_interval(self, host: str, seconds: float) -> None:
        """Let at least so many seconds lie between two starts to ``host``, as its robots.txt may ask; 0 ends that."""
        if seconds == self._intervals.get(host, 0.0):
            return
        if seconds > 0:
            self._intervals[host] = seconds
        else:
            self._intervals.pop(host, None)
        if host in self._hosts:
            self._hosts[host].interval_s = max(0.0, seconds)
            self._start_waiting()

    def free(self, host: str) -> int:
        """How many further requests to ``host`` could start now or in a moment; 0 while it is blocked."""
        total = max(0, self._total - self._active)
        if host == "":
            return total
        known = self._hosts.get(host) or self._new(host)
        return max(0, min(total, known.startable(self._clock(), AHEAD_S) - known.waiting))

    def ahead(self, host: str) -> int:
        """How many further requests may wait, so that a slot that becomes free is taken at once; 0 while blocked."""
        if host == "":
            return max(0, self._total - len(self._waiting))
        known = self._hosts.get(host) or self._new(host)
        return 0 if known.blocked_until(self._clock()) is not None else max(0, known.allowed - known.waiting)

    def blocked_until_ms(self, host: str) -> int | None:
        """When a host that is paused or does not answer may be asked again, Unix milliseconds; ``None`` for now."""
        now = self._clock()
        known = self._hosts.get(host)
        until = known.blocked_until(now) if known else None
        return None if until is None else now_ms() + round(1000 * (until - now))

    def given_up(self, host: str) -> bool:
        """Whether the host failed once more after ``patience_s`` without a sign of life."""
        return host in self._hosts and self._hosts[host].given_up

    def hosts(self) -> list[HostInfo]:
        """Return the hosts that changed since the last call, with the counts of that time; forgets idle ones."""
        now = self._clock()
        changed = [info for host in self._hosts.values() if (info := host.report(now))]
        for name in [name for name, host in self._hosts.items() if host.forgettable(now)]:
            del self._hosts[name]
        return changed

    def _new(self, name: str) -> Host:
        return Host(name, self._terms, self._intervals.get(name, 0.0))

    def _host(self, name: str) -> Host:
        if name not in self._hosts:
            self._hosts[name] = self._new(name)
        return self._hosts[name]

    def _take_report(self, request: Request) -> bool:
        first = bool(request.host) and not request.reported
        request.reported = True
        return first

    async def _acquire(self, host: str, source: Hashable, patient: bool) -> Request:
        granted: asyncio.Future[Request] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(host, source, patient, granted)
        self._waiting[waiter] = None
        if host:
            self._host(host).waiting += 1
        if not patient:
            self._turn_away_impatient(waiter)
        self._start_waiting()
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._leave(waiter)
            elif granted.exception() is None:
                self._release(granted.result())
            raise

    def _release(self, request: Request) -> None:
        self._active -= 1
        if request.host:
            self._hosts[request.host].end(request, self._clock())
        self._start_waiting()

    def _leave(self, waiter: _Waiter) -> None:
        del self._waiting[waiter]
        if waiter.host:
            self._hosts[waiter.host].waiting -= 1

    def _start_waiting(self) -> None:
        now, full = self._clock(), set[str]()
        for waiter in list(self._waiting):
            if self._active >= self._total:
                return
            # A cancelled waiter leaves by itself as soon as its task runs.
            if waiter.host in full or waiter.granted.done():
                continue
            host = self._hosts.get(waiter.host)
            if host is None:
                self._grant(waiter, Request("", next(self._numbers), waiter.source))
            elif host.free and host.ready_at() <= now:
                self._grant(waiter, host.start(next(self._numbers), waiter.source, now))
            else:
                full.add(waiter.host)
                if host.free:
                    self._wake_at(waiter.host, host.ready_at(), now)

    def _grant(self, waiter: _Waiter, request: Request) -> None:
        self._leave(waiter)
        self._active += 1
        waiter.granted.set_result(request)

    def _turn_away_impatient(self, *those: _Waiter) -> None:
        """End the waiting of those, or of all, who would rather come again, where it may be long."""
        for waiter in [each for each in those or self._waiting if not (each.patient or each.granted.done())]:
            until = now_ms() if self._closed else self.blocked_until_ms(waiter.host)
            if until is not None:
                self._leave(waiter)
                waiter.granted.set_exception(HostNotReadyError(until))

    def _turn_away(self, host: Host) -> None:
        """End the waiting for a host that is given up."""
        for waiter in [each for each in self._waiting if each.host == host.name and not each.granted.done()]:
            self._leave(waiter)
            waiter.granted.set_exception(HostDownError(f"{host.name} gives no sign of life: {host.why_open}"))

    def _wake_at(self, host: str, until: float, now: float) -> None:
        """Look again at ``until``, or a clock tick earlier, as the loop's timers may; then this is called again."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, until - now)
        timer = self._timers.get(host)
        if timer is not None:
            if timer.when() <= when:
                return
            timer.cancel()

        def wake() -> None:
            del self._timers[host]
            self._start_waiting()

        self._timers[host] = loop.call_at(when, wake)
