"""How fetch fares host by host."""

from collections.abc import Iterable, Mapping

from etl.clock import now_ms
from etl.domain.statuses import HostState
from etl.domain.views import HostInfo, HostProgress, Progress
from etl.state.database import HOSTS_VERSION, known
from etl.state.read.reader import RATE_WINDOW_MS, Reader


def all_hosts(reader: Reader) -> list[HostInfo]:
    """Return how each host fares, in alphabetical order; nothing for a state that no newer version has written.

    A pause that is over shows as open: whoever wrote it may be gone.  A host that has not given one picture stays as
    one that does not answer until it is asked again.
    """
    if reader.version < HOSTS_VERSION:
        return []
    rows = reader.rows(
        "SELECT host, CASE WHEN until <= ? AND (state = 'paused' OR (state = 'parked' AND done > 0)) THEN 'open' "
        "ELSE state END, reason, until, allowed, in_flight, done, failed, bytes, busy_ms, updated_at FROM hosts "
        "ORDER BY host",
        (now_ms(),),
    )
    return [
        HostInfo(
            host=host,
            state=known(HostState, state),
            reason=reason,
            until=until,
            allowed=allowed,
            in_flight=in_flight,
            done=done,
            failed=failed,
            bytes=size,
            busy_ms=busy_ms,
            updated_at=updated_at,
        )
        for host, state, reason, until, allowed, in_flight, done, failed, size, busy_ms, updated_at in rows
    ]


def in_trouble(host: HostProgress) -> bool:
    """Tell whether a host is not treated as others are; one that does not answer and has nothing to come is in none."""
    info = host.info
    if info.state is HostState.NOT_ANSWERING and not (host.pending or info.in_flight):
        return info.until is not None and info.until > now_ms()
    return info.state is not HostState.HEALTHY


def host_rates(reader: Reader, progress: Progress) -> dict[str, tuple[float, float]]:
    """Return ``(pictures per second, bytes per second)`` of each host over the last `RATE_WINDOW_MS`."""
    rows = reader.rows(
        "SELECT s.host, count(*), coalesce(sum(i.bytes), 0) FROM sources s JOIN images i ON i.id = s.image "
        "WHERE s.status = 'done' AND s.done_at > ? AND s.done_at <= ? GROUP BY s.host",
        (progress.at - RATE_WINDOW_MS, progress.at),
    )
    since = progress.run.started_at if progress.run else 0
    span_s = max(1.0, min(RATE_WINDOW_MS, progress.at - since) / 1000)
    return {host: (n / span_s, size / span_s) for host, n, size in rows}


def host_progress(reader: Reader, progress: Progress, pending: Mapping[str, int]) -> list[HostProgress]:
    """Return how all hosts fare, those in trouble first, then the busiest; ``pending`` is `pending_by_host`."""
    rates = host_rates(reader, progress)
    known = {info.host: info for info in all_hosts(reader)}
    found = [
        HostProgress(known.get(name, HostInfo(host=name)), pending.get(name, 0), *rates.get(name, (0.0, 0.0)))
        for name in dict.fromkeys((*rates, *pending, *known))
        if name
    ]
    found.sort(key=lambda host: (not in_trouble(host), -host.items_per_s, -host.pending, host.info.host))
    return found


def with_work(hosts: Iterable[HostProgress]) -> tuple[int, int]:
    """Return how many of the hosts have something to come, and how much that is."""
    pending = [host.pending for host in hosts if host.pending]
    return len(pending), sum(pending)


def pending_by_host(reader: Reader) -> dict[str, int]:
    """Return how many sources of each host are still to be fetched."""
    return dict(reader.rows("SELECT host, count(*) FROM sources WHERE status IN ('ready', 'retry') GROUP BY host"))


def due_hosts(reader: Reader, limit: int) -> dict[str, tuple[str, int]]:
    """Return, by host, a URL still to be fetched and how many there are, hosts with the most first."""
    rows = reader.rows(
        "SELECT host, (SELECT url FROM sources WHERE id = first), n FROM (SELECT host, min(id) AS first, count(*) AS n "
        "FROM sources WHERE status IN ('ready', 'retry') AND host <> '' GROUP BY host ORDER BY n DESC, host LIMIT ?)",
        (limit,),
    )
    return {host: (url, n) for host, url, n in rows}


def source_hosts(reader: Reader) -> list[str]:
    """Return the hosts of all sources, in alphabetical order; an empty one is that of local files."""
    return [host for (host,) in reader.rows("SELECT DISTINCT host FROM sources ORDER BY host")]
