"""Checks of the database against itself, for ``etl verify``; what SQLite checks by itself is `Store.damage`."""

from collections.abc import Iterator

from etl.state.read.reader import Reader

COUNTS = {
    "sources": "SELECT 'sources', 0, status, count(*) FROM sources GROUP BY status",
    "captions": "SELECT 'captions', recipe, status, count(*) FROM captions GROUP BY recipe, status",
    "images": "SELECT 'images', 0, 'bytes', coalesce(sum(bytes), 0) FROM images HAVING count(*) > 0",
    "records": "SELECT 'records', 0, state, count(*) FROM records GROUP BY state",
    "outcomes": "SELECT 'outcomes', 0, outcome, count(*) FROM records WHERE state = 'active' GROUP BY outcome",
}
"""For each part of ``counters`` the query that gives its true rows, zeros left out."""


def counted(reader: Reader) -> dict[tuple[str, str], int]:
    """Return how many records are in each state (``records``) and active ones of each outcome (``outcomes``), as
    counted one by one when they came."""
    rows = reader.rows("SELECT stage, status, n FROM counters WHERE recipe = 0 AND stage IN ('records', 'outcomes')")
    return {(stage, status): n for stage, status, n in rows}


def problems(reader: Reader) -> Iterator[str]:
    """Yield what the rows of the database say against each other; nothing for a sound one."""
    for table, row, parent, _ in reader.rows("PRAGMA foreign_key_check"):
        yield f"{table} row {row} points to a row of {parent} that does not exist"
    with reader.snapshot():
        for stage, sql in COUNTS.items():
            true = {row[:3]: row[3] for row in reader.rows(sql)}
            kept = {
                row[:3]: row[3] for row in reader.rows("SELECT * FROM counters WHERE stage = ? AND n <> 0", (stage,))
            }
            for key in sorted(true.keys() | kept.keys()):
                if true.get(key, 0) != kept.get(key, 0):
                    yield f"counter {key}: {kept.get(key, 0)} kept, {true.get(key, 0)} true"
        stale = reader.rows(
            "SELECT count(*) FROM records r JOIN record_outcomes o ON o.record = r.id "
            "WHERE r.state = 'active' AND r.outcome <> o.outcome"
        )[0][0]
    if stale:
        yield f"{stale} records with an outcome that their source and caption do not bear out"
