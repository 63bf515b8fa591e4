"""Ages as people read them, also where the clock was set between what is told and its telling."""

import pytest

from etl.clock import LONG_MS, SLACK_MS, ago
from etl.units import duration

NOW = 1_795_975_777_000


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        (NOW, "0s ago"),
        (NOW - 5000, "5s ago"),
        (NOW - 7_380_000, "2h 03m ago"),
        (NOW - LONG_MS, "100d 0h ago"),
        (NOW - LONG_MS - 1, "on 2026-08-21"),
        (NOW - 315_529_200_000, "on 2016-11-29"),
        (0, "on 1970-01-01"),
        (-(2**62), "on 1970-01-01"),
        (NOW + SLACK_MS, "0s ago"),
        (NOW + SLACK_MS + 1, "in the future (was the clock set?)"),
        (2**62, "in the future (was the clock set?)"),
    ],
)
def test_no_age_is_negative_or_absurd(moment: int, words: str) -> None:
    """What lies ahead says so, what lies far back is a date, and another process's clock may be a little ahead."""
    assert ago(moment, NOW, duration) == words
