"""Sources that are not URLs: local paths, read where they lie.  Also tells the two apart, without an HTTP library."""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from etl.errors import BlockedPathError, BodyTooLargeError, InvalidUrlError, LocalFileError
from etl.net.part import Download

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
"""RFC 3986 scheme; at least two characters, so that ``C:\\pictures`` is a path."""

_NOT_IN_HOSTS = re.compile(r"[\s<>\"{}|\\^`%]")

_PLAIN_URL = re.compile(r"https?://([a-z0-9][a-z0-9.-]*)(?:/[!-~]*)?")
"""Almost every URL of a manifest; told apart by one match, because taking a URL to pieces takes ten times as long."""

_ELSEWHERE = re.compile(r"//(?!/)|\\\\")
"""A share of another machine, or a URL without its scheme; POSIX would read both beginnings from here."""

_IN_NO_NAME = re.compile(r"%2F|%00", re.IGNORECASE)

_BLOCK = 1024 * 1024


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


class Roots:
    """The directories below which local sources are read.

    A manifest may come from a stranger, and its export go back there: what it may name is what lies beside it, and what
    the operator allows.  Links count by where they lead.  ``refused`` are directories that a state calls its manifests'
    own, which nobody here has opened.
    """

    def __init__(self, directories: Iterable[str | Path], refused: Iterable[str | Path] = ()) -> None:
        self._roots = [Path(directory).resolve() for directory in directories]
        self._refused = [Path(directory) for directory in refused]

    def checked(self, url: str) -> Path:
        """Return the file that a local source leads to.

        Raises `BlockedPathError` when that lies below none of the directories, `InvalidUrlError` and `LocalFileError`
        for no valid path.
        """
        path = local_path(url)
        try:
            real = path.resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise LocalFileError(f"not a valid path: {_shown(path)}") from error
        if not any(real.is_relative_to(root) for root in self._roots):
            option = f"--allow-path {_shown(real.parent)}"
            if any(real.is_relative_to(root) for root in self._refused):
                raise BlockedPathError(
                    f"its manifest was not ingested by you on this machine: {_shown(real)} "
                    f"(ingest it here again, or give {option})"
                )
            raise BlockedPathError(f"outside of the manifest's directory: {_shown(real)} ({option} would allow it)")
        return real

    def closed(self) -> list[Path]:
        """Return those of the refused directories that are not open all the same."""
        return [path for path in self._refused if not any(path.is_relative_to(root) for root in self._roots)]


def read_local(source: str | Path, *, max_bytes: int) -> Download:
    """Hash a local file where it lies; nothing is copied.  Blocks: call it in a thread.

    ``source`` is a path, or what a manifest names it by.

    Raises `InvalidUrlError` as `local_path` does, `LocalFileError` when the path is missing, not a regular file (a FIFO
    or device is never opened) or not readable, and `BodyTooLargeError` beyond ``max_bytes``.
    """
    path = source if isinstance(source, Path) else local_path(source)
    try:
        _check_regular(path.stat(), path)
        # O_NONBLOCK: should a FIFO take the file's place in between, opening it does not hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 -- opens a descriptor
            _check_regular(os.fstat(descriptor), path)
            digest, size = hashlib.sha256(), 0
            while block := file.read(_BLOCK):
                size += len(block)
                if size > max_bytes:
                    raise BodyTooLargeError(f"larger than the limit of {max_bytes} bytes: {_shown(path)}")
                digest.update(block)
    except OSError as error:
        raise LocalFileError(f"{_REASONS.get(error.errno or 0, error.strerror)}: {_shown(path)}") from error
    except ValueError as error:
        raise LocalFileError(f"not a valid path: {_shown(path)}") from error
    return Download(sha256=digest.hexdigest(), size=size)


_REASONS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EACCES: "not readable (permission denied)",
    errno.EPERM: "not readable (permission denied)",
}


def _check_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise LocalFileError(f"a directory, not a file: {_shown(path)}")
    if not stat.S_ISREG(status.st_mode):
        raise LocalFileError(f"not a regular file: {_shown(path)}")


def _shown(path: Path) -> str:
    text = str(path)
    return text if text.isprintable() else repr(text)
