"""Finding records by their key, or by any text of their line or caption, a bounded read at a time."""

import json
from dataclasses import dataclass

from etl.state.read.reader import Reader
from etl.state.read.titles import title_and_date
from etl.state.record_captions import CURRENT_RECIPE, caption_of_record

FOUND_AT_ONCE = 200
"""Records that are listed."""

LOOKED_AT_ONCE = 2000
"""Records that one read of a search through the texts looks at: about 30 ms."""


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """One record in a list.

    Attributes:
        key: its key.
        state, outcome: as in ``records`` (`RecordState`, `RecordOutcome`).
        title: what its line calls the picture.
    """

    key: str
    state: str
    outcome: str
    title: str | None


_FOUND = "SELECT r.id, r.key, r.state, r.outcome, l.line FROM records r LEFT JOIN record_lines l ON l.record = r.id"


def first_records(reader: Reader) -> list[FoundRecord]:
    """Return the records that were ingested first."""
    return [_found(row) for row in reader.rows(f"{_FOUND} ORDER BY r.id LIMIT {FOUND_AT_ONCE}")]


def is_record(reader: Reader, key: str) -> bool:
    """Return whether there is a record of exactly this key."""
    return bool(reader.rows("SELECT 1 FROM records WHERE key = ?", (key,)))


def records_by_key(reader: Reader, text: str) -> list[FoundRecord]:
    """Return the records whose key begins with the text, in the order of their keys: the same key comes first."""
    rows = reader.rows(
        f"{_FOUND} WHERE r.key >= ? AND r.key < ? ORDER BY r.key LIMIT {FOUND_AT_ONCE}", (text, f"{text}\U0010ffff")
    )
    return [_found(row) for row in rows]


def records_by_text(reader: Reader, text: str, after: int = 0) -> tuple[list[FoundRecord], int | None, int]:
    """Return those of the next records that hold the text in key, line or caption, whatever the case.

    ``after`` is the row that was looked at last.  With them come the next such row, ``None`` when there are no more,
    and the number of rows that were looked at.
    """
    rows = reader.rows(
        "SELECT r.id, r.key, r.state, r.outcome, l.line, c.text FROM records r "
        "LEFT JOIN record_lines l ON l.record = r.id LEFT JOIN sources s ON s.id = r.source "
        f"{caption_of_record(CURRENT_RECIPE)} WHERE r.id > ? ORDER BY r.id LIMIT {LOOKED_AT_ONCE}",
        (after,),
    )
    found = [_found(row[:5]) for row in rows if _holds(row, text.casefold())]
    return found, rows[-1][0] if len(rows) == LOOKED_AT_ONCE else None, len(rows)


def _holds(row: tuple[object, ...], wanted: str) -> bool:
    _, key, _, _, line, caption = row
    return any(wanted in text.casefold() for text in (str(key), _text_of(line), str(caption or "")))


def _text_of(line: object) -> str:
    text = bytes(line).decode("utf-8", "replace") if isinstance(line, bytes) else ""
    if "\\u" not in text:
        return text
    # Letters as JSON escapes have no other case.
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _found(row: tuple[object, ...]) -> FoundRecord:
    _, key, state, outcome, line = row
    title = title_and_date(line)[0] if isinstance(line, bytes) else None
    return FoundRecord(str(key), str(state), str(outcome), title)
