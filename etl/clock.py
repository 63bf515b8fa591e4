"""The one clock of the state: Unix time in whole milliseconds, UTC.

During a run it is held (`held`): whatever is done to the machine's clock, it goes on evenly until `follow` is called,
so that the run can first set what it has stored by it (`etl.state.store.Store.follow_clock`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from etl.units import duration

# Unlike the monotonic clock it goes on while the machine sleeps, as the waits do.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

SLACK_MS = 2000
"""By so much a moment of another process may seem to lie ahead."""

LONG_MS = 100 * 24 * 3600 * 1000
"""What is older is told by its date."""

_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999
"""The beginning of the year 1 and the end of 9999."""

_ahead: int | None = None
"""Unix time minus the steady clock while the clock is held, in milliseconds."""


def now_ms() -> int:
    """Return the current Unix time in milliseconds; while the clock is held, as it would be had nobody set it."""
    return _wall_ms() if _ahead is None else _steady_ms() + _ahead


@contextmanager
def held() -> Iterator[None]:
    """Hold the clock of this process during the block."""
    global _ahead
    before, _ahead = _ahead, now_ms() - _steady_ms()
    try:
        yield
    finally:
        _ahead = before


def drift_ms() -> int:
    """Return by how much the machine's clock was set since this one is held; 0 when it is not held."""
    return _wall_ms() - now_ms()


def follow(by_ms: int) -> None:
    """Set the held clock by so much."""
    global _ahead
    if _ahead is not None:
        _ahead += by_ms


def iso_utc(milliseconds: int) -> str:
    """Return ``2025-12-16T10:30:00.000Z`` for a Unix time in milliseconds; the nearest that there is for one beyond all
    years, as a stranger's database may hold."""
    milliseconds = min(max(milliseconds, _FIRST_MS), _LAST_MS)
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"


def ago(moment: int, now: int, shown: Callable[[float], str]) -> str:
    """Return how long ago a moment was, as ``5s ago`` with what ``shown`` makes of seconds; both in milliseconds.

    Where the machine's clock was set meanwhile, an age would be absurd: a date then, or that the moment is yet to come.
    """
    if moment > now + SLACK_MS:
        return "in the future (was the clock set?)"
    if now - moment > LONG_MS:
        return f"on {iso_utc(max(0, moment))[:10]}"
    return f"{shown(max(0, now - moment) / 1000)} ago"


def stops_at(moment: int, now: int) -> str:
    """Return ``stops at 17:30 (in 1h 12m)`` for a deadline, in local time; both are Unix times in milliseconds."""
    at, today = (datetime.fromtimestamp(each / 1000).astimezone() for each in (moment, now))
    shown = f"{at:%H:%M}" if at - today < timedelta(hours=20) else f"{at:%Y-%m-%d %H:%M}"
    left = (moment - now) // 1000
    if left <= 0:
        return f"stops at {shown} (now)"
    return f"stops at {shown} (in {duration(left)})"


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _steady_ms() -> int:
    return time.clock_gettime_ns(_STEADY) // 1_000_000
