"""CSV with a header: each row becomes an object with the columns' names."""

import csv
import io
import json
from collections.abc import Iterator

from etl.errors import ManifestError
from etl.ingest.manifest_formats.file import MAX_LINE, ManifestFile


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Yield a line for each row."""
    with file.open() as stream:
        # surrogateescape carries bytes that are not UTF-8 through to the record, which then is invalid alone.
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        try:
            yield from _rows(text, file.name)
        finally:
            text.detach()


def _rows(text: io.TextIOWrapper, name: str) -> Iterator[bytes]:
    bounded = _BoundedLines(text, name)
    rows = csv.DictReader(bounded, strict=True)
    try:
        for row in rows:
            bounded.in_row = 0
            if None in row:
                raise ManifestError(f"{name}, line {rows.line_num}: more values than the header has columns")
            line = json.dumps(row, ensure_ascii=False) + "\n"
            yield line.encode("utf-8", "surrogateescape")
    except csv.Error as error:
        raise ManifestError(f"{name}, line {rows.reader.line_num}: not valid CSV: {error}") from error


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
