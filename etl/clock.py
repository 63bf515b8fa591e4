"""The one clock of the state: Unix time in whole milliseconds, UTC."""

import time
from datetime import UTC, datetime


def now_ms() -> int:
    """Return the current Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def iso_utc(milliseconds: int) -> str:
    """Return ``2025-12-16T10:30:00.000Z`` for a Unix time in milliseconds."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"
