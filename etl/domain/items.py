"""The words of the domain: enumerations and frozen values.  No I/O, no dependencies.

One module although it is long: it holds declarations alone, and well over a hundred modules import it, so that one
place to look beats several to guess.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Stage(StrEnum):
    """A part of the pipeline; a run works on one or more of them."""

    INGEST = "ingest"
    FETCH = "fetch"
    CAPTION = "caption"
    EXPORT = "export"


class QueueStatus(StrEnum):
    """Where a source or a caption stands in its work queue."""

    READY = "ready"
    RUNNING = "running"
    RETRY = "retry"
    DONE = "done"
    DEAD = "dead"
    CANCELLED = "cancelled"


class RecordState(StrEnum):
    """What the manifest and the selection say of a record."""

    ACTIVE = "active"
    UNSELECTED = "unselected"
    REMOVED = "removed"
    INVALID = "invalid"


class RecordOutcome(StrEnum):
    """What became of an active record under the current recipe."""

    PENDING = "pending"
    CAPTIONED = "captioned"
    FAILED = "failed"


class RunState(StrEnum):
    """What a reader can say of the latest run."""

    NONE = "none"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    CRASHED = "crashed"
    DONE = "done"
    PARTIAL = "partial"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


LIVE = frozenset({RunState.RUNNING, RunState.PAUSED, RunState.STOPPING})
"""The states of a run that a process stands behind; only such a run hears commands."""


class FinishReason(StrEnum):
    """Why generation ended: at the end-of-sequence token, or at the token limit."""

    STOP = "stop"
    LENGTH = "length"


class QualityFlag(StrEnum):
    """What is suspicious about a caption.

    Attributes:
        ECHO: the text gives the prompt back, or continues the conversation in the user's role.
        EMPTY: no letters or digits, or hardly any for the tokens that were spent.
        RECOMPUTED: half precision overflowed on this picture, so its caption was made in float32; set by the backend.
        REFUSAL: the model speaks of itself, or says that it cannot see or describe the picture.
        REPETITION: the text goes round in a loop of a word, a phrase or a sentence.
        TRUNCATED: generation ended at the token limit, so the last sentence is probably cut.
    """

    ECHO = "echo"
    EMPTY = "empty"
    RECOMPUTED = "recomputed"
    REFUSAL = "refusal"
    REPETITION = "repetition"
    TRUNCATED = "truncated"


class HostState(StrEnum):
    """How fetch treats a host: at full speed, slower, not before an instant, or as dead until a trial succeeds."""

    OPEN = "open"
    SLOWED = "slowed"
    PAUSED = "paused"
    PARKED = "parked"


@dataclass(frozen=True, slots=True)
class SourceItem:
    """A claimed source.

    Attributes:
        id: row in ``sources``.
        url: http(s) URL, or a local path.
        host: host name in lower case; empty for a local path.
        attempts: attempts charged so far, this one not counted.
        image: row in ``images`` of the version that the cache holds, when it does.
        etag, last_modified: what the server said of that version.
        mirror: where that version came from, when that was not ``url``.
    """

    id: int
    url: str
    host: str
    attempts: int = 0
    image: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    mirror: str | None = None


@dataclass(frozen=True, slots=True)
class WorkingCopy:
    """The picture that the model will see: an RGB JPEG, content-addressed by its own hash.

    Attributes:
        sha256: of the file, hex; also its name in the cache.
        size: bytes.
        width, height: pixels, after EXIF orientation.
        longest_edge: the limit, in pixels, that the copy was made with.
    """

    sha256: str
    size: int
    width: int
    height: int
    longest_edge: int


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """What decoding one original gave.  ``width`` and ``height`` are the original's, in pixels."""

    mime: str
    width: int
    height: int
    working: WorkingCopy


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """A source that was fetched, decoded and put into the cache; ready to commit.

    Attributes:
        source: the claimed source.
        sha256: of the original bytes, hex.
        size: bytes of the original.
        decoded: type, dimensions and working copy.
        original_kept: whether the original lies in the cache too.
        http_status, etag, last_modified, final_url: as the server said; ``None`` for local files.
        started_at: when the attempt began, Unix milliseconds.
        mirror: where it came from, when that was not the source's own URL.
    """

    source: SourceItem
    sha256: str
    size: int
    decoded: DecodedImage
    original_kept: bool
    started_at: int
    http_status: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    final_url: str | None = None
    mirror: str | None = None


