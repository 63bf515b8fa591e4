"""The fetch queue: claiming sources, committing what was fetched."""

from collections.abc import Sequence

from sqlite_utils import Database

from etl.clock import now_ms
from etl.models import FetchedImage, ItemFailure, SourceItem, Stage
from etl.state.work_queue import WAKE_CANCELLED, WorkQueue


class SourceQueue(WorkQueue):
    """Work queue over ``sources``."""

    table = "sources"
    stage = Stage.FETCH

    def ready_hosts(self, after: str = "", limit: int = 64) -> list[str]:
        """Return up to ``limit`` hosts with work that is due now, in order, beginning after host ``after``.

        Jumps from host to host through the index instead of scanning all ready rows.
        """
        hosts: list[str] = []
        host: str | None = after
        operator = ">=" if after == "" else ">"
        while len(hosts) < limit:
            rows = self._connection.rows(
                f"SELECT host FROM sources WHERE status IN ('ready', 'retry') AND host {operator} ? "
                "ORDER BY host LIMIT 1",
                (host,),
            )
            if not rows:
                break
            host, operator = rows[0][0], ">"
            if self._is_due(rows[0][0]):
                hosts.append(rows[0][0])
        return hosts

    def _is_due(self, host: str) -> bool:
        rows = self._connection.rows(
            "SELECT min(not_before) FROM sources WHERE status IN ('ready', 'retry') AND host = ?", (host,)
        )
        return rows[0][0] is not None and rows[0][0] <= now_ms()

    def claim(self, host: str, limit: int) -> list[SourceItem]:
        """Lease up to ``limit`` due sources of one host, oldest first."""
        with self._connection.transaction() as db:
            rows = db.conn.execute(
                "UPDATE sources SET status = 'running', lease_run = ? WHERE id IN ("
                "SELECT id FROM sources WHERE status IN ('ready', 'retry') AND host = ? AND not_before <= ? "
                "ORDER BY not_before, id LIMIT ?) RETURNING id, url, host, attempts, etag",
                (self._run, host, now_ms(), limit),
            ).fetchall()
        return [SourceItem(*row) for row in sorted(rows)]

    def commit(self, fetched: Sequence[FetchedImage], recipe: int | None = None) -> int:
        """Commit fetched images in one transaction; return how many were still held by this run.

        Identical bytes under two URLs become one image.  With a ``recipe`` the captions that have become
        possible are queued in the same transaction, so captioning can go on beside fetching.
        """
        with self._connection.transaction() as db:
            return sum(self._commit_one(db, image, recipe) for image in fetched)

    def _commit_one(self, db: Database, fetched: FetchedImage, recipe: int | None) -> bool:
        source, now = fetched.source, now_ms()
        held = db.conn.execute(
            "SELECT 1 FROM sources WHERE id = ? AND status = 'running' AND lease_run = ?", (source.id, self._run)
        ).fetchone()
        if held is None:
            return False
        image = _store_image(db, fetched)
        db.conn.execute(
            "UPDATE sources SET status = 'done', image = ?, attempts = attempts + 1, lease_run = NULL, done_at = ?, "
            "error_class = NULL, error = NULL, http_status = ?, etag = ?, last_modified = ?, final_url = ? "
            "WHERE id = ?",
            (image, now, fetched.http_status, fetched.etag, fetched.last_modified, fetched.final_url, source.id),
        )
        self._log_attempt(db, source.id, fetched.started_at, now, None, None)
        if recipe is not None:
            db.conn.execute(
                "INSERT INTO captions (image, prompt, recipe) SELECT DISTINCT ?, prompt, ? FROM records "
                "WHERE source = ? AND state = 'active' "
                f"{WAKE_CANCELLED}",
                (image, recipe, source.id),
            )
        return True

    def _fail_one(self, db: Database, failure: ItemFailure) -> bool:
        if failure.http_status is not None:
            # First, while the lease still tells whether the failure counts.
            db.conn.execute(
                "UPDATE sources SET http_status = ? WHERE id = ? AND status = 'running' AND lease_run = ?",
                (failure.http_status, failure.id, self._run),
            )
        return super()._fail_one(db, failure)


def _store_image(db: Database, fetched: FetchedImage) -> int:
    """Insert or renew the image row for these bytes; return its id."""
    decoded, working = fetched.decoded, fetched.decoded.working
    row = db.conn.execute(
        "INSERT INTO images (sha256, bytes, mime, width, height, working_sha256, working_bytes, working_width, "
        "working_height, longest_edge, original_kept, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'present') "
        "ON CONFLICT (sha256) DO UPDATE SET working_sha256 = excluded.working_sha256, "
        "working_bytes = excluded.working_bytes, working_width = excluded.working_width, "
        "working_height = excluded.working_height, longest_edge = excluded.longest_edge, "
        "original_kept = max(original_kept, excluded.original_kept), state = 'present' RETURNING id",
        (
            fetched.sha256, fetched.size, decoded.mime, decoded.width, decoded.height, working.sha256, working.size,
            working.width, working.height, working.longest_edge, int(fetched.original_kept),
        ),
    ).fetchall()  # fmt: skip
    return int(row[0][0])
