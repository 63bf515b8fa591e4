"""Giving dead items another chance, chosen by stage, error class, host or record key."""

from etl.domain.statuses import Stage
from etl.domain.views import FailureFilter
from etl.state.database import Connection
from etl.state.images import wake_evicted

_CURRENT = " AND recipe = (SELECT id FROM recipes WHERE current = 1)"


def retry_failed(connection: Connection, chosen: FailureFilter, *, dry_run: bool = False) -> dict[str, int]:
    """Put the chosen dead items back to ready with no attempts charged; return how many per stage.

    Captions of an earlier recipe are left alone: nobody would work on them.  One whose picture is not there is
    cancelled until it has been fetched again.  History stays in ``attempts``.  With ``dry_run`` they are only counted.
    """
    counts: dict[str, int] = {}
    with connection.transaction("retry.dead") as db:
        for stage, table in ((Stage.FETCH, "sources"), (Stage.CAPTION, "captions")):
            if chosen.stage not in (None, stage):
                continue
            condition, arguments = chosen_items(table, chosen)
            if dry_run:
                sql = f"SELECT count(*) FROM {table} WHERE status = 'dead'{condition}"
                counts[stage] = int(db.conn.execute(sql, arguments).fetchone()[0])
                continue
            revived = db.conn.execute(
                f"UPDATE {table} SET status = {REVIVED[table]}, attempts = 0, crashes = 0, not_before = 0, "
                f"error_class = NULL, error = NULL WHERE status = 'dead'{condition} RETURNING status, image",
                arguments,
            ).fetchall()
            counts[stage] = len(revived)
            wake_evicted(db, [image for status, image in revived if status == "cancelled"])
    return counts


REVIVED = {
    "sources": "'ready'",
    "captions": "CASE (SELECT state FROM images i WHERE i.id = image) WHEN 'present' THEN 'ready' ELSE 'cancelled' END",
}
"""What an item's status becomes; a caption without its picture would only be claimed and fail."""


_KEY = {
    "sources": "id = (SELECT source FROM records WHERE key = ?)",
    "captions": "(image, prompt) = (SELECT s.image, r.prompt FROM records r JOIN sources s ON s.id = r.source "
    "WHERE r.key = ?)",
}
_HOST = {"sources": "host = ?", "captions": "image IN (SELECT image FROM sources WHERE host = ?)"}


def chosen_items(table: str, chosen: FailureFilter) -> tuple[str, list[str]]:
    """Return ``AND ...`` conditions over a queue's table for what was chosen, and their arguments."""
    parts = {"error_class = ?": chosen.error_class, _HOST[table]: chosen.host, _KEY[table]: chosen.key}
    given = {sql: value for sql, value in parts.items() if value is not None}
    recipe = _CURRENT if table == "captions" else ""
    return recipe + "".join(f" AND {sql}" for sql in given), list(given.values())
