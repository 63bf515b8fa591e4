"""One attempt to get a URL: what it asks for, how far it came, and the error that it ends with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from etl.errors import EtlError, FetchError
from etl.net.errors import fetch_error, one_line
from etl.net.part import PartWriter
from etl.net.responses import sendable
from etl.redaction import redact_url


@dataclass(frozen=True, slots=True)
class Validators:
    """What tells the version of a file that is in the cache from a newer one (RFC 9110, 13.1)."""

    etag: str | None
    last_modified: str | None

    @property
    def headers(self) -> dict[str, str]:
        """The request headers that ask for the file only if it has changed; what cannot be sent is left out."""
        named = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in named.items() if value and sendable(value)}


@dataclass
class Attempt:
    """How far one request has come.

    Attributes:
        url, current: as it was asked for, and after redirects.
        status: the last HTTP status seen.
        held: bytes below which a body stays in memory.
        begun: bytes that an earlier one has left.
        writer: takes the body, once there is one.
    """

    url: str
    current: str
    held: int = 0
    begun: int | None = None
    status: int | None = None
    writer: PartWriter | None = None

    @classmethod
    def of(cls, url: str, held: int = 0) -> "Attempt":
        """Return the attempt at a URL that has not begun."""
        return cls(url, url, held)

    @property
    def received(self) -> int:
        """Bytes of the body so far."""
        return self.writer.received if self.writer else 0

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Give every exception of the block its class, the URL and the last status; errors of the run pass."""
        try:
            yield
        except FetchError as error:
            raise self._located(error) from error
        except EtlError:
            raise
        except Exception as error:  # Every other error gets a class of ours; its cause stays attached.
            raise self._located(fetch_error(error)) from error

    def _located(self, error: FetchError) -> FetchError:
        shown = one_line(redact_url(self.url))
        if self.current != self.url:
            shown += f" (redirected to {one_line(redact_url(self.current))})"
        located = type(error)(f"{error}: {shown}", retry_after_s=error.retry_after_s)
        located.http_status, located.begun = self.status, self.begun
        return located


def deadline_of(begun: float, read_timeout_s: float, min_rate: int, received: int) -> float | None:
    """Return when a body that has come so far must have got further, on the loop's clock; it moves with every byte.

    At the end of a file this is ``begun + read_timeout + size / min_rate``, so no body can take longer.
    """
    if not min_rate:
        return None
    return begun + read_timeout_s + received / min_rate
