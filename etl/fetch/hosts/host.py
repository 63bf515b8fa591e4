"""How one host fares, and what may be asked of it now.

Pure logic: instants are seconds on one clock that the caller reads.  `etl.fetch.hosts.rate` says how many
at once, `etl.fetch.hosts.breaker` whether at all; `Host` adds pauses, counts and the words for people.
"""

import logging
import math
from collections.abc import Hashable
from dataclasses import dataclass

from etl.clock import now_ms
from etl.domain.statuses import HostState
from etl.domain.views import HostInfo
from etl.errors import FetchError, ItemError, ServerError, TooManyRequestsError
from etl.fetch.hosts.breaker import FAILURE_THRESHOLD, NEVER, CircuitBreaker, Request
from etl.fetch.hosts.health import Health, health_of, is_overload
from etl.fetch.hosts.rate import ConcurrencyLimit

log = logging.getLogger(__name__)


PROBE_S = 1.0
"""Seconds after which it is worth looking again whether a probe has ended."""

REMEMBERED_S = 1800.0
"""What an idle host did last is kept so long, which is longer than its sources wait for another attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What applies to every host.

    Attributes:
        per_host: requests at once.
        interval_s: least seconds between two starts.
        patience_s: seconds without a sign of life after which a host is given up.
        pause_s: pause after a 429 that names none.
        longest_pause_s: the most that a host's Retry-After is obeyed for.
        longest_wait_s: the most that a host's breaker stays open, or a delay keeps it slow, of our own accord.
    """

    per_host: int
    interval_s: float
    patience_s: float
    pause_s: float
    longest_pause_s: float
    longest_wait_s: float


