"""What a run is doing: counts and rates, hosts, GPUs, caption engines, manifests, exports."""

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass

from etl.clock import now_ms
from etl.domain.statuses import Stage
from etl.domain.views import EngineSample, GpuSample, HostProgress, Progress
from etl.state.database import ENGINE_VERSION, FLAGS_VERSION
from etl.state.read.cost import cost
from etl.state.read.failures import CURRENT, failure_classes, retry_classes
from etl.state.read.hosts import host_progress, pending_by_host, with_work
from etl.state.read.reader import RATE_WINDOW_MS, Reader
from etl.state.read.runs import latest_runs

SHOWN_HOSTS = 8
"""Hosts in a `Progress`: the busiest ones, and those in trouble."""

COUNT_S = 10.0
"""Seconds between two counts of what is to come, which takes longer the more there is."""

FRESH_MS = 30_000
"""A sample that is older says nothing of this moment: they come every 5 s."""

_LATEST = 64
"""Rows read for the latest sample of each GPU or worker: no machine has more of either."""


def read_progress(reader: Reader) -> Progress:
    """Return all counts and rates at one instant; constant time whatever the size of the state."""
    with reader.snapshot():
        counts: dict[str, dict[str, int]] = {
            "records": {},
            "outcomes": {},
            "sources": {},
            "captions": {},
            "images": {},
        }
        for stage, status, n in reader.rows(f"SELECT stage, status, n FROM counters WHERE recipe = 0 OR {CURRENT}"):
            counts[stage][status] = n
        runs = latest_runs(reader, 1)
        now = now_ms()
        fetched, size = _window(reader, "sources", now)
        captioned, _ = _window(reader, "captions", now)
    span = RATE_WINDOW_MS / 1000
    if runs and now - runs[0].started_at < RATE_WINDOW_MS:
        span = max(1.0, (now - runs[0].started_at) / 1000)
    return Progress(
        records=counts["records"],
        outcomes=counts["outcomes"],
        sources=counts["sources"],
        captions=counts["captions"],
        bytes_fetched=counts["images"].get("bytes", 0),
        fetched_per_s=fetched / span,
        captioned_per_s=captioned / span,
        bytes_per_s=size / span,
        run=runs[0] if runs else None,
        at=now,
    )


def _window(reader: Reader, table: str, now: int) -> tuple[int, int]:
    """Return items done and bytes fetched within the last `RATE_WINDOW_MS`."""
    size = "coalesce(sum(i.bytes), 0)" if table == "sources" else "0"
    join = "JOIN images i ON i.id = t.image" if table == "sources" else ""
    row = reader.rows(
        f"SELECT count(*), {size} FROM {table} t {join} WHERE t.status = 'done' AND t.done_at > ? AND t.done_at <= ?",
        (now - RATE_WINDOW_MS, now),
    )[0]
    return int(row[0]), int(row[1])


