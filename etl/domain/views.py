"""What is shown of a state and told of a run: counts, runs, hosts, GPUs, progress."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from etl.domain.statuses import (
    HostState,
    QualityFlag,
    RecordOutcome,
    RecordState,
    RunState,
    Stage,
)
from etl.units import count


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureFilter:
    """Which failed items `retry-failed` means; a ``None`` field does not restrict.

    Attributes:
        flag: not failed items are meant, but the finished captions with this quality flag (`etl.state.requeue`).
        repetition_penalty: how those are made again; ``None`` for the usual one.
    """

    stage: Stage | None = None
    error_class: str | None = None
    host: str | None = None
    key: str | None = None
    flag: QualityFlag | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSummary:
    """What one ingest did.

    Attributes:
        unchanged: the file was already complete in the state.
        skipped: how many files of a directory were passed over, by kind: a suffix, or what they are otherwise.
    """

    path: Path | str
    records: int
    selected: int
    unselected: int
    invalid: int
    removed: int
    added: int
    changed: int
    unchanged: bool = False
    resumed_at: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)


_SHOWN_KINDS = 5


def skipped_words(skipped: Mapping[str, int]) -> str:
    """Return in words how many files of a directory were passed over; empty for none."""
    if not skipped:
        return ""
    total = sum(skipped.values())
    kinds = sorted(skipped.items(), key=lambda kind: (-kind[1], kind[0]))
    shown = [f"{number:,} {kind}" for kind, number in kinds[:_SHOWN_KINDS]]
    if rest := sum(number for _, number in kinds[_SHOWN_KINDS:]):
        shown.append(count(rest, "other"))
    return f"skipped {count(total, 'file')}: {', '.join(shown)}"


@dataclass(frozen=True, slots=True)
class StageSummary:
    """What a fetch or caption stage did: items by how they ended in this run.

    Attributes:
        lost: captions that wait, uncharged, until their picture has been fetched again.
    """

    done: int = 0
    retried: int = 0
    dead: int = 0
    released: int = 0
    lost: int = 0

    def plus(self, other: "StageSummary") -> "StageSummary":
        """Return what two rounds of the stage did together."""
        return StageSummary(
            self.done + other.done,
            self.retried + other.retried,
            self.dead + other.dead,
            self.released + other.released,
            self.lost + other.lost,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What one export holds.

    Attributes:
        failed, invalid: as `etl status` counts them: selected records that failed, and lines that are no record.
        left_out: invalid lines that are not JSON objects, and so in no export.
        skipped: records that were not to be captioned for a flag of their image; they come out as they went in.
        size, sha256: of the lines before compression; of a directory the bytes of its shards, and a hash over theirs.
        format: as `etl.export.lines.FORMATS`, with ``-since`` behind it for a part of the records and
            ``-shards`` for a directory.
        shards, written: files of a directory, and how many of them were missing or had changed.
        files: whether each row is a file of its own; ``written`` is then of those.
        foreign: files of other programs, or changed since they were written, that were in the way and were left.
        reduced: pictures in it that have fewer pixels than their originals.
        without_original: pictures in it that are working copies although originals were asked for.
        without_picture: captioned records that a format with pictures lacks, because theirs has left the cache.
    """

    path: Path | str
    rows: int
    captioned: int
    failed: int
    pending: int
    unselected: int
    invalid: int
    left_out: int
    size: int
    sha256: str
    format: str = "jsonl"
    shards: int = 0
    written: int = 0
    reduced: int = 0
    without_original: int = 0
    without_picture: int = 0
    skipped: int = 0
    files: bool = False
    foreign: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """One row of ``runs``, as readers see it.  Times are Unix milliseconds.

    Attributes:
        stops_at: when the run wants to have ended; ``None`` without a deadline.
    """

    id: int
    uid: str
    stages: tuple[str, ...]
    state: RunState
    started_at: int
    heartbeat_at: int
    ended_at: int | None
    host: str
    pid: int
    message: str | None = None
    stops_at: int | None = None


