"""How a CSV is laid out: what stands between its values, where its header is, and what its columns are called."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from etl.ingest.fields import is_address, is_known, is_picture
from etl.ingest.manifest_formats.file import HEAD, ManifestFile

_SUFFIXES = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}
_DELIMITERS = (",", ";", "\t", "|")
_NO_DELIMITER = "\x1f"
_ROWS, _TITLES = 60, 20
"""Rows that are looked at, and above how many the header must lie."""


@dataclass(frozen=True)
class Layout:
    """How rows are read.

    Attributes:
        delimiter: stands between values.
        skipped: lines above the first row, the header's included.
        names: of the columns.
    """

    delimiter: str
    skipped: int
    names: tuple[str, ...]


def layout_of(file: ManifestFile) -> Layout | None:
    """Return how a manifest is laid out; ``None`` where neither its name nor its columns say that it is CSV."""
    is_named = file.suffix in _SUFFIXES
    text = file.head_text
    first, _, rest = text.partition("\n")
    if is_separator := first.strip().lower().startswith("sep=") and len(first.rstrip("\r\n")) == 5:
        delimiters: Sequence[str] = (first.rstrip("\r\n")[-1],)
        text = rest
    else:
        own = _SUFFIXES.get(file.suffix, ",")
        delimiters = (own, *(one for one in _DELIMITERS if one != own))
    is_cut = len(file.head) == HEAD
    tried = [_tried(text, one, is_cut=is_cut, is_named=is_named) for one in delimiters]
    found = max((one for one in tried if one is not None), default=None, key=lambda one: one[0])
    if found is None and (is_separator or is_named or _is_column(text)):
        found = _tried(text, _NO_DELIMITER, is_cut=is_cut, is_named=True)
    if found is None:
        return Layout(delimiters[0], 0, ()) if is_named else None
    (is_sure, *_), layout = found
    if not (is_named or is_separator or is_sure or layout.delimiter == _NO_DELIMITER):
        return None
    return Layout(layout.delimiter, layout.skipped + is_separator, layout.names)


def _is_column(text: str) -> bool:
    """Return whether a text is a single column under the name of one that is looked for."""
    first, _, rest = text.lstrip().partition("\n")
    return is_known(first.strip().strip('"')) and bool(rest.strip())


_Tried = tuple[tuple[bool, float, int], Layout]


def _tried(text: str, delimiter: str, *, is_cut: bool, is_named: bool) -> _Tried | None:
    """Return how well a text fits this delimiter, and its layout with it; ``None`` where it has a single column."""
    rows = _rows(text, delimiter, is_cut=is_cut)
    if not rows:
        return None
    usual = Counter(len(cells) for _, cells in rows).most_common(1)[0][0]
    single = delimiter == _NO_DELIMITER
    if usual < 2 and max(len(cells) for _, cells in rows[:_TITLES]) < 2 and not single:
        return None
    at = _header(rows, usual)
    line, header = rows[at]
    values = rows[at + 1 :]
    fitting = sum(_width(cells) <= len(header) for _, cells in values) / len(values) if values else 1.0
    if any(is_address(cell) for cell in header):
        # No header at all; commas may well be those of URLs.
        if not single and (fitting < 1 or (delimiter == "," and not is_named) or usual < 2):
            return None
        at_url = next(number for number, cell in enumerate(header) if is_address(cell))
        names = ["url" if number == at_url else f"column{number + 1}" for number in range(usual)]
        above = rows[at - 1][0] if at else 0
        return (True, fitting, len(names)), Layout(delimiter, above, tuple(names))
    while len(header) > 1 and not header[-1].strip():
        header.pop()
    seen = Counter[str]()
    for number, name in enumerate(header):
        seen[name] += 1
        header[number] = name if seen[name] == 1 else f"{name}#{seen[name]}"
    if len(header) < 2 and not single:
        return None
    return (any(map(is_known, header)), fitting, len(header)), Layout(delimiter, line, tuple(header))


def _rows(text: str, delimiter: str, *, is_cut: bool) -> list[tuple[int, list[str]]]:
    """Return the first rows that are not empty, each with the number of the line that it ends on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[tuple[int, list[str]]] = []
    try:
        for cells in islice(reader, _ROWS):
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num, cells))
    except csv.Error:
        is_cut = False
    if is_cut and len(rows) > 1 and next(reader, None) is None:
        rows.pop()
    return rows


def _header(rows: Sequence[tuple[int, list[str]]], usual: int) -> int:
    """Return which row is the header: one that names what is looked for, else the first that is about full."""
    for number, (_, cells) in enumerate(rows[:_TITLES]):
        if any(map(is_picture, cells)):
            break
        if any(map(is_known, cells)):
            return number
    enough = max(min(2, usual), usual / 2)
    return next((n for n, (_, cells) in enumerate(rows[:_TITLES]) if sum(map(bool, cells)) >= enough), 0)


def _width(cells: Sequence[str]) -> int:
    """Return how many values a row has, empty ones at its end left out."""
    return max((number for number, cell in enumerate(cells, 1) if cell.strip()), default=0)
