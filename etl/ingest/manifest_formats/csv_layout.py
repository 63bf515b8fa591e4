"""How a CSV is laid out: what stands between its values, where its header is, and what its columns are called."""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from etl.errors import ManifestError
from etl.ingest.fields import is_address, is_known, is_picture
from etl.ingest.manifest_formats.file import HEAD, ManifestFile

_SUFFIXES = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}
_DELIMITERS = (",", ";", "\t", "|")
_NO_DELIMITER = "\x1f"
_ENTITY = re.compile(r"&#?\w+$")
_ROWS, _TITLES = 60, 20
"""Rows that are looked at, and above how many the header must lie."""


@dataclass(frozen=True)
class Layout:
    """How rows are read.

    Attributes:
        dialect: how values are parted and quoted, as `csv.reader` is told.
        skipped: lines above the first row, the header's included.
        names: of the columns.
    """

    dialect: Mapping[str, Any]
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
    if is_named and is_cut and "\n" not in text and "\r" not in text:
        raise ManifestError(f"{file.name}: its first row has more than {HEAD} bytes, which is no header")
    tried = [_tried(text, one, is_cut=is_cut, is_named=is_named) for one in delimiters]
    found = max((one for one in tried if one is not None), default=None, key=lambda one: one[0])
    if found is None and (is_separator or is_named or _is_column(text)):
        found = _tried(text, _NO_DELIMITER, is_cut=is_cut, is_named=True)
    if found is None:
        return Layout({}, 0, ()) if is_named else None
    (sure, *_), layout = found
    if not (is_named or is_separator or sure or layout.dialect["delimiter"] == _NO_DELIMITER):
        return None
    return Layout(layout.dialect, layout.skipped + is_separator, layout.names)


def _is_column(text: str) -> bool:
    """Return whether a text is a single column under the name of one that is looked for."""
    first, _, rest = text.lstrip().partition("\n")
    return is_known(first.strip().strip('"')) and bool(rest.strip())


_Tried = tuple[tuple[int, float, int], Layout]


def _tried(text: str, delimiter: str, *, is_cut: bool, is_named: bool) -> _Tried | None:
    """Return how well a text fits this delimiter, and its layout with it; ``None`` where it has a single column."""
    dialect: dict[str, Any] = {"delimiter": delimiter}
    if re.match(rf"\s*'[^'\n]*'{re.escape(delimiter)}'", text):
        dialect["quotechar"] = "'"
    rows = _rows(text, dialect, is_cut=is_cut)
    if any(cell.startswith(' "') for _, cells in rows for cell in cells):
        dialect["skipinitialspace"] = True
        rows = _rows(text, dialect, is_cut=is_cut)
    if not rows:
        return None
    usual = Counter(len(cells) for _, cells in rows).most_common(1)[0][0]
    single = delimiter == _NO_DELIMITER
    if usual < 2 and max(len(cells) for _, cells in rows[:_TITLES]) < 2 and not single:
        return None
    at = _header(rows, usual)
    line, header = rows[at]
    values = [cells for _, cells in rows[at + 1 :]]
    fitting = sum(_width(cells) <= len(header) for cells in values) / len(values) if values else 1.0
    says_picture = is_picture if is_named or delimiter == "\t" else is_address
    at_picture = next((number for number, cell in enumerate(header) if says_picture(cell)), None)
    if at_picture is not None:
        # No header at all; commas may well be those of URLs.
        if not single and (fitting < 1 or (delimiter == "," and not is_named) or usual < 2):
            return None
        # So may semicolons, and the ends of HTML's entities are none.
        if delimiter == ";" and at_picture + 1 < usual and (not is_named or _ENTITY.search(header[at_picture])):
            return None
        names = ["url" if number == at_picture else f"column{number + 1}" for number in range(usual)]
        above = rows[at - 1][0] if at else 0
        return (1, fitting, len(names)), Layout(dialect, above, tuple(names))
    whole = len(header)
    while len(header) > 1 and not header[-1].strip() and all(_width(cells) < len(header) for cells in values):
        header.pop()
    seen = Counter[str]()
    for number, name in enumerate(header):
        seen[name] += 1
        header[number] = name if seen[name] == 1 else f"{name}#{seen[name]}"
    if whole < 2 and not single:
        return None
    # A tab stands in no address, and none in a column that holds nothing else by chance.
    columns = zip(*values, strict=False) if fitting == 1 else ()
    sure = 2 * any(map(is_known, header)) or any(delimiter == "\t" or all(map(is_address, cells)) for cells in columns)
    return (int(sure), fitting, len(header)), Layout(dialect, line, tuple(header))


def _rows(text: str, dialect: Mapping[str, Any], *, is_cut: bool) -> list[tuple[int, list[str]]]:
    """Return the first rows that are not empty, each with the number of the line that it ends on."""
    reader = csv.reader(io.StringIO(text, newline=""), **dialect)
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
    """Return which row is the header: the first that is about full and as wide as most.

    Before it, or with two names that are looked for behind it, is one that has such names.
    """
    first = [cells for _, cells in rows[:_TITLES]]
    filled = [sum(map(bool, cells)) for cells in first]
    width = Counter(_width(cells) for _, cells in rows).most_common(1)[0][0]
    enough = max(min(2, usual), usual / 2)
    full = next((n for n, cells in enumerate(first) if filled[n] >= enough and _width(cells) >= width), 0)
    for number, cells in enumerate(first):
        if any(map(is_picture, cells)):
            break
        known = sum(map(is_known, cells))
        if known > (number > full) and filled[number] >= min(2, usual):
            return number
    return full


def _width(cells: Sequence[str]) -> int:
    """Return how many values a row has, empty ones at its end left out."""
    return max((number for number, cell in enumerate(cells, 1) if cell.strip()), default=0)
