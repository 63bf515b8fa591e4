"""Reading manifests: every format becomes a stream of JSON lines.

JSON Lines come out byte for byte; rows of CSV and Parquet and the files of a directory become one JSON object each.
Offsets and hashes are taken over this stream, so checkpoints mean the same for every format and compression.
"""

import csv
import datetime
import decimal
import gzip
import io
import json
import math
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from etl.compression import zstd
from etl.errors import ManifestError
from etl.extras import pyarrow

STDIN = "-"
MAX_LINE = 16 * 1024 * 1024
"""Bytes.  A longer line is no record but a file of another kind."""

PARQUET_ROWS = 2_000
"""Rows of a Parquet file that are taken at once."""

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".jp2", ".pdf"}
)


class Manifest:
    """One manifest: a file, a directory of pictures, or standard input (``-``).

    Attributes:
        path: the name under which the state knows it: an absolute path, or ``-``.
        base: directory against which relative image paths are resolved.
        rereadable: whether it can be read more than once.
    """

    def __init__(self, path: str) -> None:
        if path == STDIN:
            self._file: Path | None = None
            self.path, self.base, self.rereadable = STDIN, Path.cwd(), False
            return
        file = Path(path)
        if not _exists(file):
            raise ManifestError(f"there is no manifest {path}")
        try:
            str(file.resolve()).encode()
        except UnicodeEncodeError as error:
            raise ManifestError(f"the name of {path} is not UTF-8, so it cannot be stored; rename the file") from error
        self._file = file
        # A pipe, such as a shell's <(zcat ...), gives its lines once.
        self.path, self.rereadable = str(file.resolve()), file.is_file() or file.is_dir()
        self.base = file.resolve() if file.is_dir() else file.resolve().parent

    @property
    def name(self) -> str:
        """A short name for messages and for the keys of records that have none."""
        return "stdin" if self._file is None else self._file.name

    def lines(self) -> Iterator[bytes]:
        """Yield every line with its line end, blank ones included.

        Raises `ManifestError` when the file cannot be read to its end.
        """
        if self._file is not None and self._file.is_dir():
            yield from _directory_lines(self._file)
            return
        if self._file is not None and _suffix(self._file) == ".parquet":
            yield from _parquet_lines(self._file, self.name)
            return
        with self._open() as stream:
            if _suffix(self._file) == ".csv":
                yield from _csv_lines(stream, self.name)
            else:
                yield from _json_lines(stream, self.name)

    @contextmanager
    def _open(self) -> Iterator["io.BufferedReader[Any]"]:
        try:
            with self._raw() as raw:
                magic = raw.peek(4)[:4]
                if magic[:2] == b"\x1f\x8b":
                    with gzip.open(raw) as stream:
                        yield io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20)
                elif magic == b"\x28\xb5\x2f\xfd":
                    with zstd.open(raw) as stream:
                        yield io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20)
                else:
                    yield raw
        except (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError) as error:
            raise ManifestError(f"{self.path} is cut short or damaged: {error}") from error
        except OSError as error:
            raise ManifestError(f"cannot read {self.path}: {error.strerror or error}") from error

    @contextmanager
    def _raw(self) -> Iterator["io.BufferedReader[Any]"]:
        if self._file is None:
            yield cast(io.BufferedReader, sys.stdin.buffer)
            return
        with self._file.open("rb", buffering=1 << 20) as raw:
            yield cast("io.BufferedReader[Any]", raw)


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:
        # A name too long for the system, or a directory above it that may not be entered.
        return False


def _suffix(file: Path | None) -> str:
    """Return the suffix that tells the format, that of the compression left out."""
    if file is None:
        return ""
    suffixes = [suffix.lower() for suffix in file.suffixes if suffix.lower() not in (".gz", ".zst")]
    return suffixes[-1] if suffixes else ""


def _json_lines(stream: "io.BufferedReader[Any]", name: str) -> Iterator[bytes]:
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
            if line.lstrip().startswith(b"["):
                raise ManifestError(
                    f"{name} is a JSON array, not JSON Lines; convert it with `jq -c '.[]' {name} > records.jsonl`"
                )
        if len(line) > MAX_LINE:
            raise ManifestError(f"{name}, line {number}: longer than {MAX_LINE} bytes; is this JSON Lines?")
        yield line


def _csv_lines(stream: "io.BufferedReader[Any]", name: str) -> Iterator[bytes]:
    # surrogateescape carries bytes that are not UTF-8 through to the record, which then is invalid alone.
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    lines = _BoundedLines(text, name)
    rows = csv.DictReader(lines, strict=True)
    try:
        for row in rows:
            lines.in_row = 0
            if None in row:
                raise ManifestError(f"{name}, line {rows.line_num}: more values than the header has columns")
            line = json.dumps(row, ensure_ascii=False) + "\n"
            yield line.encode("utf-8", "surrogateescape")
    except csv.Error as error:
        raise ManifestError(f"{name}, line {rows.reader.line_num}: not valid CSV: {error}") from error
    finally:
        text.detach()


class _BoundedLines:
    """The lines of a CSV; a row, which quotes may spread over many lines, must not be longer than a line of JSON.

    Attributes:
        in_row: characters read since the last row ended.
    """

    def __init__(self, text: io.TextIOWrapper, name: str) -> None:
        self._text = text
        self._name = name
        self._number = 0
        self.in_row = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._text.readline(MAX_LINE + 1):
            self._number += 1
            self.in_row += len(line)
            if self.in_row > MAX_LINE:
                raise ManifestError(f"{self._name}, line {self._number}: a row of more than {MAX_LINE} characters")
            yield line


def _parquet_lines(file: Path, name: str) -> Iterator[bytes]:
    """Yield the rows of a Parquet file, a row group at a time."""
    arrow = pyarrow()
    try:
        with arrow.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(PARQUET_ROWS):
                for row in batch.to_pylist():
                    yield json.dumps(_plain(row, name), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    except arrow.ArrowException as error:
        raise ManifestError(f"{file} is cut short, damaged or no Parquet file: {error}") from error
    except OSError as error:
        raise ManifestError(f"cannot read {file}: {error.strerror or error}") from error


def _plain(value: Any, name: str) -> Any:
    """Return a value of Parquet as JSON has it: times as ISO 8601, decimals as text, what is no number as null."""
    match value:
        case dict():
            return {str(key): _plain(inner, name) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner, name) for inner in value]
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            raise ManifestError(f"{name} holds bytes in a column; JSON has none: leave out pictures and binary columns")
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case decimal.Decimal() | datetime.timedelta():
            return str(value)
    return value


def _directory_lines(directory: Path) -> Iterator[bytes]:
    for file in sorted(directory.rglob("*")):
        if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file():
            relative = file.relative_to(directory).as_posix()
            # A colon could make it a URL, a backslash another machine's, and white space at its ends is taken off.
            plain = ":" not in relative and "\\" not in relative and relative == relative.strip()
            path = relative if plain else f"./{relative}"
            line = json.dumps({"id": relative, "path": path}, ensure_ascii=False) + "\n"
            yield line.encode("utf-8", "surrogateescape")
