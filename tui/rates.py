"""When a rate has settled enough to promise an end."""

from collections import deque

SAMPLES = 10
"""One per second: a rate that held for ten seconds has settled."""

TOLERANCE = 0.15
"""Spread between the samples, relative to the largest.  A rate over 60 seconds that is still filling up after
the model was loaded grows faster than this until its window is nearly full."""

JITTER_PER_S = 1.5 / 60
"""A slow stage gains or loses one item in its window of 60 seconds by chance; that is no change of rate."""


class Steadiness:
    """Watches the rate of one stage of one run."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._run: str | None = None

    def add(self, run: str | None, per_s: float) -> bool:
        """Take one sample; return whether the rate has settled.  Another run, or none, begins anew."""
        if run != self._run or run is None:
            self._samples.clear()
            self._run = run
        if run is not None:
            self._samples.append(per_s)
        if len(self._samples) < SAMPLES or min(self._samples) <= 0:
            return False
        spread = max(self._samples) - min(self._samples)
        return spread <= max(TOLERANCE * max(self._samples), JITTER_PER_S)
