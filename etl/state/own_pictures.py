"""The pictures that stood in records: which of them no record has any more."""

from etl.data_urls import MARK, names_in
from etl.state.database import Connection

_LINES = 100
"""Lines that are looked at together, each of which may have megabytes."""

_OF_NO_SOURCE = (
    "SELECT url, length(data) FROM own_pictures WHERE url NOT IN (SELECT s.url FROM records r "
    "JOIN sources s ON s.id = r.source WHERE r.state <> 'removed' AND s.url LIKE 'data:,%')"
)


def drop_unneeded(connection: Connection, *, dry_run: bool) -> list[int]:
    """Remove the pictures of records that are gone; return their sizes.  With ``dry_run`` only say these."""
    sizes = dict(connection.rows(_OF_NO_SOURCE))
    # A line may have pictures whose own records lie in another part, or are duplicates, which have no source.
    after = 0
    while sizes and (
        rows := connection.rows(
            "SELECT r.id, iif(r.state <> 'removed' AND instr(l.line, ?), l.line, NULL) FROM records r "
            "JOIN record_lines l ON l.record = r.id WHERE r.id > ? ORDER BY r.id LIMIT ?",
            (MARK, after, _LINES),
        )
    ):
        for _, line in rows:
            for url in names_in(line or b""):
                sizes.pop(url, None)
        after = rows[-1][0]
    if sizes and not dry_run:
        with connection.transaction() as db:
            db.conn.executemany("DELETE FROM own_pictures WHERE url = ?", ((url,) for url in sizes))
    return list(sizes.values())
