"""What a run is doing at this moment, beyond its counts: GPUs, caption engines, throughput, manifests, exports."""

from dataclasses import dataclass

from etl.domain.views import EngineSample, GpuSample, Progress
from etl.state.database import ENGINE_VERSION
from etl.state.read.reader import RATE_WINDOW_MS, Reader

FRESH_MS = 30_000
"""A sample that is older says nothing of this moment: they come every 5 s."""

_LATEST = 64
"""Rows read for the latest sample of each GPU or worker: no machine has more of either."""


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
    latest = {row[0]: EngineSample(*row) for row in rows}
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


def manifests(reader: Reader) -> ManifestProgress:
    """Return how much of the manifests has been read."""
    rows, complete = reader.rows("SELECT coalesce(sum(rows), 0), coalesce(min(complete), 1) FROM manifests")[0]
    return ManifestProgress(int(rows), bool(complete))


def last_export(reader: Reader) -> Exported | None:
    """Return the latest export."""
    rows = reader.rows("SELECT run, rows, at FROM exports ORDER BY id DESC LIMIT 1")
    return Exported(*rows[0]) if rows else None
