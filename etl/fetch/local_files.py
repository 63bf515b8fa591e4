"""Sources that are paths: read where they lie, below the directories that the user has opened."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from etl.errors import BlockedPathError, BodyTooLargeError, LocalFileError
from etl.fetch.mirrors import Mirrors
from etl.local_roots import opened
from etl.net.part import Download
from etl.net.urls import local_path
from etl.settings import Settings
from etl.state.manifests import roots as manifest_roots
from etl.state.read.reader import Reader

_BLOCK = 1024 * 1024


class Roots:
    """The directories below which local sources are read.

    A manifest may come from a stranger, and its export go back there: what it may name is what lies beside it, and what
    the operator allows.  Links count by where they lead.  ``refused`` are directories that a state calls its manifests'
    own, which nobody here has opened.
    """

    def __init__(self, directories: Iterable[str | Path], refused: Iterable[str | Path] = ()) -> None:
        self._roots = [Path(directory).resolve() for directory in directories]
        self._refused = [Path(directory) for directory in refused]

    @classmethod
    def of(cls, reader: Reader, settings: Settings, mirrors: Mirrors) -> Self:
        """Return those of a state's manifests, of the mirrors and of the settings."""
        beside, refused = opened(manifest_roots(reader))
        return cls([*beside, *mirrors.directories, *settings.allow_path], refused)

    def checked(self, url: str) -> Path:
        """Return the file that a local source leads to.

        Raises `BlockedPathError` when that lies below none of the directories, `InvalidUrlError` and `LocalFileError`
        for no valid path.
        """
        path = local_path(url)
        try:
            real = path.resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise LocalFileError(f"not a valid path: {shown(path)}") from error
        if not any(real.is_relative_to(root) for root in self._roots):
            option = f"--allow-path {shown(real.parent)}"
            if any(real.is_relative_to(root) for root in self._refused):
                raise BlockedPathError(
                    f"its manifest was not ingested by you on this machine: {shown(real)} "
                    f"(ingest it here again, or give {option})"
                )
            raise BlockedPathError(f"outside of the manifest's directory: {shown(real)} ({option} would allow it)")
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
                    raise BodyTooLargeError(f"larger than the limit of {max_bytes} bytes: {shown(path)}")
                digest.update(block)
    except OSError as error:
        raise LocalFileError(f"{_REASONS.get(error.errno or 0, error.strerror)}: {shown(path)}") from error
    except ValueError as error:
        raise LocalFileError(f"not a valid path: {shown(path)}") from error
    return Download(sha256=digest.hexdigest(), size=size)


_REASONS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EACCES: "not readable (permission denied)",
    errno.EPERM: "not readable (permission denied)",
}


def _check_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise LocalFileError(f"a directory, not a file: {shown(path)}")
    if not stat.S_ISREG(status.st_mode):
        raise LocalFileError(f"not a regular file: {shown(path)}")


def shown(path: Path) -> str:
    """Return a path as messages show it."""
    text = str(path)
    return text if text.isprintable() else repr(text)