@dataclass(frozen=True, slots=True)
class KnownImage:
    """A source whose bytes are an image that the cache holds already; ready to commit.

    Its server has said so, or they hashed to the same; nothing had to be decoded.

    Attributes:
        source: the claimed source.
        image: row in ``images``.
        http_status, etag, last_modified, final_url, mirror, started_at: as for `FetchedImage`; ``None`` keeps what is
            known.
    """

    source: SourceItem
    image: int
    started_at: int
    http_status: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    final_url: str | None = None
    mirror: str | None = None


@dataclass(frozen=True, slots=True)
class CaptionItem:
    """A claimed caption: one picture and one prompt.

    Attributes:
        id: row in ``captions``.
        working_sha256: names the working copy in the cache.
        prompt: the instruction text, without the model's chat wrapping.
        crashes: how often the process died while this item was in flight.
        repetition_penalty: where it is to be decoded otherwise than the recipe says; ``None`` for as the recipe says.
    """

    id: int
    working_sha256: str
    prompt: str
    crashes: int = 0
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class CaptionResult:
    """A finished caption.

    Attributes:
        id: row in ``captions``.
        text: the caption, stripped.
        tokens: number of generated tokens, the end-of-sequence token included.
        finish_reason: why generation ended.
        flags: quality flags (`QualityFlag`), sorted.
    """

    id: int
    text: str
    tokens: int
    finish_reason: FinishReason
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """One failed attempt at one source or caption, ready to commit.

    Attributes:
        id: row in its queue.
        slug: ``error_class``.
        message: what went wrong, for people.
        retryable: whether another attempt may succeed.
        started_at: when the attempt began, Unix milliseconds.
        retry_after_s: seconds that the server asked us to wait.
        http_status: for fetch, the last status seen.
        crashed: the decoder died under this item; counted apart from its attempts.
        stops: it is no fault of the item: the run must end, and nothing is charged.
    """

    id: int
    slug: str
    message: str
    retryable: bool
    started_at: int
    retry_after_s: float | None = None
    http_status: int | None = None
    crashed: bool = False
    stops: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """One line of ``etl failures``: a dead item and one record that needs it.

    Attributes:
        stage: where it failed (`Stage`).
        item: row in the stage's queue.
        key: key of the first record that needs the item, or of the invalid record.
        records: number of active records that need it.
    """

    stage: str
    item: int
    error_class: str
    message: str
    key: str
    url: str
    attempts: int
    records: int = 1


@dataclass(frozen=True, slots=True)
class FailureFilter:
    """Which dead items `retry-failed` means; a ``None`` field does not restrict.

    Attributes:
        flag: not dead items are meant, but the finished captions with this quality flag (`etl.state.again`).
        repetition_penalty: how those are made again; ``None`` for the usual one.
    """

    stage: Stage | None = None
    error_class: str | None = None
    host: str | None = None
    key: str | None = None
    flag: QualityFlag | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What one ingest did.  ``unchanged`` is ``True`` when the file was already complete in the state."""

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
    skipped_reason: str | None = None
    lost: int = 0

    def plus(self, other: "StageSummary") -> "StageSummary":
        """Return what two rounds of the stage did together."""
        return StageSummary(
            self.done + other.done, self.retried + other.retried, self.dead + other.dead,
            self.released + other.released, other.skipped_reason, self.lost + other.lost,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What one export holds.

    Attributes:
        left_out: invalid lines that are not JSON objects.
        size, sha256: of the lines before compression; of a directory the bytes of its shards, and a hash over theirs.
        format: as `etl.export.lines.FORMATS`, with ``-since`` behind it for a part of the records and
            ``-shards`` for a directory.
        shards, written: files of a directory, and how many of them were missing or had changed.
        without_picture: captioned records that a format with pictures lacks, because theirs has left the cache.
    """

    path: Path | str
    rows: int
    captioned: int
    failed: int
    pending: int
    unselected: int
    left_out: int
    size: int
    sha256: str
    format: str = "jsonl"
    shards: int = 0
    written: int = 0
    without_picture: int = 0


@dataclass(frozen=True, slots=True)
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
    state: HostState = HostState.OPEN
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


@dataclass(frozen=True, slots=True)
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
        fetch_errors: sources that failed or wait for another attempt, by error class; as ``hosts``.
        fetch_seconds: until the slowest host is done; ``None`` while its rate is not known; as ``hosts``.
        flags: finished captions of the current recipe by quality flag; as ``hosts``.
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
    fetch_errors: dict[str, int] = field(default_factory=dict)
    fetch_seconds: float | None = None
    flags: dict[str, int] = field(default_factory=dict)
