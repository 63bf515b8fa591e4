"""The formats of an export's files: how records become bytes, a bounded number of them at a time."""

import csv
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from etl.clock import iso_utc
from etl.domain.statuses import RecordOutcome
from etl.errors import ConfigError, StateError
from etl.export.lines import CAPTION, CAPTIONED_AT, ERROR, SOURCE, Joined
from etl.extras import pyarrow
from etl.images.cache import read_working

ROW_GROUP = 5_000
"""Records in one row group of a Parquet file; held in memory until it is written."""

COLUMNS = (
    "key", "outcome", "url", CAPTION, CAPTIONED_AT, SOURCE, ERROR, "finish_reason", "tokens", "flags", "image_sha256",
    "record",
)  # fmt: skip
"""Columns of CSV and Parquet.  ``record`` is the record's line of JSON Lines; its fields have no columns of their own,
because records need not have the same ones, or of one kind."""


_BUFFER = 1 << 20
"""Characters of CSV that are collected before they are written."""


class Sink(Protocol):
    """Whatever takes bytes."""

    def write(self, data: bytes, /) -> object:
        """Take all of them."""


class Encoder(Protocol):
    """Writes one file of a format.

    Attributes:
        suffix: of such a file's name.
    """

    suffix: str

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write all records to an open file."""


def encoder(kind: str, picture: Callable[[Joined], Path] | None = None, *, escape_formulae: bool = True) -> Encoder:
    """Return the encoder of a format.

    ``picture`` says where a record's picture lies, for formats that hold it; ``escape_formulae`` is of CSV.
    """
    if kind == "webdataset" and picture:
        return WebDataset(picture)
    if kind == "csv":
        return Csv(escape_formulae=escape_formulae)
    encoders: dict[str, Callable[[], Encoder]] = {"jsonl": JsonLines, "parquet": Parquet}
    return encoders[kind]()


class JsonLines:
    """One line for each record."""

    suffix = ".jsonl"

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write all; a line that ended its file without a line end gets one if more follow."""
        previous = b"\n"
        for record in records:
            if not previous.endswith(b"\n"):
                stream.write(b"\n")
            stream.write(record.line)
            previous = record.line


_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""How a cell begins that a spreadsheet takes for a formula, in full width too, or that was one before its quote."""
_NUMBER = re.compile(r"[+-](\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def unformulaic(cell: Any) -> Any:
    """Return a text that a spreadsheet might run with a quote before it; numbers and all other values as they are.

    One that begins so with quotes before it gets one more, so that taking one away gives what it was.
    """
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return "'" + cell
    return cell


class Csv:
    """A header and one row for each record (RFC 4180, UTF-8); what is not known is empty.

    Attributes:
        escape_formulae: whether cells that begin as a formula does get a quote before them.
    """

    suffix = ".csv"

    def __init__(self, *, escape_formulae: bool = True) -> None:
        self.escape_formulae = escape_formulae

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write header and rows."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerow(COLUMNS)
        for record in records:
            row = columns(record)
            row["flags"] = ",".join(row["flags"])
            row[CAPTIONED_AT] = iso_utc(row[CAPTIONED_AT]) if row[CAPTIONED_AT] is not None else None
            writer.writerow(map(unformulaic, row.values()) if self.escape_formulae else row.values())
            if text.tell() > _BUFFER:
                _pour(text, stream)
        _pour(text, stream)


def _pour(text: io.StringIO, stream: Sink) -> None:
    stream.write(text.getvalue().encode("utf-8", "replace"))
    text.seek(0)
    text.truncate()


class Parquet:
    """The same columns, typed, in row groups of `ROW_GROUP` records."""

    suffix = ".parquet"

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write row group after row group."""
        arrow = pyarrow()
        kinds = {
            CAPTIONED_AT: arrow.timestamp("ms", tz="UTC"),
            "tokens": arrow.int32(),
            "flags": arrow.list_(arrow.string()),
        }
        schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in COLUMNS])
        sink = arrow.PythonFile(_Unclosed(stream), mode="w")
        with arrow.parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
            while rows := [columns(record) for record in islice(records, ROW_GROUP)]:
                try:
                    table = arrow.Table.from_pylist(rows, schema)
                except (arrow.ArrowException, OverflowError) as error:
                    raise StateError(
                        f"the state database is damaged: a stored value makes no sense ({error})"
                    ) from error
                writer.write_table(table)


