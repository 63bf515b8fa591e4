"""Pictures that their hosts are making ready (HTTP 202): each is asked for again, at no charge, for a while."""

import time
from typing import Self

from etl.clock import now_ms
from etl.errors import PendingError
from etl.fetch.hosts.limiter import HostNotReadyError
from etl.settings import Settings
from etl.state.work_queue import RetryPolicy


class Pending:
    """How long each has been waited for in this run.

    Args:
        patience_s: seconds of waiting for one picture that cost no attempt.
        policy: how long a wait is where the host names none.
    """

    def __init__(self, patience_s: float, policy: RetryPolicy) -> None:
        self._patience_s = patience_s
        self._policy = policy
        self._asked: dict[str, tuple[float, int]] = {}

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return nothing waited for yet, and the waits of the settings."""
        return cls(settings.host_patience, RetryPolicy.of(settings))

    def put_off(self, url: str, error: PendingError) -> None:
        """Raise `HostNotReadyError` with when a picture may be ready; do nothing once its time is over."""
        now = time.monotonic()
        since, times = self._asked.get(url, (now, 0))
        wait_ms = self._policy.wait_ms(times + 1, error.retry_after_s)
        if now + wait_ms / 1000 > since + self._patience_s:
            return
        self._asked[url] = since, times + 1
        raise HostNotReadyError(now_ms() + wait_ms) from error
