"""How many sources are claimed of which host: what can start now, and what may wait for a slot."""

from collections.abc import Callable

from etl.fetch.hosts.limiter import HostLimiter
from etl.state.sources import SourceQueue


class Claims:
    """Looks at hosts one after the other, beginning behind the last one served.

    Args:
        queue, limiter: of the run.
        per_blocked: sources to claim at once of a host that may not be asked: of what mirrors have; 0 without mirrors.
    """

    def __init__(self, queue: SourceQueue, limiter: HostLimiter, per_blocked: int) -> None:
        self._queue = queue
        self._limiter = limiter
        self._per_blocked = per_blocked
        self._last_host = ""

    def wanted(self, free: int, is_known: Callable[[str], bool]) -> dict[str, int]:
        """Return how many sources to claim of each host: at most ``free`` that can start now, and then some more.

        What is claimed ahead waits at the limiter, and takes a slot in the moment in which one becomes free.  A host
        for which ``is_known`` is false would wait for its name in a slot that others could use.
        """
        hosts = self._queue.ready_hosts(after=self._last_host, only=is_known)
        if not hosts and self._last_host:
            hosts = self._queue.ready_hosts(only=is_known)
            self._last_host = ""
        wanted: dict[str, int] = {}
        left = min(self._limiter.free(""), free)
        for host in hosts:
            wanted[host] = max(0, min(self._free(host), left))
            left -= wanted[host]
            self._last_host = host
        left = self._limiter.total - self._limiter.waiting if free > sum(wanted.values()) else 0
        for host in hosts:
            ahead = max(0, min(self._limiter.ahead(host), left))
            wanted[host] += ahead
            left -= ahead
        return {host: most for host, most in wanted.items() if most}

    def _free(self, host: str) -> int:
        if self._per_blocked and self._limiter.blocked_until_ms(host) is not None:
            return min(self._limiter.free(""), self._per_blocked)
        return self._limiter.free(host)