def columns(record: Joined) -> dict[str, Any]:
    """Return the values of `COLUMNS` for one record, in that order."""
    row, done = record.row, record.outcome == RecordOutcome.CAPTIONED
    values = {
        "key": row.key, "outcome": str(record.outcome), "url": row.url, CAPTION: row.text if done else None,
        CAPTIONED_AT: row.done_at if done else None, SOURCE: None,
        ERROR: row.error_class if record.outcome == RecordOutcome.FAILED else None,
        "finish_reason": row.finish_reason if done else None, "tokens": row.tokens if done else None,
        "flags": row.flags.split(",") if done and row.flags else [], "image_sha256": row.image_sha256,
        "record": record.line.strip().decode("utf-8", "replace"),
    }  # fmt: skip
    if done:
        values[SOURCE] = record.recipe
    return values


_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,80}")
_LIKE_ESCAPED = re.compile(r".*-[0-9a-f]{16}")


def safe_name(key: str) -> str:
    """Return a file name without a dot for a record's key: the key itself where it can be one, else with a hash.

    Different keys have different names, and nothing that a manifest says leaves the directory.
    """
    if _PLAIN.fullmatch(key) and not _LIKE_ESCAPED.fullmatch(key):
        return key
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", key)[:60]
    return f"{readable}-{sha256(key.encode()).hexdigest()[:16]}"


class WebDataset:
    """A tar file with three members for each record: ``name.jpg``, ``name.json`` and ``name.txt``, the caption.

    Attributes:
        picture: says where a record's picture lies.
    """

    suffix = ".tar"

    def __init__(self, picture: Callable[[Joined], Path]) -> None:
        self.picture = picture

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write sample after sample; raise `ConfigError` for a picture that has gone."""
        with tarfile.open(fileobj=_Unclosed(stream), mode="w|", format=tarfile.USTAR_FORMAT) as tar:
            for record in records:
                name = safe_name(record.row.key)
                line = record.line.strip().removeprefix(b"\xef\xbb\xbf")
                for suffix, data in (
                    ("jpg", picture_bytes(self.picture(record))),
                    ("json", line),
                    ("txt", (record.row.text or "").encode()),
                ):
                    member = tarfile.TarInfo(f"{name}.{suffix}")
                    # The same records give the same bytes: no times, owners or modes of this machine.
                    member.size, member.mode = len(data), 0o644
                    tar.addfile(member, io.BytesIO(data))


def picture_bytes(path: Path) -> bytes:
    """Return a working copy; raise `ConfigError` where it is not in the cache although the state says so."""
    try:
        return read_working(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read ({why}); run `etl verify`, then `etl fetch`") from error


class _Unclosed(io.RawIOBase):
    """Passes bytes on; closing it leaves the file open, which belongs to somebody else."""

    def __init__(self, stream: Sink) -> None:
        super().__init__()
        self._stream = stream
        self._place = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = bytes(data)
        self._stream.write(data)
        self._place += len(data)
        return len(data)

    def tell(self) -> int:
        return self._place


def metadata_line(record: Joined, file_name: str) -> bytes:
    """Return the line of an image folder's ``metadata.jsonl``: the columns, with the picture's name first."""
    values = columns(record)
    at = values[CAPTIONED_AT]
    values[CAPTIONED_AT] = iso_utc(at) if at is not None else None
    return json.dumps({"file_name": file_name} | values, ensure_ascii=True).encode() + b"\n"
