"""How many requests a host bears at once, found by trying: additive increase, multiplicative decrease (AIMD)."""

SHORTEST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
"""Between two starts to a host for which even one request at a time is too much."""


TOLERATED = 2.0
RECOVERY = 0.1
"""Strain that a host shows before it is slowed down: 1 for each failure, less `RECOVERY` for each success between.

Two failures in a row are a sign; one in fifty is how old servers are, and halving for it would halve the speed for
good.
"""


class ConcurrencyLimit:
    """How many requests at once, and how far apart: halved by overload, raised step by step by successes.

    Attributes:
        allowed: requests that may run at once.
        delay_s: least seconds between two starts; 0 unless one request at a time was too much already.
    """

    def __init__(self, most: int, longest_delay_s: float = LONGEST_DELAY_S) -> None:
        self.allowed = most
        self.delay_s = 0.0
        self._most = most
        self._longest_delay_s = min(longest_delay_s, LONGEST_DELAY_S)
        self._cut_after = 0
        self._successes = 0
        self._strain = 0.0

    @property
    def slowed(self) -> bool:
        return self.allowed < self._most or self.delay_s > 0

    def overload(self, number: int, latest: int, *, asked: bool = True) -> bool:
        """Slow down, unless request ``number`` started before the last cut; ``latest`` is the newest one's number.

        Not ``asked`` for by the host in words, it must come more than once in a while.
        """
        if number <= self._cut_after:
            return False
        self._strain += 1
        if not asked and self._strain < TOLERATED and not self.delay_s:
            return False
        self._strain = 0.0
        self._cut_after = max(latest, number)
        self._successes = 0
        if self.allowed > 1:
            self.allowed //= 2
        else:
            self.delay_s = min(max(SHORTEST_DELAY_S, 2 * self.delay_s), self._longest_delay_s)
        return True

    def success(self, number: int) -> None:
        """Speed up after a request that started at the present speed."""
        if number <= self._cut_after:
            return
        self._strain = max(0.0, self._strain - RECOVERY)
        if self.delay_s:
            self.delay_s = self.delay_s / 2 if self.delay_s > SHORTEST_DELAY_S else 0.0
            return
        self._successes += 1
        if self._successes >= self.allowed:
            self._successes = 0
            self.allowed = min(self.allowed + 1, self._most)

    def restart(self, latest: int) -> None:
        """Allow one request at a time; it grows from there."""
        self.allowed = 1
        self._successes = 0
        self._cut_after = latest
