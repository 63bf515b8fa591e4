"""What the dashboard shows at one instant, as frozen values; two equal snapshots look the same."""

from dataclasses import dataclass
from enum import StrEnum

from etl.domain.statuses import LIVE, QueueStatus, RecordOutcome, RecordState, RunState, Stage
from etl.domain.views import EngineSample, GpuSample, HostProgress, Progress, RunInfo
from etl.state.log import LogLine
from etl.state.read.cost import Cost
from etl.state.read.progress import Exported, ManifestProgress


class StageState(StrEnum):
    """What a stage is doing.  ``waiting``: the run is on it, but nothing is in flight at this instant."""

    EMPTY = "empty"
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    IDLE = "idle"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """One row of the stages.

    Attributes:
        done, total: items; those not needed are left out.
        growing: the total will rise, because an earlier stage still has work.
        queued: items that wait for this stage: those between it and the stage before.
        retrying: items that wait for another attempt.
        per_minute: items per minute; ``None`` when no live run works on the stage.
        eta_s: seconds until the stage is done; ``None`` until the rate has settled.
    """

    stage: Stage
    state: StageState
    done: int
    total: int
    growing: bool
    failed: int
    retrying: int
    queued: int = 0
    per_minute: float | None = None
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class RecordsView:
    """Records of the manifests.  ``total`` counts unselected and invalid ones too, the rest only selected ones.

    ``ended`` are those of which nothing is to be done any more, as `etl.domain.views.Progress` counts them.
    """

    total: int = 0
    selected: int = 0
    ended: int = 0
    captioned: int = 0
    failed: int = 0
    pending: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class ClassView:
    """Items of one stage that failed in one way; ``failed`` ones are given up, the others will retry."""

    stage: str
    error_class: str
    items: int
    failed: bool


