"""The statuses and kinds of things, as they are stored."""

from enum import StrEnum


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


_WORDS: dict[str, str] = {
    QueueStatus.RETRY: "will retry",
    QueueStatus.DEAD: "failed",
    QueueStatus.CANCELLED: "not needed",
}


def status_in_words(status: str) -> str:
    """Return what people read for a stored status of an item; most are the word itself."""
    return _WORDS.get(status, status)


class RecordState(StrEnum):
    """What the manifest and the selection say of a record."""

    ACTIVE = "active"
    UNSELECTED = "unselected"
    REMOVED = "removed"
    INVALID = "invalid"


class RecordOutcome(StrEnum):
    """What became of an active record under the current recipe.

    Attributes:
        SKIPPED: its picture has a flag with which none is to be captioned (``--skip-flag``).
    """

    PENDING = "pending"
    CAPTIONED = "captioned"
    FAILED = "failed"
    SKIPPED = "skipped"


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
    """Why generation ended: at the end-of-sequence token, or at the token limit; no model made what is of a file."""

    STOP = "stop"
    LENGTH = "length"
    FILE = "file"


class QualityFlag(StrEnum):
    """What is suspicious about a caption.

    Attributes:
        ECHO: the text gives the prompt back, or continues the conversation in the user's role.
        EMPTY: no letters or digits, or hardly any for the tokens that were spent.
        RECOMPUTED: half precision overflowed on this picture, so its caption was made in float32; set by the backend.
        REFUSAL: the model speaks of itself, or says that it cannot see or describe the picture.
        REPETITION: the text goes round in a loop of a word, a phrase or a sentence.
        THOUGHT_ONLY: the model reasoned, and wrote no caption behind that.
        TRUNCATED: generation ended at the token limit, so the last sentence is probably cut.
    """

    ECHO = "echo"
    EMPTY = "empty"
    RECOMPUTED = "recomputed"
    REFUSAL = "refusal"
    REPETITION = "repetition"
    THOUGHT_ONLY = "thought_only"
    TRUNCATED = "truncated"


class ImageFlag(StrEnum):
    """What is suspicious about a picture.

    Attributes:
        BLANK: there is nothing on it: no part differs from the others (`etl.images.flags`).
        PAGES: its document has more of them, of which the first is shown; set by the decoder.
        PLACEHOLDER: one host gave the same bytes under many URLs, as for pictures that it has not (`etl.state.images`).
        TINY: it has fewer pixels than show anything (`etl.images.flags`).
        TRUNCATED: its file was cut short, and what is missing was left out; set by the decoder.
    """

    BLANK = "blank"
    PAGES = "pages"
    PLACEHOLDER = "placeholder"
    TINY = "tiny"
    TRUNCATED = "truncated"


class HostState(StrEnum):
    """How fetch treats a host: at full speed, slower, not before an instant, or as dead until a probe succeeds."""

    HEALTHY = "open"
    SLOWED = "slowed"
    PAUSED = "paused"
    NOT_ANSWERING = "parked"

    @property
    def shown(self) -> str:
        """The word for people."""
        return self.name.lower().replace("_", " ")
