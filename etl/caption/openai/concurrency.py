"""How many requests at once an endpoint bears, found by trying; pure.

A server that captions in batches gets more done with more requests, up to a point; beyond it each just takes longer
(requests under way = captions per second x seconds per caption).  So the number is raised as long as that brings
captions, lowered where that costs none, and halved when the server says that it is too much or becomes much slower.
"""

FIRST = 4
"""Requests at once at the beginning."""

SHORTEST_SPAN = 16
"""Captions over which a rate is measured at least; fewer say nothing, as captions differ in length."""

WORTH = 0.15
"""Share of the further requests that must come back as further captions, or they were not worth it."""

SPARED = 0.02
"""Share of the captions that may be lost by fewer requests, or they are not spared."""

REST = 4
"""Measurements at one number before another is tried again: the server may have changed."""

COLLAPSE = 0.5
"""A rate that falls under this share of what it was means that the server is overloaded, by us or by others."""


class ConcurrencyLimit:
    """The requests that one endpoint may be sent at once.

    Attributes:
        allowed: that number.
    """

    def __init__(self, most: int) -> None:
        self.allowed = min(FIRST, most)
        self._most = most
        self._cut_after = 0
        self._doubling = self._upwards = True
        self._rest = self._settling = 0
        self._safe: int | None = None
        self._rate = 0.0
        self._begin_span(None)

    def overload(self, number: int, latest: int) -> None:
        """Halve, once for all requests of one bad moment; ``latest`` is the number of the newest request."""
        if number <= self._cut_after:
            return
        self._cut_after = latest
        self._cut()

    def begin_anew(self, latest: int) -> None:
        """Allow one request at a time; it grows from there."""
        self.allowed, self._rate, self._safe, self._rest = 1, 0.0, None, 0
        self._doubling, self._upwards, self._cut_after = True, True, latest
        self._begin_span(None)

    def success(self, number: int, under_way: int, now: float) -> None:
        """Note a caption of request ``number``; ``under_way`` counts the requests just before it came."""
        if number <= self._cut_after:
            return
        if under_way < self.allowed - self.allowed // 4:
            # There was less to do than was allowed: the rate would be that of our work, not of the server.
            self._begin_span(now)
            return
        if self._settling > 0 or under_way > self.allowed:
            # Of the number before.
            self._settling -= 1
            self._begin_span(now)
            return
        if self._begun is None:
            self._begin_span(now)
            return
        self._done += 1
        if self._done >= max(SHORTEST_SPAN, 2 * self.allowed) and now > self._begun:
            before = self.allowed
            self._judge(self._done / (now - self._begun))
            self._begin_span(now)
            self._settling = before if self.allowed != before else 0

    def _judge(self, rate: float) -> None:
        if self._safe is not None:
            lowered = self.allowed < self._safe
            worth = 1 - SPARED if lowered else 1 + WORTH * (self.allowed / self._safe - 1)
            if rate < self._rate * worth:
                # Back to what was good; next time the other way is tried.
                self.allowed, self._doubling, self._rest, self._upwards = self._safe, False, REST, lowered
                self._safe = None
                return
        elif rate < COLLAPSE * self._rate:
            self._rate = rate
            self._cut()
            return
        self._rate, self._safe = rate, None
        if self._rest:
            self._rest -= 1
        else:
            self._try_another()

    def _try_another(self) -> None:
        """Let the next measurement be one with more requests, or with fewer."""
        step = max(1, self.allowed // 6)
        if self._upwards:
            wanted = min(self._most, self.allowed + (self.allowed if self._doubling else step))
        else:
            wanted = max(1, self.allowed - step)
        if wanted == self.allowed:
            self._upwards = not self._upwards and self.allowed < self._most
            return
        self._safe, self.allowed = self.allowed, wanted

    def _cut(self) -> None:
        self.allowed = max(1, self.allowed // 2)
        self._doubling, self._upwards, self._safe, self._rest = False, True, None, 1
        self._begin_span(None)

    def _begin_span(self, now: float | None) -> None:
        self._begun, self._done = now, 0