@dataclass(frozen=True, slots=True)
class RunWork:
    """What a run has done: pictures fetched, captions made, and records that ended as failed."""

    fetched: int = 0
    captioned: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """One row of ``hosts``: how a host fares.

    Attributes:
        host: its name in lower case.
        state: how it is treated now.
        reason: why it is not open, for people.
        until: when a pause or parking ends, Unix milliseconds.
        allowed: requests that may run at once.
        in_flight: requests that run.
        done, failed: pictures fetched, and failed attempts, over all runs.
        bytes: received from it, over all runs.
        busy_ms: time with at least one request under way, over all runs; gives the rates seen so far.
        updated_at: when this was written, Unix milliseconds.
    """

    host: str
    state: HostState = HostState.HEALTHY
    reason: str | None = None
    until: int | None = None
    allowed: int = 0
    in_flight: int = 0
    done: int = 0
    failed: int = 0
    bytes: int = 0
    busy_ms: int = 0
    updated_at: int = 0


@dataclass(frozen=True, slots=True)
class HostProgress:
    """How one host fares.

    Attributes:
        info: as fetch last wrote it.
        pending: sources of the host that are still to be fetched.
        items_per_s, bytes_per_s: over the last 60 seconds.
    """

    info: HostInfo
    pending: int
    items_per_s: float = 0.0
    bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GpuSample:
    """Load of one GPU at one instant; ``None`` where the driver does not tell.

    Attributes:
        gpu: the driver's index.
        load_percent: share of time with a kernel running.
        memory_used, memory_total: bytes.
        power_w: watts.
    """

    gpu: int
    load_percent: int | None
    memory_used: int | None
    memory_total: int | None
    power_w: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSample:
    """How busy the caption engine of one worker is at one instant.

    Attributes:
        worker: 0, or the number of the worker where there is one for each GPU, or of the endpoint.
        slots: captions that it can write at once; the batch size where the engine knows no slots, and the requests
            that an endpoint may be sent at once.
        in_use: captions that it is writing.
        waiting: pictures that are prepared and wait for a slot.
        captions, tokens: finished since the worker began; they start again at 0 with a new run or worker.
    """

    worker: int
    slots: int
    in_use: int
    waiting: int
    captions: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Download:
    """How far the download of a model's weights has come.

    Attributes:
        done, total: bytes, those that earlier runs left included.
        bytes_per_s: since this run began with it.
    """

    done: int
    total: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Counts at one instant, from one short read transaction.

    Attributes:
        records: per `RecordState`.
        outcomes: per `RecordOutcome`, active records only.
        sources, captions: per `QueueStatus`; captions of the current recipe only.
        bytes_fetched: bytes of the distinct originals fetched so far.
        fetched_per_s, captioned_per_s, bytes_per_s: over the last 60 seconds.
        run: the latest run, when there was one.
        at: the instant, Unix milliseconds.
        hosts: the busiest hosts and those in trouble, where they were asked for (`etl.state.read.progress`).
        more_hosts: how many others have something to come, and how much that is; as ``hosts``.
        fetch_errors: sources that failed or wait for another attempt, by error class; as ``hosts``.
        fetch_seconds: until the slowest host is done; ``None`` while its rate is not known; as ``hosts``.
        flags: finished captions of the current recipe by quality flag; as ``hosts``.
        image_flags: fetched sources by the flags of their images; as ``hosts``.
        spent: what the latest run has cost so far; ``None`` where no price is known; as ``hosts``.
        device: what captions, in words; empty until that is known, and for who is not in the run's process.
        loading: whether the model is being loaded; as ``device``.
        download: of the model's weights, while that lasts; as ``device``.
    """

    records: dict[str, int]
    outcomes: dict[str, int]
    sources: dict[str, int]
    captions: dict[str, int]
    bytes_fetched: int = 0
    fetched_per_s: float = 0.0
    captioned_per_s: float = 0.0
    bytes_per_s: float = 0.0
    run: RunInfo | None = None
    at: int = 0
    hosts: tuple[HostProgress, ...] = ()
    more_hosts: tuple[int, int] = (0, 0)
    fetch_errors: dict[str, int] = field(default_factory=dict)
    fetch_seconds: float | None = None
    flags: dict[str, int] = field(default_factory=dict)
    image_flags: dict[str, int] = field(default_factory=dict)
    spent: float | None = None
    device: str = ""
    loading: bool = False
    download: Download | None = None

    @property
    def ended(self) -> int:
        """Selected records of which nothing is to be done any more: captioned, failed or skipped."""
        return self.records.get(RecordState.ACTIVE, 0) - self.outcomes.get(RecordOutcome.PENDING, 0)
