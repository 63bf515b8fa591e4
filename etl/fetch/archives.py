"""Pictures in archives, whose paths go on within one: ``/pictures.zip/inner/a.jpg``."""

import asyncio
import io
import logging
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etl import files
from etl.archives import Archive, BadArchiveError, Member, open_archive
from etl.clock import now_ms
from etl.errors import LocalFileError
from etl.fetch.hosts.limiter import HostNotReadyError
from etl.fetch.local_files import shown
from etl.images.cache import ImageCache
from etl.net.part import Download, PartWriter

log = logging.getLogger(__name__)

_BLOCK = 1 << 20
_KEPT = 4
"""Archives that stay open, with their indexes: pictures are fetched in the order in which they were ingested."""


def archive_above(path: Path) -> Path | None:
    """Return the file that is an archive if anything lies under a path; ``None`` where the path itself is there."""
    try:
        return None if path.exists() else next((one for one in path.parents if one.is_file()), None)
    except (OSError, ValueError):
        return None


def sizes_in(path: Path) -> dict[str, int]:
    """Return the sizes of what is in an archive, by name; none of one that must be decompressed first or is none."""

    def refuse() -> io.FileIO:
        raise BadArchiveError("that takes as long as to fetch it")

    try:
        with closing(open_archive(path, refuse)) as archive:
            return {name: member.size for name, member in archive.index().items()}
    except (BadArchiveError, OSError):
        return {}


class Archives:
    """The archives of a fetch, each gone through once to find what is in it.

    A compressed tar is decompressed into a file of the cache that has no name, and so is gone with the process.

    Attributes:
        lock: to be held for `extract`; threads that waited for an archive would be missing elsewhere.
    """

    def __init__(self, cache: ImageCache, is_stopping: Callable[[], bool]) -> None:
        self._cache = cache
        self._is_stopping = is_stopping
        self._open: dict[Path, _Opened] = {}
        self.lock = asyncio.Lock()

    def extract(self, path: Path, name: str, part: Path, max_bytes: int) -> Download:
        """Write a picture of an archive to a part.  Blocks: call it in a thread.

        Raises `LocalFileError` for no archive, none that can be read, or nothing under that name, `HostNotReadyError`
        when the run stops meanwhile, and as `PartWriter` does.
        """
        where = f"{shown(path)}, {shown(Path(name))}"
        try:
            found = self._opened(path)
            if found.archive is None or name not in found.index:
                raise LocalFileError(f"{found.fault or 'no such file in the archive'}: {where}")
            with PartWriter(part, max_bytes=max_bytes) as writer, found.archive.open(found.index[name]) as file:
                while block := file.read(_BLOCK):
                    writer.write(block)
        except BadArchiveError as error:
            raise LocalFileError(f"{error}: {where}") from error
        except OSError as error:
            full = f"no room to decompress {shown(path)}: free some space and run the same command again"
            raise files.disk_error(error, full, LocalFileError(f"{error.strerror or error}: {where}")) from error
        return Download(sha256=writer.sha256, size=writer.size)

    def close(self) -> None:
        """Let go of all."""
        while self._open:
            self._close(next(iter(self._open)))

    def _opened(self, path: Path) -> "_Opened":
        status = path.stat()
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if path in self._open and self._open[path].version != version:
            self._close(path)
        found = self._open.pop(path, None)
        if found is None:
            while len(self._open) >= _KEPT:
                self._close(next(iter(self._open)))
            found = _Opened(version)
            try:
                found.archive = open_archive(path, lambda: self._spool(path))
                found.index = found.archive.index()
            except BadArchiveError as error:
                # Kept, too: each picture of it would find that out anew.
                found.fault = str(error)
        self._open[path] = found
        return found

    def _close(self, path: Path) -> None:
        if (archive := self._open.pop(path).archive) is not None:
            archive.close()

    def _spool(self, path: Path) -> "_Spool":
        log.info("decompressing %s into the cache, to find its pictures", shown(path))
        part = self._cache.new_part()
        file = _Spool(files.open_plain(part, os.O_RDWR | os.O_CREAT | os.O_EXCL), self._is_stopping)
        files.remove(part)
        return file


@dataclass
class _Opened:
    version: tuple[int, ...]
    archive: Archive | None = None
    index: dict[str, Member] = field(default_factory=dict)
    fault: str = ""


class _Spool(io.FileIO):
    """A file whose writing ends with the run; it may take minutes."""

    def __init__(self, descriptor: int, is_stopping: Callable[[], bool]) -> None:
        super().__init__(descriptor, "r+")
        self._is_stopping = is_stopping

    def write(self, data: Any, /) -> int:
        if self._is_stopping():
            raise HostNotReadyError(now_ms())
        return super().write(data)