class Host:
    """One host.

    Attributes:
        name: in lower case.
        waiting, active: requests that wait for a slot, and that hold one.
        interval_s: least seconds between two starts that the host itself asks for.
    """

    def __init__(self, name: str, terms: Terms, interval_s: float = 0.0) -> None:
        self.name = name
        self.waiting = self.active = 0
        self.interval_s = interval_s
        self._terms = terms
        self._limit = ConcurrencyLimit(terms.per_host, terms.longest_wait_s)
        self._breaker = CircuitBreaker(terms.patience_s, terms.longest_wait_s)
        self._paused_until = self._last_start = self._busy_since = NEVER
        self._why_paused = self._why_slowed = self._why_open = ""
        self._said_slowed = False
        self._latest = self._done = self._failed = self._bytes = 0
        self._busy_s = 0.0
        self._reported: tuple[object, ...] = (HostState.HEALTHY, None, None, terms.per_host, 0)

    @property
    def breaker_is_open(self) -> bool:
        return self._breaker.open_until is not None

    @property
    def allowed(self) -> int:
        return self._limit.allowed

    @property
    def given_up(self) -> bool:
        return self._breaker.given_up

    @property
    def why_open(self) -> str:
        return self._why_open

    @property
    def free(self) -> int:
        """How many requests could start as far as numbers go; one while the breaker is open, its probe."""
        if self.breaker_is_open:
            return int(self._breaker.probe is None)
        return max(0, self._limit.allowed - self.active)

    def ready_at(self) -> float:
        """The instant from which the next request may start as far as time goes."""
        open_until = self._breaker.open_until
        return max(self._paused_until, NEVER if open_until is None else open_until, self._next_start())

    def paused_until(self, now: float) -> float | None:
        return self._paused_until if self._paused_until > now else None

    def blocked_until(self, now: float) -> float | None:
        """The instant from which the host may be asked again, when that is not now; a guess while a probe runs."""
        if self.breaker_is_open and self._breaker.probe is not None:
            return now + PROBE_S
        until = max(self._paused_until, NEVER if self._breaker.open_until is None else self._breaker.open_until)
        return until if until > now else None

    def startable(self, now: float, within: float) -> int:
        """How many requests could start from now on ``within`` seconds; 0 while paused or not answering."""
        open_until = self._breaker.open_until
        if self._paused_until > now or (open_until is not None and open_until > now):
            return 0
        free, gap, first = self.free, self._gap(), max(now, self._next_start())
        if gap:
            free = min(free, 1 + math.floor((now + within - first) / gap))
        return max(0, free)

    def start(self, number: int, source: Hashable, now: float) -> Request:
        """Take a slot.  Numbers grow from start to start."""
        request = Request(self.name, number, number if source is None else source, is_probe=self.breaker_is_open)
        if request.is_probe:
            self._breaker.probe = request
        if not self.active:
            self._busy_since = now
        self.active += 1
        self._latest, self._last_start = number, now
        return request

    def end(self, request: Request, now: float) -> None:
        """Give the slot back; a probe that ended without a report proved nothing, so the next one is it."""
        self._count_busy(now)
        self.active -= 1
        self._breaker.withdraw(request)

    def succeeded(self, request: Request, size: int) -> None:
        """Note a success that brought ``size`` bytes."""
        self._done += 1
        self._bytes += size
        self._alive()
        self._limit.success(request.number)
        self._log_limit()

    def failed(self, request: Request, error: ItemError, now: float) -> None:
        """Note a failure, and what it says about the host."""
        self._failed += 1
        cause = _cause(error)
        if is_overload(error) and self._limit.overload(request.number, self._latest, asked=_is_asked(error)):
            self._why_slowed = cause
        health = health_of(error)
        if health is Health.ALIVE:
            self._alive()
        elif health is Health.FAILING:
            self._failure(request, cause, now)
        self._log_limit()
        if error.retry_after_s:
            self.pause(error.retry_after_s, f"{cause}, asks to wait {error.retry_after_s:g} s", now)
        elif isinstance(error, TooManyRequestsError):
            self.pause(self._terms.pause_s, cause, now)

    def pause(self, seconds: float, reason: str, now: float) -> None:
        """Start nothing for so many seconds, at most ``longest_pause_s``; a longer pause stays."""
        until = now + min(seconds, self._terms.longest_pause_s)
        if until <= max(now, self._paused_until):
            return
        if self._paused_until <= now:
            log.info("%s: paused for %.3g s: %s", self.name, until - now, reason)
        self._paused_until, self._why_paused = until, reason

    def restore_breaker(self, seconds: float, reason: str, now: float) -> None:
        """Be as an earlier run left it, which had no answer; a probe ends it."""
        self._breaker.restore(seconds, now)
        self._why_open = reason

    def report(self, now: float) -> HostInfo | None:
        """Return how the host fares, with what was counted since the last report; ``None`` when nothing changed."""
        self._count_busy(now)
        busy_ms = math.floor(self._busy_s * 1000)
        state, reason, until = self._state(now)
        seen = (state, reason, until, self._limit.allowed, self.active)
        if seen == self._reported and not (self._done or self._failed or self._bytes or busy_ms):
            return None
        wall_until = None if until is None else now_ms() + round(1000 * (until - now))
        info = HostInfo(
            host=self.name,
            state=state,
            reason=reason,
            until=wall_until,
            allowed=self._limit.allowed,
            in_flight=self.active,
            done=self._done,
            failed=self._failed,
            bytes=self._bytes,
            busy_ms=busy_ms,
            updated_at=now_ms(),
        )
        self._reported = seen
        self._done = self._failed = self._bytes = 0
        self._busy_s -= busy_ms / 1000
        return info

    def forgettable(self, now: float) -> bool:
        """Whether a new object would do as well, given that all was reported."""
        if self.active or self.waiting or self.breaker_is_open or self.ready_at() > now:
            return False
        healthy = self._breaker.healthy and not self._limit.slowed
        return healthy or self._last_start + REMEMBERED_S < now

    def _gap(self) -> float:
        return max(self._terms.interval_s, self.interval_s, self._limit.delay_s)

    def _next_start(self) -> float:
        return self._last_start + self._gap()

    def _alive(self) -> None:
        if self._breaker.close():
            self._limit.restart(self._latest)
            self._why_slowed = self._why_open
            self._said_slowed = self._limit.slowed
            log.warning("%s: answers again; goes on with one request at a time", self.name)

    def _failure(self, request: Request, cause: str, now: float) -> None:
        was_open = self.breaker_is_open
        seconds = self._breaker.failure(request, now)
        if seconds is not None:
            how = "the next one failed too" if was_open else f"{FAILURE_THRESHOLD} sources failed in a row"
            self._why_open = f"{how}: {cause}"
            log.warning("%s: not answering, asked again in %.3g s: %s", self.name, seconds, self._why_open)

    def _log_limit(self) -> None:
        if self._limit.slowed == self._said_slowed:
            return
        self._said_slowed = self._limit.slowed
        if self._said_slowed:
            log.info("%s: slowed down after %s", self.name, self._why_slowed)
        else:
            log.info("%s: at full speed again", self.name)

    def _count_busy(self, now: float) -> None:
        if self.active:
            self._busy_s += now - self._busy_since
            self._busy_since = now

    def _state(self, now: float) -> tuple[HostState, str | None, float | None]:
        """The state, the reason for it, and the instant at which a pause ends or a probe may start."""
        open_until, paused_until = self._breaker.open_until, self.paused_until(now)
        if open_until is not None:
            return HostState.NOT_ANSWERING, self._why_open, open_until if open_until > now else None
        if paused_until is not None:
            return HostState.PAUSED, self._why_paused, paused_until
        reasons = [f"after {self._why_slowed}"] if self._limit.slowed else []
        if delay := max(self._limit.delay_s, self.interval_s):
            reasons.append(f"{delay:g} s between requests")
        return (HostState.SLOWED, "; ".join(reasons), None) if reasons else (HostState.HEALTHY, None, None)


def _is_asked(error: ItemError) -> bool:
    """Whether the host said in words that it wants fewer requests."""
    return isinstance(error, TooManyRequestsError) or bool(error.retry_after_s)


def _cause(error: ItemError) -> str:
    if isinstance(error, TooManyRequestsError):
        return "HTTP 429"
    status = error.http_status if isinstance(error, FetchError) else None
    return f"HTTP {status}" if isinstance(error, ServerError) and status else error.slug
