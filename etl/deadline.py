"""Until when a run may take: what a user may write, and how much of it is left.

A deadline is turned into a moment once, when the run begins, and from then on measured with a clock that nobody sets.
"""

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from etl.errors import ConfigError
from etl.units import SECONDS, parse

ACCEPTED = "a time (17:30), a date and time (2026-11-25T17:30, also with a zone) or a duration (90m, 2h30m, +2h)"

_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?")
_NUMBER = re.compile(r"[+-]?[\d.,_]*")
_MOMENT = re.compile(r"\d{4}-?\d\d-?\d\d[T ]\d.*")


def moment(text: str, now: datetime) -> datetime:
    """Return when ``text`` means, in a zone; a time of the day is the next one behind ``now`` in its zone.

    Raises `ConfigError` for a text that is none of what is `ACCEPTED`.
    """
    text = text.strip()
    try:
        if clock := _CLOCK.fullmatch(text):
            hour, minute, second = (int(part or 0) for part in clock.groups())
            local = now.astimezone().replace(tzinfo=None, hour=hour, minute=minute, second=second, microsecond=0)
            # Through local time without a zone: a day may have 23 or 25 hours.
            return next(day for n in (0, 1) if (day := (local + timedelta(days=n)).astimezone()) > now or n)
        if _MOMENT.fullmatch(text):
            return datetime.fromisoformat(text).astimezone()
        # A bare number might be an hour as well.
        if not _NUMBER.fullmatch(text):
            # What it says of durations alone would stand before what a deadline may be.
            with suppress(ValueError):
                return now.astimezone() + timedelta(seconds=parse(text.removeprefix("+"), SECONDS))
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"deadline = {text[:40]!r}: {error}; give {ACCEPTED}") from error
    raise ConfigError(f"deadline = {text[:40]!r}: give {ACCEPTED}")


@dataclass(frozen=True)
class Deadline:
    """The moment at which a run wants to have ended.

    Attributes:
        at: the moment, for people and for the state.
        ends: the same on the clock of `time.monotonic`.
    """

    at: datetime
    ends: float

    @classmethod
    def begin(cls, text: str) -> "Deadline | None":
        """Return the deadline that counts from now; ``None`` for an empty text.

        Raises `ConfigError` for one that is over already.
        """
        if not text:
            return None
        now = datetime.now().astimezone()
        at = moment(text, now)
        left = (at - now).total_seconds()
        if left <= 0:
            raise ConfigError(f"the deadline {text} is over ({at:%Y-%m-%d %H:%M:%S}); give a later one")
        return cls(at, time.monotonic() + left)

    def left(self) -> float:
        """Return the seconds until then; negative when it is over."""
        return self.ends - time.monotonic()
