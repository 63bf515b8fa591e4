"""What the exceptions of httpx2, httpcore2, ssl and the system mean: each gets a class of our own."""

import re
import socket
import ssl
from collections.abc import Iterator

import httpcore2
import httpx2

from etl.errors import (
    BrokenConnectionError,
    ConnectError,
    DnsError,
    FetchError,
    FetchTimeoutError,
    InvalidUrlError,
    ProtocolError,
    TlsError,
    TooManyRedirectsError,
    TransientFetchError,
    TruncatedBodyError,
)

MAX_SHOWN = 500
"""Characters of a URL in an error message."""

_FIGURES = re.compile(r"received (\d+) bytes, expected (\d+)")

# First match wins, so the narrower class stands before the wider one.
_CLASSES: tuple[tuple[tuple[type[Exception], ...], type[FetchError], str], ...] = (
    ((httpx2.ConnectTimeout, httpcore2.ConnectTimeout), FetchTimeoutError, "no connection in time"),
    ((httpx2.TimeoutException, httpcore2.TimeoutException, TimeoutError), FetchTimeoutError, "no data in time"),
    ((httpx2.ProxyError, httpcore2.ProxyError), ConnectError, "the proxy refused"),
    ((httpx2.ConnectError, httpcore2.ConnectError, ConnectionRefusedError), ConnectError, "no connection"),
    ((httpx2.NetworkError, httpcore2.NetworkError, ConnectionError), BrokenConnectionError, "the connection broke"),
    ((httpx2.UnsupportedProtocol, httpcore2.UnsupportedProtocol), InvalidUrlError, "neither http nor https"),
    ((httpx2.ProtocolError, httpcore2.ProtocolError, httpx2.DecodingError), ProtocolError, "the answer breaks HTTP"),
    ((httpx2.TransportError,), BrokenConnectionError, "the exchange failed"),
    ((httpx2.TooManyRedirects,), TooManyRedirectsError, "too many redirects"),
    ((httpx2.InvalidURL, UnicodeError), InvalidUrlError, "malformed URL"),
    ((socket.gaierror,), DnsError, "the name cannot be resolved"),
    ((ssl.SSLError,), TlsError, "TLS failed"),
    ((OSError,), ConnectError, "no connection"),
    ((Exception,), TransientFetchError, "unexpected failure"),
)


def fetch_error(error: Exception) -> FetchError:
    """Return the `FetchError` that stands for an exception of httpx2, httpcore2, ssl or the system."""
    tls = next((each for each in _causes(error) if isinstance(each, ssl.SSLError)), None)
    # A connection that just ends during the handshake says nothing about the certificate, and may work next time.
    if (
        tls
        and isinstance(error, httpx2.ConnectError | httpcore2.ConnectError)
        and not isinstance(tls, ssl.SSLEOFError | ssl.SSLSyscallError)
    ):
        reason = getattr(tls, "verify_message", "") or tls.reason or str(tls)
        return TlsError(f"TLS failed: {one_line(reason)}")
    text = str(error)
    if isinstance(error, httpx2.RemoteProtocolError | httpcore2.RemoteProtocolError):
        if "peer closed connection" in text:
            return TruncatedBodyError(_ended_early(text))
        if "disconnected" in text:
            return BrokenConnectionError("the server closed the connection without an answer")
    cls, phrase = next((cls, phrase) for kinds, cls, phrase in _CLASSES if isinstance(error, kinds))
    if cls is TransientFetchError:
        phrase = f"{phrase} ({type(error).__name__})"
    return cls(f"{phrase}: {one_line(text)}" if text else phrase)


def _ended_early(text: str) -> str:
    """Return what became of a body in our words; the library's have the figures."""
    figures = _FIGURES.search(text)
    return "the body ended early" + (f", after {figures[1]} of {figures[2]} bytes" if figures else "")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or cause.__context__


def one_line(text: str) -> str:
    """Make a stranger's text one printable line of bounded length."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + "..."