@dataclass(frozen=True, slots=True)
class FetchView:
    """How fetch fares.

    Attributes:
        per_s, bytes_per_s: pictures and bytes over the last 60 seconds.
        bytes: of all originals so far.
        hosts: those in trouble first, then the busiest.
        more_hosts: how many others have something to come, and how much that is.
        plot: pictures in each span of the last minutes, oldest first.
        flags: suspicious pictures by what is suspicious, most frequent first.
    """

    per_s: float = 0.0
    bytes_per_s: float = 0.0
    bytes: int = 0
    hosts: tuple[HostProgress, ...] = ()
    more_hosts: tuple[int, int] = (0, 0)
    plot: tuple[int, ...] = ()
    flags: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class CaptionView:
    """How caption fares.

    Attributes:
        per_s, tokens_per_s: captions and their tokens over the last 60 seconds.
        engines: a fresh sample of each worker's engine.
        gpus: a fresh sample of each GPU.
        plot: captions in each span of the last minutes, oldest first.
    """

    per_s: float = 0.0
    tokens_per_s: float = 0.0
    engines: tuple[EngineSample, ...] = ()
    gpus: tuple[GpuSample, ...] = ()
    plot: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that the overview and the log show.

    Attributes:
        problem: why the state cannot be read, in words; everything else is empty then.
        run: the latest run.  Its heartbeat is a part, so a live run makes a new snapshot each second.
        classes: failures by stage and class, most frequent first.
        cost: what the runs have cost, where a price is known.
        log: the latest lines, oldest first.
    """

    problem: str | None = None
    run: RunInfo | None = None
    records: RecordsView = RecordsView()
    stages: tuple[StageView, ...] = ()
    fetch: FetchView = FetchView()
    caption: CaptionView = CaptionView()
    classes: tuple[ClassView, ...] = ()
    cost: Cost | None = None
    log: tuple[LogLine, ...] = ()

    @property
    def live(self) -> bool:
        """Whether a run is there to hear commands."""
        return self.run is not None and self.run.state in LIVE

    @property
    def failed(self) -> int:
        """Items that a retry would put back."""
        return sum(stage.failed for stage in self.stages)


def records_view(progress: Progress) -> RecordsView:
    """Return the summary of the records."""
    return RecordsView(
        total=sum(n for state, n in progress.records.items() if state != RecordState.REMOVED),
        selected=progress.records.get(RecordState.ACTIVE, 0),
        ended=progress.ended,
        captioned=progress.outcomes.get(RecordOutcome.CAPTIONED, 0),
        failed=progress.outcomes.get(RecordOutcome.FAILED, 0),
        pending=progress.outcomes.get(RecordOutcome.PENDING, 0),
        skipped=progress.outcomes.get(RecordOutcome.SKIPPED, 0),
    )


def stage_views(
    progress: Progress, settled: frozenset[Stage], manifests: ManifestProgress, exported: Exported | None
) -> tuple[StageView, ...]:
    """Return the rows of the stages; only stages in ``settled`` get an ETA."""
    ingest = _ingest_view(progress, manifests)
    fetch = _stage_view(Stage.FETCH, progress.sources, progress.fetched_per_s, 0, progress, settled)
    # Nearly every source that is still to be fetched will ask for one caption that is not queued yet.
    coming = open_items(progress.sources)
    caption = _stage_view(Stage.CAPTION, progress.captions, progress.captioned_per_s, coming, progress, settled)
    return ingest, fetch, caption, _export_view(progress, exported, busy=bool(coming or open_items(progress.captions)))


def _ingest_view(progress: Progress, manifests: ManifestProgress) -> StageView:
    invalid = progress.records.get(RecordState.INVALID, 0)
    at_work = _works_on(progress.run, Stage.INGEST) and not manifests.complete
    state = StageState.RUNNING if at_work else StageState.DONE if manifests.complete else StageState.IDLE
    if not manifests.records and not at_work:
        state = StageState.EMPTY
    return StageView(
        stage=Stage.INGEST,
        state=state,
        done=manifests.records,
        total=manifests.records,
        growing=not manifests.complete,
        failed=invalid,
        retrying=0,
    )


def _export_view(progress: Progress, exported: Exported | None, *, busy: bool) -> StageView:
    """An export is written whole at the end of a run, so its row tells only whether that has been."""
    run, total = progress.run, sum(progress.outcomes.values())
    total += progress.records.get(RecordState.UNSELECTED, 0) + progress.records.get(RecordState.INVALID, 0)
    wanted = _works_on(run, Stage.EXPORT)
    if exported is not None and (run is None or exported.run == run.id or not wanted):
        return StageView(
            stage=Stage.EXPORT,
            state=StageState.DONE,
            done=exported.rows,
            total=exported.rows,
            growing=False,
            failed=0,
            retrying=0,
        )
    state = (StageState.WAITING if busy else StageState.RUNNING) if wanted else StageState.EMPTY
    return StageView(
        stage=Stage.EXPORT, state=state, done=0, total=total if wanted else 0, growing=False, failed=0, retrying=0
    )


def _works_on(run: RunInfo | None, stage: Stage) -> bool:
    return run is not None and run.state in LIVE and stage in run.stages


def open_items(counts: dict[str, int]) -> int:
    """Return the items of a queue that are neither done nor given up."""
    return sum(counts.get(status, 0) for status in (QueueStatus.READY, QueueStatus.RUNNING, QueueStatus.RETRY))


def _stage_view(
    stage: Stage, counts: dict[str, int], per_s: float, coming: int, progress: Progress, settled: frozenset[Stage]
) -> StageView:
    remaining = open_items(counts)
    done, failed = counts.get(QueueStatus.DONE, 0), counts.get(QueueStatus.DEAD, 0)
    state = _stage_state(stage, counts, remaining, coming, progress.run)
    at_work = state in (StageState.RUNNING, StageState.WAITING)
    eta = (remaining + coming) / per_s if at_work and stage in settled and per_s > 0 else None
    return StageView(
        stage=stage,
        state=state,
        done=done,
        total=remaining + done + failed,
        growing=coming > 0,
        failed=failed,
        retrying=counts.get(QueueStatus.RETRY, 0),
        queued=counts.get(QueueStatus.READY, 0),
        per_minute=60 * per_s if at_work else None,
        eta_s=eta,
    )


def _stage_state(stage: Stage, counts: dict[str, int], remaining: int, coming: int, run: RunInfo | None) -> StageState:
    if not remaining and not coming:
        return StageState.DONE if any(counts.values()) else StageState.EMPTY
    if run is None or run.state not in LIVE or stage not in run.stages:
        return StageState.IDLE if remaining else StageState.EMPTY
    # What is in flight when a run is paused is still finished.
    if counts.get(QueueStatus.RUNNING, 0):
        return StageState.RUNNING
    return StageState.PAUSED if run.state is RunState.PAUSED else StageState.WAITING
