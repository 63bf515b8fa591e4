"""The columns of formats that are tables: the records' own fields, and behind them what the state knows."""

import json
from typing import Any

from etl.domain.statuses import RecordOutcome
from etl.errors import ConfigError, StateError
from etl.export.lines import CAPTION, CAPTIONED_AT, ERROR, PROVENANCE, SOURCE, Joined, flags_of
from etl.state.read.manifests import exported_lines
from etl.state.read.reader import Reader

ADDED = (
    CAPTION, CAPTIONED_AT, SOURCE, ERROR, "vlm_outcome", "vlm_key", "vlm_url", "vlm_finish_reason", "vlm_tokens",
    "vlm_flags", "vlm_image_sha256", "vlm_image_flags",
)  # fmt: skip
"""Columns that every table has, behind the records' own."""

MOST = 5_000
"""Fields of all records together that a table has columns for."""


class Written(float):
    """A number of JSON that knows how it was written.

    Attributes:
        text: digit by digit.
    """

    text: str

    @classmethod
    def of(cls, text: str) -> "Written":
        """Return the number that is written so."""
        number = cls(text)
        number.text = text
        return number


def fields_of(line: bytes) -> dict[str, Any]:
    """Return the fields of a record's line; half a surrogate pair, which no table can hold, as a question mark.

    Raises `StateError` for what is no record: ingest lets none in.
    """
    text = line.decode("utf-8-sig", "replace")
    try:
        values = json.loads(text, parse_float=Written.of)
        if "\\ud" in text.lower():
            values = json.loads(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise StateError(f"the state database is damaged: a stored record makes no sense ({error})") from error
    if not isinstance(values, dict):
        raise StateError("the state database is damaged: a stored record is no object")
    return values


def own_columns(reader: Reader, *, provenance: bool) -> tuple[str, ...]:
    """Return the fields of all records of the state in the order in which they first come, without those of `ADDED`.

    Raises `ConfigError` for more than `MOST`.
    """
    names = dict[str, None]()
    for line in exported_lines(reader):
        names.update(dict.fromkeys(fields_of(line)))
        if len(names) > MOST:
            raise ConfigError(f"the records have more than {MOST:,} different fields; export them as jsonl")
    if provenance:
        names[PROVENANCE] = None
    return tuple(name for name in names if name not in ADDED)


def columns(record: Joined) -> dict[str, Any]:
    """Return the record's fields, as its line of JSON Lines has them, and the values of `ADDED`."""
    row, done = record.row, record.outcome == RecordOutcome.CAPTIONED
    return {
        **fields_of(record.line),
        "vlm_outcome": str(record.outcome), "vlm_key": row.key, "vlm_url": row.url,
        "vlm_finish_reason": row.finish_reason if done else None, "vlm_tokens": row.tokens if done else None,
        "vlm_flags": flags_of(row.flags) if done else [], "vlm_image_sha256": row.image_sha256,
        "vlm_image_flags": flags_of(row.image_flags),
    }  # fmt: skip


def cell(value: Any) -> str:
    """Return a value as text: texts as they are, nothing as an empty one, anything else as it was written in JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return value.text if isinstance(value, Written) else json.dumps(value, ensure_ascii=False)
