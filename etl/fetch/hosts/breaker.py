"""Whether a host may be asked at all: the circuit breaker, and the requests that it tells apart."""

import math
from collections.abc import Hashable
from dataclasses import dataclass

NEVER = -math.inf

ROW = 8
"""Different sources that must fail in a row before their host counts as dead."""

FIRST_PARK_S = 30.0
LONGEST_PARK_S = 600.0


@dataclass(eq=False, slots=True)
class Request:
    """A request that holds a slot.

    Attributes:
        host: the host asked.
        number: counts the requests of a gate in the order of their starts.
        source: what is asked for; tells different sources of one host apart.
        trial: whether it is the one request that finds out if a parked host lives.
        reported: whether its end was reported.
    """

    host: str
    number: int
    source: Hashable
    trial: bool = False
    reported: bool = False


class Breaker:
    """Whether a host may be asked at all: after a row of failures not before an instant, and then by one trial.

    Attributes:
        parked_until: instant of the next trial, past or future; ``None`` while the host is not parked.
        trial: the trial under way.
        given_up: whether a failure came after ``patience_s`` without a sign of life.
    """

    def __init__(self, patience_s: float, longest_park_s: float = LONGEST_PARK_S) -> None:
        self._patience_s = patience_s
        self._longest_park_s = min(longest_park_s, LONGEST_PARK_S)
        self._clear()

    def _clear(self) -> None:
        self.parked_until: float | None = None
        self.trial: Request | None = None
        self.given_up = False
        self._row: set[Hashable] = set()
        self._since = NEVER
        self._park_s = min(FIRST_PARK_S, self._longest_park_s)

    @property
    def healthy(self) -> bool:
        return self.parked_until is None and not self._row

    def park(self, seconds: float, now: float) -> None:
        """Park the host as an earlier run had it."""
        self.parked_until = now + min(seconds, self._longest_park_s)

    def alive(self) -> bool:
        """Note a sign of life; return whether it opened a parked host."""
        opened = self.parked_until is not None
        self._clear()
        return opened

    def trouble(self, request: Request, now: float) -> float | None:
        """Note a failure; return for how long it parks the host, ``None`` when it does not."""
        if not self._row:
            self._since = now
        if len(self._row) < ROW:
            self._row.add(request.source)
        if self.parked_until is None:
            if len(self._row) < ROW:
                return None
        elif not request.trial:
            return None  # it was under way when the host was parked
        self.withdraw(request)
        wait, self._park_s = self._park_s, min(2 * self._park_s, self._longest_park_s)
        left = self._since + self._patience_s - now
        self.given_up = left <= 0
        if 0 < left < wait:
            # Patience ends with a trial, so that nobody is given up for what was true long ago.
            wait = left
        self.parked_until = now + wait
        return wait

    def withdraw(self, request: Request) -> None:
        """Let another request be the trial, if this one was it."""
        if self.trial is request:
            self.trial = None
