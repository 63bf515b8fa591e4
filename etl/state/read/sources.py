"""What is still to be fetched, and how large what was fetched is."""

from collections.abc import Iterator, Sequence

from etl.state.read.reader import PAGE, Reader
from etl.state.record_captions import skipped_for


def open_sources(reader: Reader, *, fetched_too: bool = False) -> Iterator[tuple[int, str, str, bool, bytes]]:
    """Yield ``(source, url, host, was tried before, line)`` for each line of an active record whose source is due.

    Lines of one source follow each other.  With ``fetched_too``, sources that are done count as due.
    """
    wanted = "'ready', 'retry', 'done'" if fetched_too else "'ready', 'retry'"
    after = (0, 0)
    while rows := reader.rows(
        "SELECT s.id, r.id, s.url, s.host, s.attempts > 0 AND s.status <> 'done', l.line FROM sources s "
        "JOIN records r ON r.source = s.id AND r.state = 'active' JOIN record_lines l ON l.record = r.id "
        f"WHERE s.status IN ({wanted}) AND s.id >= ? AND (s.id, r.id) > (?, ?) ORDER BY s.id, r.id LIMIT ?",
        (after[0], *after, PAGE),
    ):
        yield from ((source, url, host, bool(tried), line) for source, _, url, host, tried, line in rows)
        after = rows[-1][:2]


def active_lines(reader: Reader) -> Iterator[bytes]:
    """Yield the lines of all active records."""
    after = 0
    while rows := reader.page(
        "SELECT r.id, l.line FROM records r JOIN record_lines l ON l.record = r.id "
        "WHERE r.state = 'active' AND r.id > ? ORDER BY r.id LIMIT ?",
        (after, PAGE),
        line=1,
    ):
        yield from (line for _, line in rows)
        after = rows[-1][0]


def image_sizes(reader: Reader) -> tuple[float, float]:
    """Return the mean bytes of a working copy and of an original, over all images so far; zeros for none."""
    row = reader.rows("SELECT coalesce(avg(working_bytes), 0), coalesce(avg(bytes), 0) FROM images")[0]
    return float(row[0]), float(row[1])


def longest_edges(reader: Reader) -> list[int]:
    """Return the different limits that the present working copies were made with."""
    return [row[0] for row in reader.rows("SELECT DISTINCT longest_edge FROM images WHERE state = 'present'")]


def has_picture(reader: Reader, *, pending_only: bool, skip: Sequence[str] = ()) -> bool:
    """Return whether an active record has a fetched picture; with ``pending_only``, one that wants its caption.

    Pictures with a flag among ``skip`` want none.
    """
    pending = " AND r.outcome IN ('pending', 'skipped')" if pending_only else ""
    unskipped = f"(SELECT {skipped_for(skip, 'i')} FROM images i WHERE i.id = s.image) IS NULL"
    # The newest first: while a fetch goes on, what it has just brought is what is looked for.
    sql = (
        f"SELECT 1 FROM sources s WHERE s.status = 'done' AND {unskipped} AND EXISTS "
        f"(SELECT 1 FROM records r WHERE r.source = s.id AND r.state = 'active'{pending}) "
        "ORDER BY s.done_at DESC LIMIT 1"
    )
    return bool(reader.rows(sql))


_UNREACHED = """
SELECT host, min(error_class), sum(failed) +
  (SELECT count(*) FROM sources s WHERE s.host = f.host AND s.status IN ('ready', 'retry'))
FROM (
  SELECT host, error_class, 1 AS failed FROM sources
    WHERE status = 'dead' AND error_class IN ('dns', 'connect', 'timeout', 'host_down')
  UNION ALL SELECT host, error_class, 0 FROM sources
    WHERE status IN ('ready', 'retry') AND error_class IN ('dns', 'connect', 'timeout')
) f WHERE host <> '' AND (error_class = 'host_down' OR host NOT IN (SELECT host FROM sources WHERE status = 'done')
  AND (error_class <> 'timeout' OR host IN (SELECT host FROM hosts WHERE state = 'parked')))
GROUP BY host ORDER BY 3 DESC, 1 LIMIT ?"""


def unreachable_hosts(reader: Reader, limit: int) -> list[tuple[str, str, int]]:
    """Return ``(host, error class, sources)`` of hosts that could not be reached, the most sources first.

    Sources that failed for it count, and those that still wait.  A host that gave a picture was reached, unless it was
    given up later; one that is only slow was, unless it is not asked any more.
    """
    return reader.rows(_UNREACHED, (limit,))
