"""What a source is: an http URL and its host, or a path on this machine.  Knows no HTTP library."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from etl.errors import InvalidUrlError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
"""RFC 3986 scheme; at least two characters, so that ``C:\\pictures`` is a path."""

_NOT_IN_HOSTS = re.compile(r"[\s<>\"{}|\\^`%]")

_PLAIN_URL = re.compile(r"https?://([a-z0-9][a-z0-9.-]*)(?:/[!-~]*)?")
"""Almost every URL of a manifest; told apart by one match, because taking a URL to pieces takes ten times as long."""

_ELSEWHERE = re.compile(r"//(?!/)|\\\\")
"""A share of another machine, or a URL without its scheme; POSIX would read both beginnings from here."""

_IN_NO_NAME = re.compile(r"%2F|%00", re.IGNORECASE)


def is_local(url: str) -> bool:
    """Whether the source is a path or a ``file:`` URL; any other ``scheme:`` makes it a URL."""
    url = url.strip()
    match = _SCHEME.match(url)
    return bool(url) and (match is None or match[0].lower() == "file:")


def host_of(url: str) -> str:
    """Return the URL's host in lower case, without user name, port and trailing dot; empty for a local path.

    Raises `InvalidUrlError` when the URL is empty, malformed, or of another scheme than http, https and file.
    """
    url = url.strip()
    if plain := _PLAIN_URL.fullmatch(url):
        return plain[1].rstrip(".")
    if not url:
        raise InvalidUrlError("the URL is empty")
    if is_local(url):
        return ""
    if not url.isprintable():
        raise InvalidUrlError(f"the URL has control characters: {url[:200]!r}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidUrlError(f"malformed URL ({error})") from error
    if parts.scheme not in ("http", "https"):
        raise InvalidUrlError(f"neither http, https nor a local path: a {parts.scheme}: URL")
    if not host or port == 0 or _NOT_IN_HOSTS.search(host):
        raise InvalidUrlError(f"the URL has no valid host: {parts.netloc.rpartition('@')[2]!r}")
    return host.rstrip(".")


def local_path(url: str) -> Path:
    """Return the path that a local source names.

    Raises `InvalidUrlError` where it names another machine's file, or is a ``file:`` URL that names none.
    """
    url = url.strip()
    path = _path_of(url) if _SCHEME.match(url) else url
    if _ELSEWHERE.match(path):
        raise _elsewhere(path)
    return Path(path)


def _path_of(url: str) -> str:
    """Return the path of a ``file:`` URL (RFC 8089)."""
    if not url.isprintable():
        # urlsplit would leave some of them out, and so name another file.
        raise InvalidUrlError(f"the URL has control characters: {url[:200]!r}")
    try:
        parts = urlsplit(url)
        path = unquote(parts.path, errors="strict")
    except ValueError as error:
        raise InvalidUrlError(f"malformed file: URL ({error})") from error
    if parts.netloc.lower() not in ("", "localhost") or parts.path.startswith("//"):
        raise _elsewhere(url)
    if "?" in url or "#" in url:
        raise InvalidUrlError(f"a file: URL has no query; write ? as %3F and # as %23: {url[:200]!r}")
    if match := _IN_NO_NAME.search(parts.path):
        raise InvalidUrlError(f"no file name holds {match[0]}: {url[:200]!r}")
    return path


def _elsewhere(name: str) -> InvalidUrlError:
    return InvalidUrlError(
        f"names another machine: {name[:200]!r}; copy the file here, or write https: before it where it is a URL"
    )
