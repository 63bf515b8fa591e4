"""The last export on record, read again: is each active record in it once, with a caption that the state holds?"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, cast

from etl.compression import zstd
from etl.domain.statuses import RecordOutcome, RecordState
from etl.export.lines import CAPTION, FIELDS
from etl.state.checks import EXAMPLES, summed_up
from etl.state.read.export_rows import ExportRow, export_rows
from etl.state.read.exports import ExportedFile, caption_texts, changed_since, last_exported_file
from etl.state.read.manifests import all_manifests
from etl.state.read.reader import Reader


class ExportFound(StrEnum):
    """What became of the comparison with the last export on record."""

    NONE = "none"
    """Nothing was exported to a file."""
    GONE = "gone"
    """Its file is no longer there."""
    CHANGED = "changed"
    """Its file is another one by now, or damaged; that is a fault."""
    OLDER = "older"
    """Runs after it may have changed the records or their pictures, so that it need not be what the state says."""
    COMPARED = "compared"
    """It was read again, line by line."""


@dataclass
class _Faults:
    """Keys or line numbers with the same fault; the first few of them by name."""

    found: dict[str, tuple[list[str], int]] = field(default_factory=dict)

    def add(self, what: str, where: str) -> None:
        examples, total = self.found.get(what, ([], 0))
        self.found[what] = (examples + [where] * (len(examples) < EXAMPLES), total + 1)

    def lines(self, path: Path) -> Iterator[str]:
        for what, (examples, total) in self.found.items():
            yield from summed_up(f"{what} {path}", examples, total)


def compare_export(reader: Reader) -> tuple[ExportFound, list[str]]:
    """Compare the last export on record with the state; return how far that went, and what is wrong.

    A file that has gone is no fault: exports are made to be taken away.  One that is there and is not what was written
    is: whoever takes it would take it for the export.
    """
    export = last_exported_file(reader)
    if export is None:
        return ExportFound.NONE, []
    if not export.path.is_file():
        return ExportFound.GONE, []
    if _sha256(export.path) != export.sha256:
        return ExportFound.CHANGED, [
            f"the export {export.path} is not what was written there: it was edited, cut, damaged or replaced; if it "
            "is to be the export, run `etl export` again"
        ]
    if changed_since(reader, export):
        return ExportFound.OLDER, []
    return ExportFound.COMPARED, list(_compare(reader, export))


def _sha256(path: Path) -> str | None:
    """Return the hash of the uncompressed lines; ``None`` where they cannot be read to their end."""
    try:
        digest = hashlib.sha256()
        with _opened(path) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    except (OSError, EOFError, zlib.error, zstd.ZstdError):
        return None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as packed:
            yield cast(BinaryIO, packed)
    elif path.suffix.lower() == ".zst":
        with zstd.open(path) as packed:
            yield cast(BinaryIO, packed)
    else:
        with path.open("rb") as file:
            yield file


def _compare(reader: Reader, export: ExportedFile) -> Iterator[str]:
    """Go through file and state side by side: both are in manifest order, so nothing need be remembered."""
    faults, partial = _Faults(), _has_captions_alone(export.path)
    with _opened(export.path) as stream:
        lines = _objects(stream)
        number, line = next(lines, (0, None))
        previous: dict[str, Any] | None = None
        for row in _rows(reader, export):
            record = _loaded(row.line)
            while line is not None and previous is not None and not _same(line, record) and _same(line, previous):
                faults.add("twice, or out of its place, in the export", f"line {number}")
                number, line = next(lines, (0, None))
            if line is not None and _same(line, record):
                _check_caption(reader, export, row, line, faults)
                number, line = next(lines, (0, None))
                previous = record
            elif row.state == RecordState.ACTIVE and not (
                partial and not caption_texts(reader, row.record, export.recipe, export.run)
            ):
                faults.add("missing from its place in the export", f"record {row.key}")
        while line is not None:
            faults.add("twice, or out of its place, in the export", f"line {number}")
            number, line = next(lines, (0, None))
    yield from faults.lines(export.path)


def _has_captions_alone(path: Path) -> bool:
    """Return whether the export may have been made with ``--only-captioned``, which is not on record."""
    with _opened(path) as stream:
        return all(line.get(CAPTION) is not None for _, line in _objects(stream))


def _rows(reader: Reader, export: ExportedFile) -> Iterator[ExportRow]:
    """Yield the records that have a line in an export, in its order."""
    for manifest, *_ in all_manifests(reader):
        for row in export_rows(reader, manifest, export.recipe):
            if not (row.state == RecordState.INVALID and row.error_class == "invalid_json"):
                yield row


def _objects(stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(stream, start=1):
        yield number, _loaded(line)


def _loaded(line: bytes) -> dict[str, Any]:
    """Return the object of a line; numbers as they are written, so that equal ones are equal and NaN is too."""
    try:
        value = json.loads(line.decode("utf-8-sig"), parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _same(line: dict[str, Any], record: dict[str, Any]) -> bool:
    """Return whether a line of the export is of this record: nothing differs but what an export adds."""
    names = (line.keys() | record.keys()) - set(FIELDS)
    return all(name in line and name in record and line[name] == record[name] for name in names)


def _check_caption(reader: Reader, export: ExportedFile, row: ExportRow, line: dict[str, Any], faults: _Faults) -> None:
    if row.state != RecordState.ACTIVE:
        return
    text = line.get(CAPTION)
    if text is None:
        if row.outcome == RecordOutcome.CAPTIONED and caption_texts(reader, row.record, export.recipe, export.run):
            faults.add("without its caption in the export", f"record {row.key}")
    elif text != row.text and text not in caption_texts(reader, row.record, export.recipe):
        faults.add("with a caption that the state does not hold for it, in the export", f"record {row.key}")
