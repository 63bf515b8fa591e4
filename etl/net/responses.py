"""What an HTTP answer's status and headers mean.  Knows no HTTP library."""

import email.utils
import re
import time
from collections.abc import Mapping

from etl.errors import (
    ClientStatusError,
    FetchError,
    ForbiddenError,
    NotFoundError,
    PendingError,
    ProtocolError,
    ServerError,
    TooManyRequestsError,
)
from etl.net.part import Download, PartWriter

_DECODED = frozenset({"gzip", "x-gzip", "deflate"})
_UNREADABLE = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz"})


def is_compressed(coding: str | None) -> bool:
    """Whether the body is compressed although we asked for it as it is.

    Raises `ProtocolError` for a compression that cannot be undone here.  Other values, which old servers put there
    by mistake (``UTF-8``, ``none``), count as no compression: the decoder will see what the bytes are.
    """
    coding = (coding or "").strip().lower()
    if coding in _UNREADABLE or "," in coding:
        raise ProtocolError(f"the server sent Content-Encoding {coding[:40]!r} against our Accept-Encoding: identity")
    return coding in _DECODED


MAX_VALIDATOR_CHARS = 1024
"""Of an ETag or date that is sent back; servers refuse requests whose headers are long."""


def sendable(validator: object) -> bool:
    """Return whether an ETag or date, as a server gave it, can be put into a request: HTTP headers are ASCII."""
    if not isinstance(validator, str) or not 0 < len(validator) <= MAX_VALIDATOR_CHARS:
        return False
    return validator.isascii() and validator.isprintable()


_STATUS_CLASSES: dict[int, type[FetchError]] = {
    202: PendingError,
    401: ForbiddenError,
    403: ForbiddenError,
    407: ForbiddenError,
    404: NotFoundError,
    410: NotFoundError,
    408: ServerError,
    429: TooManyRequestsError,
}


def status_error(status: int, retry_after: str | None = None, date: str | None = None, words: str = "") -> FetchError:
    """Return the error that a status which is no success stands for, given two headers of the answer and its words."""
    cls = _STATUS_CLASSES.get(status, ServerError if status >= 500 else ClientStatusError)
    wait = retry_after_s(retry_after, date)
    if wait is not None and status >= 400 and not (cls.retryable or cls is NotFoundError):
        # So some ask for fewer requests.
        cls = TooManyRequestsError
    wait = wait if cls.retryable else None
    asked = f", asks to wait {wait:g} s" if wait is not None else ""
    return cls(f"HTTP {status}{asked}{f', {words}' * bool(words)}", retry_after_s=wait)


def download_of(status: int, headers: Mapping[str, str], url: str, writer: PartWriter | None) -> Download:
    """Return what became of a request that ended at a URL, with the writer of its body if it had one."""
    mime = headers.get("content-type", "").partition(";")[0].strip().lower()
    return Download(
        sha256=writer.sha256 if writer else "",
        size=writer.size if writer else 0,
        data=writer.data if writer else None,
        http_status=status,
        etag=headers.get("etag"),
        last_modified=headers.get("last-modified"),
        final_url=url,
        mime=mime or None,
    )


def retry_after_s(value: str | None, date: str | None = None) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for, never negative; ``None`` when it says nothing.

    An HTTP date counts from the answer's own ``Date``, so that a wrong clock on either side does not matter.
    """
    if value is None:
        return None
    # A fraction is against the standard, and common.
    if re.fullmatch(r"\s*\d{1,9}(\.\d{1,9})?\s*", value, re.ASCII):
        return float(value)
    until = _timestamp(value)
    if until is None:
        return None
    return max(0.0, until - (_timestamp(date or "") or time.time()))


def _timestamp(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
