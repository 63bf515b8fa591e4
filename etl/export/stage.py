"""Export: records joined with their captions, as JSON Lines in manifest order, or in another format.

A file appears whole or not at all, see `etl.output_file`.
"""

import errno
import gzip
import hashlib
import io
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from etl.compression import zstd
from etl.domain.views import ExportSummary
from etl.export.format import FileFormat, SidecarFormat
from etl.export.formats import format_of
from etl.export.lines import (
    STDOUT,
    ExportOptions,
    Selected,
    check_counts,
    joined,
    summary_of,
    with_fields,
)
from etl.export.shards import export_shards
from etl.export.sidecars import export_sidecars
from etl.output_file import checked, replaced, resolved, write_errors
from etl.state.read.reader import Reader
from etl.state.recognise import spare_own_files

__all__ = ["STDOUT", "ExportOptions", "check_target", "export", "with_fields"]


def check_target(target: str, options: ExportOptions) -> None:
    """Raise what `export` would for a target or format that cannot be written, so that nobody works for hours first."""
    kind = format_of(target, options)
    kind.check()
    if target == STDOUT:
        return
    if kind.is_directory or options.shard_size:
        path = resolved(target)
        place = path if path.is_dir() else path.parent
    else:
        path = checked(target)
        if path.exists() and not path.is_file():
            return
        place = path.parent
    with write_errors(target):
        place.stat()
        if not os.access(place, os.W_OK | os.X_OK):
            read_only = os.statvfs(place).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise OSError(number, os.strerror(number))


ROWS_PER_S = 3000
"""Records exported per second at least, for who must be done in time.  Measured with 100,000 captioned records of
1.5 KB, on two cores with a load of fifteen beside it: 7,600 a second as plain lines, 4,400 as gzip."""


def export_seconds(records: int) -> float:
    """Return how long an export of so many records takes at most, by rule of thumb."""
    return 1.0 + records / ROWS_PER_S


def export(reader: Reader, target: str, options: ExportOptions) -> tuple[ExportSummary, int | None]:
    """Write the export; return what was written and the recipe's row.

    Raises `ConfigError` for an unknown or ambiguous recipe, run or format, `TargetLockedError` while another export
    writes the same, `DiskFullError` or `EtlError` when it cannot be written, and `StateError` for a damaged state, as
    one whose records are not as many as it counts; an existing file is then untouched.
    """
    kind = format_of(target, options)
    if target != STDOUT:
        spare_own_files(reader.state, resolved(target))
    if isinstance(kind, SidecarFormat):
        return export_sidecars(reader, target, kind, options)
    if kind.is_directory or options.shard_size:
        return export_shards(reader, target, kind, options)
    assert isinstance(kind, FileFormat), "a directory is written in shards"
    with reader.snapshot():
        selection = Selected.of(reader, options)
        counts: Counter[str] = Counter()
        with _target(target) as stream:
            kind.fitted(reader, options).write(stream, joined(reader, selection, counts))
            check_counts(reader, selection, counts)
    path = target if target == STDOUT else str(checked(target))
    summary = summary_of(path, counts, size=stream.size, sha256=stream.sha256, format=selection.format_of(kind.name))
    return summary, selection.recipe.id if selection.recipe else None


class _HashingWriter(io.RawIOBase):
    """Passes bytes on and knows the size and hash of what went through."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Hash of the (uncompressed) lines, hex."""
        return self._hash.hexdigest()

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._stream.write(data)


@contextmanager
def _target(target: str) -> Iterator[_HashingWriter]:
    if target == STDOUT:
        with write_errors("stdout"):
            yield _HashingWriter(sys.stdout.buffer)
            sys.stdout.buffer.flush()
        return
    with replaced(target) as file, _compressed(file, checked(target).suffix.lower()) as stream:
        yield _HashingWriter(stream)


@contextmanager
def _compressed(file: BinaryIO, suffix: str) -> Iterator[BinaryIO]:
    if suffix == ".gz":
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as stream:
            yield cast(BinaryIO, stream)
    elif suffix == ".zst":
        with zstd.open(file, "wb") as packed:
            yield cast(BinaryIO, packed)
    else:
        yield file
