"""How one endpoint of a pool is treated: what it may be sent, and since when it fails."""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from enum import Enum, auto

from etl.caption.openai.endpoint import Endpoint
from etl.caption.openai.responses import EndpointBusyError
from etl.domain.items import CaptionItem

log = logging.getLogger(__name__)

FAILURE_THRESHOLD = 3
"""Failures in a row after which an endpoint is unhealthy."""

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
"""Seconds before an endpoint is tried again: the first time, and at most."""

BUSY_S = 0.5
LONGEST_BUSY_S = 30.0
"""Pause after a 429 or 503 that names none: the first, doubling to the longest."""


class State(Enum):
    """Healthy: it is sent work.  Unhealthy: not before it has captioned a trial.  Given up: never again in this run."""

    HEALTHY = auto()
    UNHEALTHY = auto()
    GIVEN_UP = auto()


@dataclass(eq=False)
class Job:
    """One item on its way.

    Attributes:
        started_at: when it was taken on, Unix milliseconds.
        tries: how often an endpoint failed under it.
        failed_at: the endpoint that did so last.
        ended: whether its outcome was told.
    """

    item: CaptionItem
    started_at: int
    tries: int = 0
    failed_at: "Member | None" = None
    ended: bool = False


@dataclass(eq=False)
class Member:
    """An endpoint and how it is treated; instants are those of `time.monotonic`.

    Attributes:
        until: end of its pause, or when it is tried again.
        why: its latest failure, for people.
        failing_since: the first failure after which nothing has gone well.
        tasks: what is under way there.
        side: its trial, or the look whether it lives.
    """

    endpoint: Endpoint
    state: State = State.HEALTHY
    until: float = 0.0
    why: str = ""
    failing_since: float | None = None
    tasks: dict["asyncio.Task[None]", Job] = field(default_factory=dict)
    side: "asyncio.Task[None] | None" = None
    _failures: int = 0
    _busy: int = 0
    _busy_after: int = 0
    _wait_s: float = field(default_factory=lambda: FIRST_WAIT_S)

    @property
    def room(self) -> int:
        """Requests that could start now."""
        if self.state is not State.HEALTHY or self.until > time.monotonic():
            return 0
        return self.endpoint.concurrency.allowed - len(self.tasks)

    @property
    def allowed(self) -> int:
        """Requests that may run at once."""
        return self.endpoint.concurrency.allowed if self.state is State.HEALTHY else 0

    def begin(self) -> None:
        """Note that there is work again after a time with none; it is not held against an open endpoint."""
        if self.state is State.HEALTHY:
            self.failing_since = None

    def alive(self) -> None:
        """Note that it does its work."""
        self._failures = self._busy = 0
        self.failing_since = None
        self._wait_s = FIRST_WAIT_S

    def busy(self, error: EndpointBusyError, number: int) -> None:
        """Slow down and pause, as request ``number`` was told."""
        self.endpoint.concurrency.overload(number, self.endpoint.latest)
        self._failing(str(error))
        if number > self._busy_after:
            # Once for all requests of one bad moment.
            self._busy, self._busy_after = min(self._busy + 1, 16), self.endpoint.latest
        pause = error.seconds or min(BUSY_S * 2.0 ** (self._busy - 1), LONGEST_BUSY_S)
        until = time.monotonic() + pause
        if until > self.until:
            log.info("%s: paused for %.3g s: %s", self.endpoint, pause, error)
            self.until = until

    def failed(self, why: str) -> None:
        """Count a failure; after a row of them the endpoint is unhealthy."""
        self._failing(why)
        self._failures += 1
        if self._failures >= FAILURE_THRESHOLD:
            self.mark_unhealthy(why)

    def mark_unhealthy(self, why: str, at_least_s: float = 0.0) -> None:
        """Send it nothing until it has captioned a trial."""
        now = time.monotonic()
        if self.state is State.GIVEN_UP or (self.state is State.UNHEALTHY and self.until > now):
            return
        self._failing(why)
        wait = max(self._wait_s, at_least_s)
        self.state, self.until, self._failures = State.UNHEALTHY, now + wait, 0
        log.warning("%s: set aside, to be tried again in %.3g s: %s", self.endpoint, wait, why)
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    def mark_healthy(self) -> None:
        """Send it work again, one request at first."""
        self.endpoint.concurrency.begin_anew(self.endpoint.latest)
        self.alive()
        self.state, self.until = State.HEALTHY, 0.0
        log.warning("%s: captions again", self.endpoint)

    def give_up(self, why: str) -> None:
        """Send it nothing any more in this run."""
        if self.state is State.GIVEN_UP:
            return
        self.state, self.why = State.GIVEN_UP, why
        log.error("%s: given up: %s", self.endpoint, why)

    def _failing(self, why: str) -> None:
        self.why = why
        if self.failing_since is None:
            self.failing_since = time.monotonic()
