"""How fetch fares host by host, what is still to come, and which captions are suspicious."""

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator

from etl.clock import now_ms
from etl.domain.statuses import HostState, Stage
from etl.domain.views import HostInfo, HostProgress, Progress
from etl.state.database import HOSTS_VERSION, known
from etl.state.read.failures import CURRENT
from etl.state.read.reader import PAGE, RATE_WINDOW_MS, Reader

SHOWN_HOSTS = 8
"""Hosts in a `Progress`: the busiest ones, and those in trouble."""

COUNT_S = 10.0
"""Seconds between two counts of what is to come, which takes longer the more there is."""


class Outlook:
    """`Progress` with its hosts, for whoever shows it again and again."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._pending: dict[str, int] = {}
        self._flags: dict[str, int] = {}
        self._counted_at = float("-inf")

    def progress(self) -> Progress:
        """Return all counts and rates at one instant, by host too."""
        progress = self._reader.progress()
        if time.monotonic() - self._counted_at >= COUNT_S:
            self._pending = pending_by_host(self._reader)
            self._flags = flag_counts(self._reader)
            self._counted_at = time.monotonic()
        rates = host_rates(self._reader, progress)
        known = {info.host: info for info in hosts(self._reader)}
        shown = [
            HostProgress(known.get(name, HostInfo(name)), self._pending.get(name, 0), *rates.get(name, (0.0, 0.0)))
            for name in dict.fromkeys((*rates, *self._pending, *known))
            if name
        ]
        shown.sort(key=lambda host: (host.info.state is HostState.HEALTHY, -host.items_per_s, -host.pending))
        errors = {
            slug: n
            for stage, slug, n in (*self._reader.failure_classes(), *self._reader.waiting_classes())
            if stage == Stage.FETCH
        }
        return dataclasses.replace(
            progress, hosts=tuple(shown[:SHOWN_HOSTS]), fetch_errors=errors, fetch_seconds=_seconds(shown),
            flags=self._flags,
        )  # fmt: skip


def hosts(reader: Reader) -> list[HostInfo]:
    """Return how each host fares, in alphabetical order; nothing for a state that no newer version has written.

    A pause that is over shows as open: whoever wrote it may be gone.
    """
    if reader.version < HOSTS_VERSION:
        return []
    rows = reader.rows(
        "SELECT host, CASE WHEN state IN ('paused', 'parked') AND until <= ? THEN 'open' ELSE state END, reason, "
        "until, allowed, in_flight, done, failed, bytes, busy_ms, updated_at FROM hosts ORDER BY host",
        (now_ms(),),
    )
    return [HostInfo(row[0], known(HostState, row[1]), *row[2:]) for row in rows]


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


def pending_by_host(reader: Reader) -> dict[str, int]:
    """Return how many sources of each host are still to be fetched."""
    return dict(reader.rows("SELECT host, count(*) FROM sources WHERE status IN ('ready', 'retry') GROUP BY host"))


def flag_counts(reader: Reader) -> dict[str, int]:
    """Return how many finished captions of the current recipe carry which quality flag, most frequent first."""
    counts: Counter[str] = Counter()
    for flags, n in reader.rows(f"SELECT flags, count(*) FROM captions WHERE flags <> '' AND {CURRENT} GROUP BY flags"):
        counts.update(dict.fromkeys(flags.split(","), n))
    return dict(counts.most_common())


def open_sources(reader: Reader, *, fetched_too: bool = False) -> Iterator[tuple[int, str, str, bool, bytes]]:
    """Yield ``(source, url, host, was tried before, line)`` for each line of an active record whose source is due.

    Lines of one source follow each other.  With ``fetched_too``, sources that are done count as due.
    """
    wanted = "'ready', 'retry', 'done'" if fetched_too else "'ready', 'retry'"
    after = (0, 0)
    while rows := reader.rows(
        "SELECT s.id, r.id, s.url, s.host, s.attempts > 0 AND s.status <> 'done', l.line FROM sources s "
        "JOIN records r ON r.source = s.id AND r.state = 'active' JOIN record_lines l ON l.record = r.id "
        f"WHERE s.status IN ({wanted}) AND s.id >= ? AND (s.id, r.id) > (?, ?) ORDER BY s.id, r.id LIMIT ?",
        (after[0], *after, PAGE),
    ):
        yield from ((source, url, host, bool(tried), line) for source, _, url, host, tried, line in rows)
        after = rows[-1][:2]


def image_sizes(reader: Reader) -> tuple[float, float]:
    """Return the mean bytes of a working copy and of an original, over all images so far; zeros for none."""
    row = reader.rows("SELECT coalesce(avg(working_bytes), 0), coalesce(avg(bytes), 0) FROM images")[0]
    return float(row[0]), float(row[1])


def _seconds(shown: list[HostProgress]) -> float | None:
    """Return the seconds until the slowest host is done; ``None`` while a host with work has no rate."""
    times = [host.pending / host.items_per_s if host.items_per_s else None for host in shown if host.pending]
    known = [each for each in times if each is not None]
    return max(known, default=0.0) if len(known) == len(times) else None
