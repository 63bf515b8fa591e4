"""Every error the pipeline raises, and what each one means for the item or the run.

    EtlError                      a user can act on it; `exit_code` ends the process
    |-- UsageError                2: what was asked for cannot be done
    |   |-- ConfigError           a setting, template or flag is wrong
    |   |-- ManifestError         the manifest file itself cannot be read (missing, empty, cut short)
    |   |-- ClusterError          the Ray cluster cannot be joined, or no node of it can fetch
    |   `-- ModelError            the model cannot be found, loaded or driven
    |       `-- UnsupportedProcessorError    its pictures must go through the processor itself
    |-- StateError                1: the state directory cannot be used
    |   |-- StateMissingError     2: there is no state database here
    |   |-- StateNewerError       2: the database was written by a newer version
    |   |-- NotAHashError         1: it names a file of the cache by something else than a hash
    |   |-- StateSplitError       2: its work has been given to parts, see `etl split`
    |   `-- StateLockedError      4: another run holds it
    |-- TargetLockedError         4: another command is writing the same file
    |-- DiskFullError             5: no space left; everything committed so far is safe
    |-- CacheMissingError         5: the image cache is not there; everything committed so far is safe
    |-- OpenFilesError            5: the system opens no more files for this process
    |-- ChildEndedError           1: a child process is gone; who uses it starts another or fails the item
    `-- ItemError                 one record, source or caption failed; the run goes on
        |-- InternalError         a fault of ours
        |-- InvalidRecordError    the manifest line cannot become a record
        |-- FetchError            the source did not give its bytes
        |-- ImageError            the bytes did not give a picture
        `-- CaptionError          the picture did not give a caption

An `ItemError` class is stored by its `slug` (the column ``error_class``); `retryable` decides whether the
item waits for another attempt or is dead at once.  Messages are for people and may change; slugs may not.
"""

from collections.abc import Iterator
from typing import Self


class Interrupted(KeyboardInterrupt):
    """A signal cut the work off; its number is the only argument.  No error: nothing may hide it."""

    @property
    def number(self) -> int:
        """The signal."""
        return int(self.args[0])


class EtlError(Exception):
    """Base of all errors that end with one clear line instead of a traceback.

    Attributes:
        cure: what to do next, where that deserves lines of its own; a part of the message's text.
    """

    exit_code = 1

    def with_cure(self, cure: str) -> Self:
        """Return the error with what cures it, which is shown on a line of its own."""
        self.add_note(cure)
        return self

    @property
    def cure(self) -> str:
        """What to do about it, where that is more than the message says."""
        return "; ".join(getattr(self, "__notes__", ()))


