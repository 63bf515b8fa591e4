"""Checks of the database against itself, for ``etl verify``; what SQLite checks by itself is `Store.damage`.

Those of `deep_problems`, for ``--deep``, say what no single constraint can, over every row.  Their caller holds the
writer lock, so no run is alive.  A query may look at a million rows, and a page of lines holds `PAGE` of them; nothing
is held for longer.
"""

from collections.abc import Iterator
from typing import Any

from etl.data_urls import data_url, line_hash
from etl.state.read.reader import PAGE, Reader
from etl.state.record_captions import CURRENT_RECIPE, caption_of_record, records_of_caption

COUNTS = {
    "sources": "SELECT 'sources', 0, status, count(*) FROM sources GROUP BY status",
    "captions": "SELECT 'captions', recipe, status, count(*) FROM captions GROUP BY recipe, status",
    "images": "SELECT 'images', 0, 'bytes', coalesce(sum(bytes), 0) FROM images HAVING count(*) > 0",
    "records": "SELECT 'records', 0, state, count(*) FROM records GROUP BY state",
    "outcomes": "SELECT 'outcomes', 0, outcome, count(*) FROM records WHERE state = 'active' GROUP BY outcome",
}
"""For each part of ``counters`` the query that gives its true rows, zeros left out."""

EXAMPLES = 5
"""Rows that one line names; the rest is counted."""

_OF_SOURCE = (
    "'source ' || t.id || coalesce(' of record ' || "
    "(SELECT r.key FROM records r WHERE r.source = t.id AND r.state = 'active' LIMIT 1), '')"
)
_OF_CAPTION = f"'caption ' || t.id || coalesce(' of record ' || (SELECT r.key {records_of_caption('t')} LIMIT 1), '')"
_SUCCESS = "SELECT 1 FROM attempts a WHERE a.stage = 'caption' AND a.item = t.id AND a.error_class IS NULL"

# What a caption made again was before had a lower penalty than what came after it; see `etl.state.requeue`.
_LATER_PENALTY = (
    "coalesce((SELECT coalesce(x.repetition_penalty, 1.0) FROM earlier_captions x "
    "WHERE x.caption = e.caption AND x.id > e.id ORDER BY x.id LIMIT 1), t.repetition_penalty, 1.0)"
)

# Until a manifest was read to its end, what its last batches need of evicted pictures is not asked for yet.
_STUCK = (
    "r.source IS NULL OR r.prompt IS NULL OR s.status = 'cancelled' "
    "OR s.status = 'done' AND i.state = 'missing' "
    "OR s.status = 'done' AND i.state = 'evicted' AND coalesce(c.status, '') NOT IN ('done', 'dead') "
    "AND c.skipped IS NULL AND NOT EXISTS (SELECT 1 FROM manifests WHERE complete = 0)"
)

_CHECKS = (
    ("tried less often than never", f"SELECT {_OF_SOURCE} FROM sources t WHERE t.attempts < 0 OR t.crashes < 0"),
    ("tried less often than never", f"SELECT {_OF_CAPTION} FROM captions t WHERE t.attempts < 0 OR t.crashes < 0"),
    ("running, or leased, although no run is alive",
     f"SELECT {_OF_SOURCE} FROM sources t WHERE t.status = 'running' OR t.lease_run IS NOT NULL"),
    ("running, or leased, although no run is alive",
     f"SELECT {_OF_CAPTION} FROM captions t WHERE t.status = 'running' OR t.lease_run IS NOT NULL"),
    ("without an end, although no run is alive", "SELECT 'run ' || uid FROM runs WHERE ended_at IS NULL"),
    ("failed without an error class",
     f"SELECT {_OF_SOURCE} FROM sources t WHERE t.status = 'dead' AND coalesce(t.error_class, '') = ''"),
    ("failed without an error class",
     f"SELECT {_OF_CAPTION} FROM captions t WHERE t.status = 'dead' AND coalesce(t.error_class, '') = ''"),
    ("invalid without an error class",
     "SELECT 'record ' || key FROM records WHERE state = 'invalid' AND coalesce(error_class, '') = ''"),
    ("done without text, tokens, time or run",
     f"SELECT {_OF_CAPTION} FROM captions t WHERE t.status = 'done' AND (t.text IS NULL OR t.tokens IS NULL "
     "OR t.run IS NULL OR t.done_at IS NULL OR t.text = '' AND instr(t.flags, 'empty') = 0)"),
    ("skipped, but not left out of the queue",
     f"SELECT {_OF_CAPTION} FROM captions t WHERE t.skipped IS NOT NULL AND t.status <> 'cancelled'"),
    ("with several successes on record",
     "SELECT stage || ' item ' || item FROM attempts WHERE error_class IS NULL GROUP BY stage, item "
     "HAVING count(*) > 1"),
    ("done, but not by the success on record",
     f"SELECT {_OF_CAPTION} FROM captions t WHERE t.status = 'done' "
     f"AND NOT EXISTS ({_SUCCESS} AND a.run = t.run AND a.ended_at = t.done_at)"),
    ("made again, though nobody asked for it",
     f"SELECT {_OF_CAPTION} FROM earlier_captions e JOIN captions t ON t.id = e.caption "
     f"WHERE coalesce(e.repetition_penalty, 1.0) >= {_LATER_PENALTY}"),
    ("stuck: nothing will ever finish it",
     "SELECT 'record ' || r.key FROM records r LEFT JOIN sources s ON s.id = r.source "
     f"LEFT JOIN images i ON i.id = s.image {caption_of_record(CURRENT_RECIPE)} "
     f"WHERE r.state = 'active' AND ({_STUCK})"),
)  # fmt: skip


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


