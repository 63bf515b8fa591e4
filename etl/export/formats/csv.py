"""CSV (RFC 4180, UTF-8), safe to open in a spreadsheet."""

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from etl.export.columns import ADDED, cell, columns, own_columns
from etl.export.format import FileFormat, Sink, option
from etl.export.lines import ExportOptions, Joined
from etl.state.read.reader import Reader

_BUFFER = 1 << 20
"""Characters that are collected before they are written."""

_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""How a cell begins that a spreadsheet takes for a formula, in full width too, or that was one before its quote."""
_NUMBER = re.compile(r"[+-](\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def unformulaic(cell: str) -> str:
    """Return a text that a spreadsheet might run with a quote before it; numbers and all other texts as they are.

    One that begins so with quotes before it gets one more, so that taking one away gives what it was.
    """
    return "'" + cell if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


@dataclass(frozen=True)
class CsvFormat(FileFormat):
    """A format of rows of cells."""

    shard_suffix = ".csv"
    to_stdout = True

    escape_formulae: bool = option(True, "In CSV and dc, put a quote before cells that a spreadsheet would run.")

    @property
    def variant(self) -> bytes:
        """Told apart by its cells, which differ where they begin as formulae do."""
        return b"escaped" if self.escape_formulae else b""

    def put(self, stream: Sink, rows: Iterable[Iterable[str]]) -> None:
        """Write rows, the header among them."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\r\n")
        for row in rows:
            writer.writerow(map(unformulaic, row) if self.escape_formulae else row)
            if text.tell() > _BUFFER:
                _pour(text, stream)
        _pour(text, stream)


def _pour(text: io.StringIO, stream: Sink) -> None:
    stream.write(text.getvalue().encode("utf-8", "replace"))
    text.seek(0)
    text.truncate()


@dataclass(frozen=True)
class Csv(CsvFormat):
    """A header and one row for each record; what is not known is empty."""

    name = "csv"
    help = (
        "the records' own columns as they came, and behind them `vlm_caption`, `vlm_captioned_at`, "
        "`vlm_caption_source`, `vlm_error`, `vlm_outcome`, `vlm_key`, `vlm_url`, `vlm_finish_reason`, `vlm_tokens`, "
        "`vlm_flags`, `vlm_image_sha256` and `vlm_image_flags`"
    )
    suffixes = (".csv",)

    header: tuple[str, ...] = ()

    def fitted(self, reader: Reader, options: ExportOptions) -> "Csv":
        """Return it with the columns of the state's records."""
        return dataclasses.replace(self, header=own_columns(reader, provenance=options.provenance) + ADDED)

    @property
    def variant(self) -> bytes:
        """Told apart by its columns too."""
        return super().variant + repr(self.header).encode("utf-8", "replace")

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write header and rows."""
        self.put(stream, self._rows(records))

    def _rows(self, records: Iterator[Joined]) -> Iterator[Iterable[str]]:
        yield self.header
        for record in records:
            values = columns(record)
            values |= {name: ",".join(values[name]) for name in ("vlm_flags", "vlm_image_flags")}
            yield [cell(values.get(name)) for name in self.header]


FORMAT = Csv