class UsageError(EtlError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting, flag, prompt template or configuration file is wrong."""


class ManifestError(UsageError):
    """The manifest as a whole cannot be read; what was committed before the fault is kept."""


class ModelError(UsageError):
    """The model is unknown, incomplete, unsafe or of a kind that cannot caption pictures."""


class ClusterError(UsageError):
    """The Ray cluster cannot be joined, or none of its nodes can fetch."""


class UnsupportedProcessorError(ModelError):
    """The model's image processor does what `etl.caption.pictures.pixels` cannot; the message says what."""


class StateError(EtlError):
    """The state directory cannot be used."""


class NotPlainError(StateError):
    """In the state directory lies a link, a FIFO, a device or a socket where a file or directory of its own belongs."""


class NotAHashError(StateError, ValueError):
    """What should name a file of the cache is no hash: the database is damaged, or a stranger wrote it."""


class StateMissingError(StateError):
    """There is no state database where one was expected."""

    exit_code = 2


class StateNewerError(StateError):
    """The database was written by a newer version of the program."""

    exit_code = 2


class StateSplitError(StateError):
    """The work of this state was given to parts that have not come back."""

    exit_code = 2


class StateLockedError(StateError):
    """Another run holds the state directory."""

    exit_code = 4


class TargetLockedError(EtlError):
    """Another command is writing the same export or report."""

    exit_code = 4


class DiskFullError(EtlError):
    """The disk, a quota or a limit is full; the run can go on once there is room."""

    exit_code = 5


class CacheMissingError(EtlError):
    """The image cache is not where the database counts on it: not mounted, not copied, moved away."""

    exit_code = 5


class OpenFilesError(EtlError):
    """The system opens no more files for this process."""

    exit_code = 5


class ChildEndedError(EtlError):
    """A child process is gone; its user starts another, or fails the item that it was given."""


class ItemError(EtlError):
    """One item failed.

    Attributes:
        slug: the stable name stored as ``error_class``.
        retryable: whether another attempt may succeed.
        first: what must be done before another attempt can help, as an order; empty where waiting may be enough.
        retry_after_s: seconds that the other side asked us to wait, when it said so.
    """

    slug = "error"
    retryable = False
    first = ""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InternalError(ItemError):
    """A fault of this program, logged with its traceback; the item is tried again."""

    slug = "internal"
    retryable = True


class InvalidRecordError(ItemError):
    """The manifest line cannot become a record."""

    slug = "invalid_record"
    first = "mend the line of the manifest, or the options that it was read with, and ingest it again"


class InvalidJsonError(InvalidRecordError):
    """The line is not one JSON object in UTF-8."""

    slug = "invalid_json"


class MissingImageFieldError(InvalidRecordError):
    """The record names no image."""

    slug = "no_image_field"


class DuplicateKeyError(InvalidRecordError):
    """An earlier line of the same manifest has this key."""

    slug = "duplicate_key"


class FetchError(ItemError):
    """The source did not give its bytes.

    Attributes:
        http_status: the last HTTP status seen before the error, if there was one.
        begun: bytes that an earlier attempt had left, where they were looked for.
    """

    slug = "fetch"
    http_status: int | None = None
    begun: int | None = None


class TransientFetchError(FetchError):
    """Base of the fetch errors that another attempt may cure."""

    slug = "fetch_transient"
    retryable = True


class DnsError(TransientFetchError):
    """The host's name could not be resolved."""

    slug = "dns"


class ConnectError(TransientFetchError):
    """No connection could be made to the host or the proxy."""

    slug = "connect"


class FetchTimeoutError(TransientFetchError):
    """The server did not answer, or did not finish, in time."""

    slug = "timeout"


class BrokenConnectionError(TransientFetchError):
    """The connection broke while the answer was on its way."""

    slug = "reset"


class TruncatedBodyError(TransientFetchError):
    """The body ended before its announced length."""

    slug = "truncated"


class ProtocolError(TransientFetchError):
    """The server's answer breaks HTTP."""

    slug = "protocol"


class TooManyRequestsError(TransientFetchError):
    """HTTP 429, or another refusal with a ``Retry-After``: the host asks for fewer requests."""

    slug = "http_429"


class PendingError(TransientFetchError):
    """HTTP 202: the host is making the picture ready, and has none to give yet."""

    slug = "http_202"


class ServerError(TransientFetchError):
    """HTTP 5xx or 408: the host failed."""

    slug = "http_5xx"


class NotFoundError(FetchError):
    """HTTP 404 or 410: the picture is not there."""

    slug = "http_404"
    first = "correct the address in the manifest and ingest it again, or name a mirror"


class ForbiddenError(FetchError):
    """HTTP 401, 403 or 407: the host refuses."""

    slug = "http_403"
    first = "ask the host's operator, or name a mirror"


class ClientStatusError(FetchError):
    """Any other HTTP status that is not a success."""

    slug = "http_4xx"


class NodeFailedError(FetchError):
    """The cluster's node that fetched it fell silent, sent something damaged, or died again and again with it."""

    slug = "node_failed"
    retryable = True


class RobotsError(FetchError):
    """The host's robots.txt forbids it, and ``respect_robots`` is set."""

    slug = "robots"
    first = "ask the host's operator, or leave out `--respect-robots`"


class HostDownError(FetchError):
    """The host failed every request for longer than ``host_patience``; this source was not tried any more."""

    slug = "host_down"


class InvalidUrlError(FetchError):
    """The URL cannot be requested: malformed, or neither http, https nor a local path."""

    slug = "invalid_url"
    first = "correct the address in the manifest and ingest it again"


class PackageMissingError(FetchError):
    """The URL is of a store for which a package must be installed."""

    slug = "package_missing"
    first = "install the package that the message names"


class BlockedAddressError(FetchError):
    """The URL leads to an address that must not be dialled (private, loopback, link-local, ...)."""

    slug = "blocked_address"
    first = "if it is meant, name its host with `--allow-host HOST` when fetching"


class BlockedPathError(FetchError):
    """The local path leads out of the manifest's directory and of those that ``allow_path`` names."""

    slug = "blocked_path"
    first = "if it is meant, ingest the manifest again on this machine, or give `--allow-path DIR` when fetching"


class TooManyRedirectsError(FetchError):
    """The redirects did not end."""

    slug = "redirects"
    first = "correct the address in the manifest and ingest it again"


class TlsError(FetchError):
    """The host's certificate could not be verified."""

    slug = "tls"
    first = "set right this machine's clock and certificates, or the host's"


class BodyTooLargeError(FetchError):
    """The body is larger than the limit for one file."""

    slug = "too_large"
    first = "raise `--max-bytes`"


class LocalFileError(FetchError):
    """The local path is missing, not a file, or not readable."""

    slug = "local_file"
    first = "put the file where the manifest says"


class ImageError(ItemError):
    """The bytes did not give a picture."""

    slug = "image"


class NotAnImageError(ImageError):
    """The bytes are of no format that is accepted (HTML with status 200, for one)."""

    slug = "not_an_image"
    first = "look at the file, or at its address in a browser: it must be a picture"


class CorruptImageError(ImageError):
    """The format was recognised, but the picture is broken or cut short."""

    slug = "corrupt_image"
    first = "replace the file"


class TruncatedImageError(CorruptImageError):
    """The file ends before its last pixel, or is damaged from some point on."""

    slug = "truncated_image"
    first = "replace the file, or accept it as it is: `--accept-truncated 0.9` when fetching"


class DecoderMissingError(ImageError):
    """The format is one for which a package must be installed."""

    slug = "decoder_missing"
    first = "install the package that the message names"


class ImageTooLargeError(ImageError):
    """The picture has more pixels than the limit."""

    slug = "too_many_pixels"
    first = "raise `--max-pixels`"


class DecoderLimitError(ImageError):
    """The decoder ran out of its time or memory, or died."""

    slug = "decoder_limit"
    first = "raise `--decoder-memory`"


class DecoderCrashedError(DecoderLimitError):
    """The decoder process died in the middle of the picture."""

    slug = "decoder_crashed"


class CaptionError(ItemError):
    """The picture did not give a caption."""

    slug = "caption"


class PromptTooLongError(CaptionError):
    """Prompt, image tokens and new tokens do not fit the model's context."""

    slug = "prompt_too_long"
    first = "shorten the prompt template and ingest again, or lower `--max-new-tokens`"


class WorkingCopyError(CaptionError):
    """The cached picture is missing or damaged.

    The caption stage has such a picture fetched again, at no charge (`etl.caption.lost_pictures`): stored is only what
    that does not help.
    """

    slug = "working_copy"
    retryable = True


class CacheUnreadableError(WorkingCopyError):
    """A cached picture cannot be read for a reason that is not its own: permissions, open files.  It ends the run."""


class ImageLoaderCrashedError(CaptionError):
    """The process that prepares pictures for the model died in the middle of this one, twice."""

    slug = "feeder_crashed"


class GenerationError(CaptionError):
    """The model failed on this picture alone."""

    slug = "generation"
    retryable = True


class CrashedError(CaptionError):
    """The process died repeatedly while this item was in flight."""

    slug = "crashed"


class ContentFilterError(CaptionError):
    """The endpoint's content filter, or the model itself in so many words, refused the picture or the prompt."""

    slug = "content_filter"


class EndpointRefusedError(CaptionError):
    """The endpoint refused this picture or prompt: HTTP 400, 413, 422 or the like."""

    slug = "endpoint_refused"


class EndpointAnswerError(CaptionError):
    """The endpoint's answer is no caption: cut short, no JSON, or without text."""

    slug = "endpoint_answer"
    retryable = True


class EmptyAnswerError(EndpointAnswerError):
    """The endpoint answered with no word: its ``content`` is null or empty, and there is no reasoning either."""

    slug = "empty_answer"


class EndpointTimeoutError(CaptionError):
    """The endpoint gave no caption within ``endpoint_timeout``."""

    slug = "endpoint_timeout"
    retryable = True


class WorkerTimeoutError(CaptionError):
    """A node of the cluster gave no caption within ``ray_timeout``."""

    slug = "worker_timeout"
    retryable = True


class EndpointFailedError(CaptionError):
    """Endpoints failed (HTTP 5xx, broken connections) each time that they were given this picture."""

    slug = "endpoint_failed"
    retryable = True


def item_error_classes() -> Iterator[type[ItemError]]:
    """Yield `ItemError` and every class below it."""
    pending: list[type[ItemError]] = [ItemError]
    while pending:
        cls = pending.pop()
        yield cls
        pending += cls.__subclasses__()


def first_of(slug: str | None) -> str:
    """Return what must be done before another attempt at an item of this class can help; empty for nothing."""
    return next((cls.first for cls in item_error_classes() if cls.slug == slug), "")