class ProgressReader:
    """`Progress` with its hosts, for whoever shows it again and again."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._pending: dict[str, int] = {}
        self._flags: dict[str, int] = {}
        self._image_flags: dict[str, int] = {}
        self._counted_at = float("-inf")

    def progress(self) -> Progress:
        """Return all counts and rates at one instant, by host too."""
        progress = read_progress(self._reader)
        if time.monotonic() - self._counted_at >= COUNT_S:
            self._pending = pending_by_host(self._reader)
            self._flags = flag_counts(self._reader)
            self._image_flags = image_flag_counts(self._reader)
            self._counted_at = time.monotonic()
        hosts = host_progress(self._reader, progress, self._pending)
        spent = cost(self._reader)
        errors = {
            slug: n
            for stage, slug, n in (*failure_classes(self._reader), *retry_classes(self._reader))
            if stage == Stage.FETCH
        }
        return dataclasses.replace(
            progress,
            hosts=tuple(hosts[:SHOWN_HOSTS]),
            more_hosts=with_work(hosts[SHOWN_HOSTS:]),
            fetch_errors=errors,
            fetch_seconds=_seconds(hosts),
            flags=self._flags,
            image_flags=self._image_flags,
            spent=spent.run if spent else None,
        )


def _seconds(shown: list[HostProgress]) -> float | None:
    """Return the seconds until the slowest host is done; ``None`` while a host with work has no rate."""
    times = [host.pending / host.items_per_s if host.items_per_s else None for host in shown if host.pending]
    known = [each for each in times if each is not None]
    return max(known, default=0.0) if len(known) == len(times) else None


def flag_counts(reader: Reader) -> dict[str, int]:
    """Return how many finished captions of the current recipe carry which quality flag, most frequent first."""
    return _by_flag(reader.rows(f"SELECT flags, count(*) FROM captions WHERE flags <> '' AND {CURRENT} GROUP BY flags"))


def image_flag_counts(reader: Reader) -> dict[str, int]:
    """Return how many sources gave an image with which flag, most frequent first; a placeholder has many."""
    if reader.version < FLAGS_VERSION:
        return {}
    return _by_flag(
        reader.rows(
            "SELECT i.flags, count(*) FROM images i JOIN sources s ON s.image = i.id WHERE i.flags <> '' "
            "GROUP BY i.flags"
        )
    )


def _by_flag(rows: list[tuple[str, int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for flags, n in rows:
        counts.update(dict.fromkeys(flags.split(","), n))
    return dict(counts.most_common())


@dataclass(frozen=True, slots=True)
class ManifestProgress:
    """How much of the manifests has been read.

    Attributes:
        records: rows made of them so far.
        complete: whether each was read to its end.
    """

    records: int = 0
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Exported:
    """The latest export: the run that wrote it, its rows, and when, Unix milliseconds."""

    run: int
    rows: int
    at: int


def gpus(reader: Reader, run: int, now: int) -> tuple[GpuSample, ...]:
    """Return the latest sample of each GPU of a run, if it is fresh; in the driver's order."""
    rows = reader.rows(
        "SELECT gpu, load_percent, memory_used, memory_total, power_w FROM "
        f"(SELECT * FROM gpu_samples ORDER BY id DESC LIMIT {_LATEST}) WHERE run = ? AND at > ? ORDER BY id",
        (run, now - FRESH_MS),
    )
    latest = {row[0]: GpuSample(*row) for row in rows}
    return tuple(latest[gpu] for gpu in sorted(latest))


def engines(reader: Reader, run: int, now: int) -> tuple[EngineSample, ...]:
    """Return the latest sample of each worker's caption engine, if it is fresh; nothing from an older schema."""
    if reader.version < ENGINE_VERSION:
        return ()
    rows = reader.rows(
        "SELECT worker, slots, in_use, waiting, captions, tokens FROM "
        f"(SELECT * FROM engine_samples ORDER BY id DESC LIMIT {_LATEST}) WHERE run = ? AND at > ? ORDER BY id",
        (run, now - FRESH_MS),
    )
    latest = {
        worker: EngineSample(
            worker=worker, slots=slots, in_use=in_use, waiting=waiting, captions=captions, tokens=tokens
        )
        for worker, slots, in_use, waiting, captions, tokens in rows
    }
    return tuple(latest[worker] for worker in sorted(latest))


def tokens_per_s(reader: Reader, progress: Progress) -> float:
    """Return the tokens of finished captions per second, over the last `RATE_WINDOW_MS`."""
    tokens = reader.rows(
        "SELECT coalesce(sum(tokens), 0) FROM captions WHERE status = 'done' AND done_at > ? AND done_at <= ?",
        (progress.at - RATE_WINDOW_MS, progress.at),
    )[0][0]
    since = progress.run.started_at if progress.run else 0
    return float(tokens) / max(1.0, min(RATE_WINDOW_MS, progress.at - since) / 1000)


def done_per_span(reader: Reader, table: str, since: int, span_ms: int) -> dict[int, int]:
    """Return how many items of a queue (``sources``, ``captions``) were done in each span of time since an instant.

    A span is numbered by its begin, Unix milliseconds, divided by its length.
    """
    return dict(
        reader.rows(
            f"SELECT done_at / ?, count(*) FROM {table} WHERE status = 'done' AND done_at >= ? GROUP BY 1",
            (span_ms, since),
        )
    )


def manifest_progress(reader: Reader) -> ManifestProgress:
    """Return how much of the manifests has been read."""
    rows, complete = reader.rows("SELECT coalesce(sum(rows), 0), coalesce(min(complete), 1) FROM manifests")[0]
    return ManifestProgress(int(rows), bool(complete))


def last_export(reader: Reader) -> Exported | None:
    """Return the latest export."""
    rows = reader.rows("SELECT run, rows, at FROM exports ORDER BY id DESC LIMIT 1")
    return Exported(*rows[0]) if rows else None
