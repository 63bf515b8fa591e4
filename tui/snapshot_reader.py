"""One look at a state: everything that a `Snapshot` holds, read in a few milliseconds however large the state is.

Counts come from ``counters``.  What must be counted over many rows is read again only when the counters say that it
has changed, and throttled (`tui.throttle`).
"""

from etl.domain.statuses import LIVE, QueueStatus, RecordState, Stage
from etl.domain.views import Progress
from etl.state import log
from etl.state.log import LogLine
from etl.state.read.cost import Cost, cost
from etl.state.read.failures import failure_classes, retry_classes
from etl.state.read.hosts import host_progress, pending_by_host, with_work
from etl.state.read.progress import (
    done_per_span,
    engines,
    gpus,
    image_flag_counts,
    last_export,
    manifest_progress,
    read_progress,
    tokens_per_s,
)
from etl.state.read.reader import Reader
from tui.rates import Steadiness
from tui.snapshot import CaptionView, ClassView, FetchView, Snapshot, records_view, stage_views
from tui.throttle import Throttled

SHOWN_HOSTS = 20
LOG_LINES = 500

SPAN_MS, SPANS = 10_000, 60
"""The plots: items done in each ten seconds of the last ten minutes."""


class SnapshotReader:
    """Reads again and again; knows what it saw before."""

    def __init__(self, price: float = 0.0) -> None:
        self._price = price
        self._steady = {Stage.FETCH: Steadiness(), Stage.CAPTION: Steadiness()}
        self._classes: Throttled[tuple[ClassView, ...]] = Throttled()
        self._pending: Throttled[dict[str, int]] = Throttled()
        self._flags: Throttled[tuple[tuple[str, int], ...]] = Throttled()
        self._cost: Throttled[tuple[Cost | None]] = Throttled()
        self._log: Throttled[tuple[LogLine, ...]] = Throttled()
        self._plots = {"sources": _Plot("sources"), "captions": _Plot("captions")}

    def read(self, reader: Reader) -> Snapshot:
        """Return what the state shows now."""
        progress = read_progress(reader)
        stages = stage_views(progress, self._settled(progress), manifest_progress(reader), last_export(reader))
        return Snapshot(
            run=progress.run,
            records=records_view(progress),
            stages=stages,
            fetch=self._fetch(reader, progress),
            caption=self._caption(reader, progress),
            classes=self._classes.get(_failed(progress), lambda: _classes(reader)),
            cost=self._cost.get(progress.run, lambda: (cost(reader, self._price),))[0],
            log=self._log.get(log.stamp(reader.state), lambda: log.tail(reader.state, LOG_LINES)),
        )

    def _settled(self, progress: Progress) -> frozenset[Stage]:
        run = progress.run
        uid = run.uid if run is not None and run.state in LIVE else None
        rates = {Stage.FETCH: progress.fetched_per_s, Stage.CAPTION: progress.captioned_per_s}
        return frozenset([stage for stage, per_s in rates.items() if self._steady[stage].add(uid, per_s)])

    def _fetch(self, reader: Reader, progress: Progress) -> FetchView:
        counts = tuple(progress.sources.items())
        pending = self._pending.get(counts, lambda: pending_by_host(reader))
        hosts = host_progress(reader, progress, pending)
        return FetchView(
            progress.fetched_per_s,
            progress.bytes_per_s,
            progress.bytes_fetched,
            tuple(hosts[:SHOWN_HOSTS]),
            with_work(hosts[SHOWN_HOSTS:]),
            self._plots["sources"].read(reader, progress.at),
            self._flags.get(counts, lambda: tuple(image_flag_counts(reader).items())),
        )

    def _caption(self, reader: Reader, progress: Progress) -> CaptionView:
        run = progress.run if progress.run is not None and progress.run.state in LIVE else None
        return CaptionView(
            progress.captioned_per_s,
            tokens_per_s(reader, progress),
            engines(reader, run.id, progress.at) if run else (),
            gpus(reader, run.id, progress.at) if run else (),
            self._plots["captions"].read(reader, progress.at),
        )


class _Plot:
    """How many items of one queue were done in each span; only the latest spans are counted again."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._counts: dict[int, int] = {}
        self._counted_to = 0
        self._first_look = True

    def read(self, reader: Reader, now: int) -> tuple[int, ...]:
        """Return the spans that are over, from the first on in which anything was done.

        The first look returns none: counting ten minutes of a fast run takes a moment, and the figures must not wait.
        """
        if self._first_look:
            self._first_look = False
            return ()
        present = now // SPAN_MS
        since = max(self._counted_to, present - SPANS)
        if present > self._counted_to:
            # The span that was present then has grown since.
            self._counts = {span: n for span, n in self._counts.items() if present - SPANS <= span < since}
            self._counts |= done_per_span(reader, self._table, since * SPAN_MS, SPAN_MS)
            self._counted_to = present
        first = min((span for span, n in self._counts.items() if n), default=present)
        return tuple(self._counts.get(span, 0) for span in range(max(first, present - SPANS), present))


def _failed(progress: Progress) -> tuple[int, ...]:
    """Return the counts that change whenever something fails, waits or is tried again."""
    queues = (progress.sources, progress.captions)
    statuses = (QueueStatus.DEAD, QueueStatus.RETRY, QueueStatus.READY)
    counts = [counts.get(status, 0) for counts in queues for status in statuses]
    return (*counts, progress.records.get(RecordState.INVALID, 0))


def _classes(reader: Reader) -> tuple[ClassView, ...]:
    views = [ClassView(stage, slug, n, failed=True) for stage, slug, n in failure_classes(reader)]
    views += [ClassView(stage, slug, n, failed=False) for stage, slug, n in retry_classes(reader)]
    return tuple(sorted(views, key=lambda view: (-view.items, view.stage, view.error_class, view.failed)))
