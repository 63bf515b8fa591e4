"""CSV (RFC 4180, UTF-8), safe to open in a spreadsheet."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from etl.export.columns import COLUMNS, columns
from etl.export.format import FileFormat, Sink, option
from etl.export.lines import Joined

_BUFFER = 1 << 20
"""Characters that are collected before they are written."""

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


@dataclass(frozen=True)
class Csv(FileFormat):
    """A header and one row for each record; what is not known is empty."""

    name = "csv"
    help = (
        "columns `key`, `outcome`, `url`, `vlm_caption`, `vlm_captioned_at`, `vlm_caption_source`, `vlm_error`, "
        "`finish_reason`, `tokens`, `flags`, `image_sha256`, `image_flags`, and `record`, the line of JSON Lines"
    )
    suffixes = (".csv",)
    shard_suffix = ".csv"
    to_stdout = True

    escape_formulae: bool = option(True, "In CSV, put a quote before cells that a spreadsheet would run.")

    @property
    def variant(self) -> bytes:
        """Told apart by its cells, which differ where they begin as formulae do."""
        return b"escaped" if self.escape_formulae else b""

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write header and rows."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerow(COLUMNS)
        for record in records:
            row = columns(record, spelled=True)
            row |= {name: ",".join(row[name]) for name in ("flags", "image_flags")}
            writer.writerow(map(unformulaic, row.values()) if self.escape_formulae else row.values())
            if text.tell() > _BUFFER:
                _pour(text, stream)
        _pour(text, stream)


def _pour(text: io.StringIO, stream: Sink) -> None:
    stream.write(text.getvalue().encode("utf-8", "replace"))
    text.seek(0)
    text.truncate()


FORMAT = Csv
