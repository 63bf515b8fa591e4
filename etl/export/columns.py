"""The columns of formats that are tables, and names and bytes of the pictures beside them."""

import re
from typing import Any

from etl.clock import iso_utc
from etl.domain.statuses import RecordOutcome
from etl.errors import ConfigError
from etl.export.lines import CAPTION, CAPTIONED_AT, ERROR, SOURCE, Joined, flags_of

COLUMNS = (
    "key", "outcome", "url", CAPTION, CAPTIONED_AT, SOURCE, ERROR, "finish_reason", "tokens", "flags", "image_sha256",
    "image_flags", "record",
)  # fmt: skip
"""Columns of CSV, Parquet and image folders.  ``record`` is the record's line of JSON Lines; its fields have no columns
of their own, because records need not have the same ones, or of one kind."""


def columns(record: Joined, *, spelled: bool = False) -> dict[str, Any]:
    """Return the values of `COLUMNS` for one record, in that order; ``spelled`` writes times as text."""
    row, done = record.row, record.outcome == RecordOutcome.CAPTIONED
    values: dict[str, Any] = {
        "key": row.key, "outcome": str(record.outcome), "url": row.url, CAPTION: row.text if done else None,
        CAPTIONED_AT: row.done_at if done else None, SOURCE: record.recipe if done else None,
        ERROR: row.error_class if record.outcome == RecordOutcome.FAILED else None,
        "finish_reason": row.finish_reason if done else None, "tokens": row.tokens if done else None,
        "flags": flags_of(row.flags) if done else [], "image_sha256": row.image_sha256,
        "image_flags": flags_of(row.image_flags),
        "record": record.line.strip().decode("utf-8", "replace"),
    }  # fmt: skip
    if spelled and values[CAPTIONED_AT] is not None:
        values[CAPTIONED_AT] = iso_utc(values[CAPTIONED_AT])
    return values


_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,80}")
_LIKE_ESCAPED = re.compile(r".*-[0-9a-f]{16}")


def safe_name(key: str) -> str:
    """Return a file name without a dot for a record's key: the key itself where it can be one, else with a hash.

    Different keys have different names, and nothing that a manifest says leaves the directory.
    """
    if _PLAIN.fullmatch(key) and not _LIKE_ESCAPED.fullmatch(key):
        return key
    from hashlib import sha256

    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", key)[:60]
    return f"{readable}-{sha256(key.encode()).hexdigest()[:16]}"


def picture_bytes(record: Joined) -> bytes:
    """Return a record's working copy; raise `ConfigError` where it is not in the cache although the state says so."""
    from etl.images.cache import read_working

    assert record.picture is not None
    try:
        return read_working(record.picture)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{record.picture} cannot be read ({why}); run `etl verify`, then `etl fetch`") from error
