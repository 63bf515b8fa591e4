"""CSV and TSV, as spreadsheets and databases write them: each row becomes an object with the columns' names."""

import csv
import io
from collections.abc import Iterator

from etl.errors import ManifestError
from etl.ingest.manifest_formats.csv_layout import Layout, layout_of
from etl.ingest.manifest_formats.file import MAX_LINE, BadRow, ManifestFile, json_line

_RUNAWAYS = 20
"""Quotes that nothing closes, for each of which very much is read in vain, after which a file is no CSV."""


def recognises(file: ManifestFile) -> bool:
    """Return whether it is one, by its name or by the names of its columns."""
    return layout_of(file) is not None


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Yield a line for each row; one that is not like the others is a `BadRow`."""
    layout = layout_of(file)
    if layout is None:
        return
    csv.field_size_limit(2 * MAX_LINE)
    with file.text() as text:
        source = _Lines(text, file.name)
        for _ in range(layout.skipped):
            source.passed_over()
        yield from _rows(source, layout)


def _rows(source: "_Lines", layout: Layout) -> Iterator[bytes]:
    rows = csv.reader(source, strict=True, **layout.dialect)
    width, runaways = len(layout.names), 0
    while True:
        source.row.clear()
        try:
            cells = next(rows)
        except StopIteration:
            return
        except (csv.Error, _EndlessRow) as error:
            runaways += isinstance(error, _EndlessRow)
            if runaways > _RUNAWAYS:
                raise source.too_long() from error
            yield source.bad_row(f"not valid CSV: {error}")
            continue
        if not cells:
            continue
        if not any(map(str.strip, cells)):
            # A line for all that: keys tell the line.
            yield b"\n"
            continue
        while len(cells) > width and not cells[-1].strip():
            cells.pop()
        if len(source.row) > 1 and len(cells) != width:
            # A quote that a later row closed by chance.
            yield source.bad_row("not valid CSV: a stray quote")
            continue
        record = {**dict.fromkeys(layout.names), **dict(zip(layout.names, cells, strict=False))}
        if cells == list(layout.names):
            yield BadRow.of(record, "the header once more")
        elif len(cells) > width:
            yield BadRow.of(record, f"{len(cells)} values, more than the {width} columns of the header")
        else:
            yield json_line(record)


class _EndlessRow(Exception):
    """A row is longer than a line of JSON may be."""


class _Lines:
    """The lines of a CSV, of which those of a row that went wrong can be read again.

    Attributes:
        row: those read of the row at hand.
    """

    def __init__(self, text: io.TextIOWrapper, name: str) -> None:
        self._text = text
        self._name = name
        self._number = 0
        self._again: list[str] = []
        self._size = 0
        self.row: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else self._read()
        self._size = self._size + len(line) if self.row else len(line)
        self.row.append(line)
        if self._size > MAX_LINE:
            raise _EndlessRow(f"a row of more than {MAX_LINE} characters")
        return line

    def passed_over(self) -> None:
        """Read a line above the rows."""
        if (line := self._text.readline(MAX_LINE + 1)) and len(line) > MAX_LINE:
            raise self.too_long()
        self._number += 1

    def bad_row(self, reason: str) -> BadRow:
        """Return the first line of the row at hand as a bad one; those behind it are read again."""
        first, *others = self.row
        self._again += reversed(others)
        return BadRow.of({"row": first.rstrip("\r\n")}, reason)

    def too_long(self) -> ManifestError:
        """Return the error of a row without an end."""
        return ManifestError(f"{self._name}, line {self._number + 1}: a row of more than {MAX_LINE} characters")

    def _read(self) -> str:
        line = self._text.readline(MAX_LINE + 1)
        if not line:
            raise StopIteration
        if len(line) > MAX_LINE:
            raise self.too_long()
        self._number += 1
        return line
