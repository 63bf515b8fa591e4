"""Names that somebody may want to type: quick answers, however large the state is, rather than whole ones."""

import json
from collections.abc import Iterable

from etl.state.read.reader import Reader

LOOKED_AT = 20_000
"""Sources among which hosts are looked for: in a list that is longer, one who types knows what to type."""


def keys_from(reader: Reader, begin: str, most: int) -> list[str]:
    """Return keys of records that begin so, in order."""
    rows = reader.rows(
        "SELECT key FROM records WHERE key >= ? AND key < ? ORDER BY key LIMIT ?", (begin, f"{begin}\U0010ffff", most)
    )
    return [key for (key,) in rows]


def some_hosts(reader: Reader) -> list[str]:
    """Return hosts of sources."""
    return [host for (host,) in reader.rows(f"SELECT DISTINCT host FROM (SELECT host FROM sources LIMIT {LOOKED_AT})")]


def classes_that_failed(reader: Reader, classes: Iterable[str]) -> list[str]:
    """Return those of the error classes with which something failed."""
    failed = (
        ("sources", "status = 'dead'"),
        ("captions", "status = 'dead'"),
        ("records", "state = 'invalid'"),
    )
    conditions = (f"EXISTS (SELECT 1 FROM {table} WHERE {how} AND error_class = value)" for table, how in failed)
    rows = reader.rows(f"SELECT value FROM json_each(?) WHERE {' OR '.join(conditions)}", (json.dumps([*classes]),))
    return [name for (name,) in rows]
