"""The items at work: what a queue hands out, and what comes of it.

One module although it is long: it holds declarations alone, and well over a hundred modules import it, so that one
place to look beats several to guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etl.domain.statuses import (
    FinishReason,
)

SIGNED = "#signed"
"""Behind a source's URL that stands for all its signatures; what is asked for is in the lines of its records."""


@dataclass(frozen=True, slots=True, kw_only=True)
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
        iiif: the manifest line of its first record, where that tells of IIIF.
    """

    id: int
    url: str
    host: str
    attempts: int = 0
    image: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    mirror: str | None = None
    iiif: bytes | None = None


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
    """What decoding one original gave.

    Attributes:
        mime: the type that its bytes have.
        width, height: the original's, in pixels.
        working: what was made of it.
        flags: what is suspicious about it (`ImageFlag`), sorted.
    """

    mime: str
    width: int
    height: int
    working: WorkingCopy
    flags: tuple[str, ...] = ()

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "DecodedImage":
        """Return the image of which `dataclasses.asdict` gave the fields, in another process."""
        return cls(**{**fields, "working": WorkingCopy(**fields["working"]), "flags": tuple(fields["flags"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedSource:
    """A source that was fetched; ready to commit.

    Attributes:
        source: the claimed source.
        started_at: when the attempt began, Unix milliseconds.
        http_status, etag, last_modified, final_url: as the server said; ``None`` for local files, and where nothing new
            is known.
        mirror: where it came from, when that was not the source's own URL.
    """

    source: SourceItem
    started_at: int
    http_status: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    final_url: str | None = None
    mirror: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedImage(FetchedSource):
    """One that was decoded and put into the cache.

    Attributes:
        sha256: of the original bytes, hex.
        size: bytes of the original.
        decoded: type, dimensions and working copy.
        original_kept: whether the original lies in the cache too.
    """

    sha256: str
    size: int
    decoded: DecodedImage
    original_kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownImage(FetchedSource):
    """One whose bytes are an image that the cache holds already.

    Its server has said so, or they hashed to the same; nothing had to be decoded.

    Attributes:
        image: row in ``images``.
    """

    image: int


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
        thinking: the model's reasoning before the caption, stripped; never part of it.
    """

    id: int
    text: str
    tokens: int
    finish_reason: FinishReason
    flags: tuple[str, ...] = ()
    thinking: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
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
