"""How one host fares, and what may be asked of it now.

Pure logic: instants are seconds on one clock that the caller reads.  `etl.fetch.hosts.rate` says how fast,
`etl.fetch.hosts.breaker` whether at all; `Host` adds pauses, counts and the words for people.
"""

import logging
import math
from collections.abc import Hashable
from dataclasses import dataclass

from etl.clock import now_ms
from etl.domain.statuses import HostState
from etl.domain.views import HostInfo
from etl.errors import FetchError, ItemError, ServerError, TooManyRequestsError
from etl.fetch.hosts.breaker import NEVER, ROW, Breaker, Request
from etl.fetch.hosts.health import Sign, is_overload, sign_of
from etl.fetch.hosts.rate import Speed

log = logging.getLogger(__name__)


TRIAL_S = 1.0
"""Seconds after which it is worth looking again whether a trial has ended."""

REMEMBERED_S = 1800.0
"""What an idle host did last is kept so long, which is longer than its sources wait for another attempt."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What applies to every host.

    Attributes:
        per_host: requests at once.
        interval_s: least seconds between two starts.
        patience_s: seconds without a sign of life after which a parked host is given up.
        pause_s: pause after a 429 that names none.
        longest_pause_s: the most that a host's Retry-After is obeyed for.
        longest_wait_s: the most that a host is parked for, or kept slow by a delay, of our own accord.
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
        self._speed = Speed(terms.per_host, terms.longest_wait_s)
        self._breaker = Breaker(terms.patience_s, terms.longest_wait_s)
        self._paused_until = self._last_start = self._busy_since = NEVER
        self._why_paused = self._why_slowed = self._why_parked = ""
        self._said_slowed = False
        self._latest = self._done = self._failed = self._bytes = 0
        self._busy_s = 0.0
        self._reported: tuple[object, ...] = (HostState.OPEN, None, None, terms.per_host, 0)

    @property
    def parked(self) -> bool:
        return self._breaker.parked_until is not None

    @property
    def allowed(self) -> int:
        return self._speed.allowed

    @property
    def given_up(self) -> bool:
        return self._breaker.given_up

    @property
    def why_parked(self) -> str:
        return self._why_parked

    @property
    def room(self) -> int:
        """How many requests could start as far as numbers go; of a parked host, the trial."""
        if self.parked:
            return int(self._breaker.trial is None)
        return max(0, self._speed.allowed - self.active)

    def ready_at(self) -> float:
        """The instant from which the next request may start as far as time goes."""
        parked_until = self._breaker.parked_until
        return max(self._paused_until, NEVER if parked_until is None else parked_until, self._next_start())

    def paused_until(self, now: float) -> float | None:
        return self._paused_until if self._paused_until > now else None

    def blocked_until(self, now: float) -> float | None:
        """The instant from which the host may be asked again, when that is not now; a guess while a trial runs."""
        if self.parked and self._breaker.trial is not None:
            return now + TRIAL_S
        until = max(self._paused_until, NEVER if self._breaker.parked_until is None else self._breaker.parked_until)
        return until if until > now else None

    def startable(self, now: float, within: float) -> int:
        """How many requests could start from now on ``within`` seconds; 0 while paused or parked."""
        parked_until = self._breaker.parked_until
        if self._paused_until > now or (parked_until is not None and parked_until > now):
            return 0
        room, gap, first = self.room, self._gap(), max(now, self._next_start())
        if gap:
            room = min(room, 1 + math.floor((now + within - first) / gap))
        return max(0, room)

    def start(self, number: int, source: Hashable, now: float) -> Request:
        """Take a slot.  Numbers grow from start to start."""
        request = Request(self.name, number, number if source is None else source, trial=self.parked)
        if request.trial:
            self._breaker.trial = request
        if not self.active:
            self._busy_since = now
        self.active += 1
        self._latest, self._last_start = number, now
        return request

    def end(self, request: Request, now: float) -> None:
        """Give the slot back; a trial that ended without a report proved nothing, so the next request is the trial."""
        self._count_busy(now)
        self.active -= 1
        self._breaker.withdraw(request)

    def succeeded(self, request: Request, size: int) -> None:
        """Note a success that brought ``size`` bytes."""
        self._done += 1
        self._bytes += size
        self._alive()
        self._speed.success(request.number)
        self._say_speed()

    def failed(self, request: Request, error: ItemError, now: float) -> None:
        """Note a failure, and what it says about the host."""
        self._failed += 1
        cause = _cause(error)
        if is_overload(error) and self._speed.overload(request.number, self._latest, asked=_is_asked(error)):
            self._why_slowed = cause
        sign = sign_of(error)
        if sign is Sign.ALIVE:
            self._alive()
        elif sign is Sign.TROUBLE:
            self._trouble(request, cause, now)
        self._say_speed()
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

    def park(self, seconds: float, reason: str, now: float) -> None:
        """Park the host as an earlier run had it; a trial ends it."""
        self._breaker.park(seconds, now)
        self._why_parked = reason

    def report(self, now: float) -> HostInfo | None:
        """Return how the host fares, with what was counted since the last report; ``None`` when nothing changed."""
        self._count_busy(now)
        busy_ms = math.floor(self._busy_s * 1000)
        state, reason, until = self._state(now)
        seen = (state, reason, until, self._speed.allowed, self.active)
        if seen == self._reported and not (self._done or self._failed or self._bytes or busy_ms):
            return None
        wall_until = None if until is None else now_ms() + round(1000 * (until - now))
        info = HostInfo(
            host=self.name,
            state=state,
            reason=reason,
            until=wall_until,
            allowed=self._speed.allowed,
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
        if self.active or self.waiting or self.parked or self.ready_at() > now:
            return False
        healthy = self._breaker.healthy and not self._speed.slowed
        return healthy or self._last_start + REMEMBERED_S < now

    def _gap(self) -> float:
        return max(self._terms.interval_s, self.interval_s, self._speed.delay_s)

    def _next_start(self) -> float:
        return self._last_start + self._gap()

    def _alive(self) -> None:
        if self._breaker.alive():
            self._speed.begin_anew(self._latest)
            self._why_slowed = self._why_parked
            self._said_slowed = self._speed.slowed
            log.warning("%s: answers again; goes on with one request at a time", self.name)

    def _trouble(self, request: Request, cause: str, now: float) -> None:
        tried = self.parked
        seconds = self._breaker.trouble(request, now)
        if seconds is not None:
            self._why_parked = f"a trial failed too: {cause}" if tried else f"{ROW} sources failed in a row: {cause}"
            log.warning("%s: parked for %.3g s: %s", self.name, seconds, self._why_parked)

    def _say_speed(self) -> None:
        if self._speed.slowed == self._said_slowed:
            return
        self._said_slowed = self._speed.slowed
        if self._said_slowed:
            log.info("%s: slowed down after %s", self.name, self._why_slowed)
        else:
            log.info("%s: at full speed again", self.name)

    def _count_busy(self, now: float) -> None:
        if self.active:
            self._busy_s += now - self._busy_since
            self._busy_since = now

    def _state(self, now: float) -> tuple[HostState, str | None, float | None]:
        """The state, the reason for it, and the instant at which a pause or parking ends."""
        parked_until, paused_until = self._breaker.parked_until, self.paused_until(now)
        if parked_until is not None:
            return HostState.PARKED, self._why_parked, parked_until if parked_until > now else None
        if paused_until is not None:
            return HostState.PAUSED, self._why_paused, paused_until
        reasons = [f"after {self._why_slowed}"] if self._speed.slowed else []
        if delay := max(self._speed.delay_s, self.interval_s):
            reasons.append(f"{delay:g} s between requests")
        return (HostState.SLOWED, "; ".join(reasons), None) if reasons else (HostState.OPEN, None, None)


def _is_asked(error: ItemError) -> bool:
    """Whether the host said in words that it wants fewer requests."""
    return isinstance(error, TooManyRequestsError) or bool(error.retry_after_s)


def _cause(error: ItemError) -> str:
    if isinstance(error, TooManyRequestsError):
        return "HTTP 429"
    status = error.http_status if isinstance(error, FetchError) else None
    return f"HTTP {status}" if isinstance(error, ServerError) and status else error.slug