def deep_problems(reader: Reader) -> Iterator[str]:
    """Yield what is wrong with rows that the schema alone allows; nothing for a sound database."""
    for what, sql in _CHECKS:
        found = [row[0] for row in reader.rows(f"{sql} LIMIT {EXAMPLES + 1}")]
        total = len(found)
        if total > EXAMPLES:
            total = reader.rows(f"SELECT count(*) FROM ({sql})")[0][0]
        yield from summed_up(what, found[:EXAMPLES], total)
    yield from _changed_lines(reader)
    yield from _broken_texts(reader)


def summed_up(what: str, examples: list[str], total: int) -> Iterator[str]:
    """Yield one line for things with the same fault, the first of them by name; none where there are none."""
    if total:
        more = f", and {total - len(examples):,} more" if total > len(examples) else ""
        yield f"{what}: {', '.join(examples)}{more}"


def _changed_lines(reader: Reader) -> Iterator[str]:
    """Compare each stored manifest line, and each picture that stood in one, with its hash."""
    changed, total, after = list[str](), 0, 0
    while rows := reader.rows(
        "SELECT r.id, r.key, r.line_sha256, l.line FROM records r LEFT JOIN record_lines l ON l.record = r.id "
        "WHERE r.id > ? ORDER BY r.id LIMIT ?",
        (after, PAGE),
    ):
        for _, key, sha256, line in rows:
            if line is None or sha256 not in (line_hash(line, is_taken_out_of=out) for out in (False, True)):
                total += 1
                changed += [f"record {key}"] if len(changed) < EXAMPLES else []
        after = rows[-1][0]
    yield from summed_up("with a stored line that is not the one of the manifest", changed, total)
    pictures = [
        url
        for (url,) in reader.rows("SELECT url FROM own_pictures")
        if data_url(reader.rows("SELECT data FROM own_pictures WHERE url = ?", (url,))[0][0]) != url
    ]
    yield from summed_up("pictures of records that are not what they were", pictures[:EXAMPLES], len(pictures))


def _broken_texts(reader: Reader) -> Iterator[str]:
    """Look for bytes that are no UTF-8 in every text of every table: STRICT lets them in, and disks change them."""
    tables: dict[tuple[str, bool], list[str]] = {}
    for table, without_rowid, column in reader.rows(
        "SELECT t.name, t.wr, c.name FROM pragma_table_list t JOIN pragma_table_info(t.name) c "
        "WHERE t.schema = 'main' AND t.type = 'table' AND t.name NOT LIKE 'sqlite%' AND c.type = 'TEXT'"
    ):
        tables.setdefault((table, bool(without_rowid)), []).append(column)
    found, total = list[str](), 0
    for (table, without_rowid), columns in tables.items():
        for row, *texts in _texts(reader, table, columns, without_rowid=without_rowid):
            for column, text in zip(columns, texts, strict=True):
                if text is not None and not _is_utf8(text):
                    total += 1
                    found += [f"{table} row {row}, {column}"] if len(found) < EXAMPLES else []
    yield from summed_up("with a text that is not UTF-8", found, total)


def _texts(reader: Reader, table: str, columns: list[str], *, without_rowid: bool) -> Iterator[tuple[Any, ...]]:
    """Yield the number of each row and the bytes of its texts."""
    blobs = ", ".join(f'CAST("{column}" AS BLOB)' for column in columns)
    if without_rowid:
        # None of these grows with the records.
        yield from reader.rows(f'SELECT row_number() OVER (), {blobs} FROM "{table}"')
        return
    after = -(2**63)
    while rows := reader.rows(
        f'SELECT rowid, {blobs} FROM "{table}" WHERE rowid > ? ORDER BY rowid LIMIT ?', (after, PAGE)
    ):
        yield from rows
        after = rows[-1][0]


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
