"""What becomes of stored instants when the clock that they were stored by was wrong."""

from etl.state.sqlite import Database

LONGEST_ASKED_WAIT_S = 86_400.0
"""A server may ask for a day's patience; a longer wait is taken for a fault of its clock or of its header."""

_LAST_FAILURE = "(SELECT max(ended_at) FROM attempts WHERE stage = 'fetch' AND item = sources.id)"


def shift(db: Database, now: int, by: int) -> None:
    """Set by ``by`` milliseconds what lies ahead of ``now``, and the beginning of the run that is under way.

    A wait thus stays as long as it was, and what was due stays due.
    """
    for table in ("sources", "captions"):
        db.conn.execute(
            f"UPDATE {table} SET not_before = max(not_before, ?1) + ?2 "
            "WHERE status IN ('ready', 'retry', 'running') AND not_before > min(?1, ?1 + ?2)",
            (now, by),
        )
    db.conn.execute("UPDATE hosts SET until = until + ? WHERE until > ?", (by, now))
    db.conn.execute(
        "UPDATE runs SET started_at = started_at + ?1, heartbeat_at = heartbeat_at + ?1 WHERE ended_at IS NULL", (by,)
    )


def cut(db: Database, now: int, backoff_cap_s: float) -> None:
    """Cut what lies further ahead of ``now`` than any wait that could have been set by this clock.

    What a server asked for begins anew where it was asked at an instant that is still to come; of our own waits none
    is longer than ``backoff_cap_s``.
    """
    chosen, asked = now + round(backoff_cap_s * 1000), now + round(max(backoff_cap_s, LONGEST_ASKED_WAIT_S) * 1000)
    db.conn.execute(
        f"UPDATE sources SET not_before = ?1 + not_before - {_LAST_FAILURE} WHERE status IN ('ready', 'retry') "
        f"AND not_before > ?1 AND http_status IN (429, 503) AND {_LAST_FAILURE} > ?1",
        (now,),
    )
    db.conn.execute(
        "UPDATE hosts SET until = until - (updated_at - ?1), updated_at = ?1 WHERE until > ?1 AND updated_at > ?1",
        (now,),
    )
    for table, latest, which in (
        ("sources", asked, "http_status IN (429, 503)"),
        ("sources", chosen, "http_status IS NOT 429 AND http_status IS NOT 503"),
        ("captions", chosen, "true"),
    ):
        db.conn.execute(
            f"UPDATE {table} SET not_before = ?1 WHERE status IN ('ready', 'retry') AND not_before > ?1 AND {which}",
            (latest,),
        )
