"""Whether a host may be asked at all: the circuit breaker, and the requests that it tells apart."""

import math
from collections.abc import Hashable
from dataclasses import dataclass

NEVER = -math.inf

FAILURE_THRESHOLD = 8
"""Different sources that must fail in a row before their host counts as dead."""

FIRST_OPEN_S = 30.0
LONGEST_OPEN_S = 600.0


@dataclass(eq=False, slots=True)
class Request:
    """A request that holds a slot.

    Attributes:
        host: the host asked.
        number: counts the requests of a limiter in the order of their starts.
        source: what is asked for; tells different sources of one host apart.
        is_probe: whether it is the one request that a half-open breaker lets through.
        reported: whether its end was reported.
    """

    host: str
    number: int
    source: Hashable
    is_probe: bool = False
    reported: bool = False


class CircuitBreaker:
    """Whether a host may be asked at all.

    Closed, all requests pass.  A row of failures opens it: none passes before an instant.  From then on it is
    half-open: one request passes, the probe, and its end closes the breaker or opens it anew.

    Attributes:
        open_until: instant of the next probe, past or future; ``None`` while closed.
        probe: the one under way.
        given_up: whether a failure came after ``patience_s`` without a sign of life.
    """

    def __init__(self, patience_s: float, longest_open_s: float = LONGEST_OPEN_S) -> None:
        self._patience_s = patience_s
        self._longest_open_s = min(longest_open_s, LONGEST_OPEN_S)
        self._clear()

    def _clear(self) -> None:
        self.open_until: float | None = None
        self.probe: Request | None = None
        self.given_up = False
        self._failing: set[Hashable] = set()
        self._since = NEVER
        self._open_s = min(FIRST_OPEN_S, self._longest_open_s)

    @property
    def healthy(self) -> bool:
        return self.open_until is None and not self._failing

    def restore(self, seconds: float, now: float) -> None:
        """Be open as an earlier run left it."""
        self.open_until = now + min(seconds, self._longest_open_s)

    def close(self) -> bool:
        """Note a sign of life; return whether the breaker was open."""
        was_open = self.open_until is not None
        self._clear()
        return was_open

    def failure(self, request: Request, now: float) -> float | None:
        """Note a failure; return for how long it opens the breaker, ``None`` when it does not."""
        if not self._failing:
            self._since = now
        if len(self._failing) < FAILURE_THRESHOLD:
            self._failing.add(request.source)
        if self.open_until is None:
            if len(self._failing) < FAILURE_THRESHOLD:
                return None
        elif not request.is_probe:
            return None  # it was under way when the breaker opened
        self.withdraw(request)
        wait, self._open_s = self._open_s, min(2 * self._open_s, self._longest_open_s)
        left = self._since + self._patience_s - now
        self.given_up = left <= 0
        if 0 < left < wait:
            # Patience ends with a probe, so that nobody is given up for what was true long ago.
            wait = left
        self.open_until = now + wait
        return wait

    def withdraw(self, request: Request) -> None:
        """Let another request be the probe, if this one was it."""
        if self.probe is request:
            self.probe = None
