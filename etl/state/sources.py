"""The fetch queue: claiming sources, committing what was fetched."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etl.clock import now_ms
from etl.domain.items import FetchedImage, ItemFailure, KnownImage, SourceItem
from etl.domain.statuses import Stage
from etl.state.database import Connection
from etl.state.images import IS_PLACEHOLDER, flag_placeholder, plus_placeholder
from etl.state.record_captions import queue_captions, skip_captions
from etl.state.sqlite import Database
from etl.state.work_queue import RetryPolicy, WorkQueue

LINES = 16
"""Of records that share a source: enough to find the newest address among."""

_WAITING = "FROM sources WHERE status IN ('ready', 'retry')"

_HOSTS = f"""
    WITH RECURSIVE found (host) AS (
        SELECT min(host) {_WAITING} AND host >= ?1
        UNION ALL SELECT (SELECT min(host) {_WAITING} AND host > found.host) FROM found WHERE host IS NOT NULL
    )
    SELECT host, (SELECT min(not_before) {_WAITING} AND host = found.host) FROM found WHERE host IS NOT NULL LIMIT ?2
"""
"""Jumps from host to host through the index instead of scanning all rows that wait."""


class SourceQueue(WorkQueue):
    """Work queue over ``sources``."""

    table = "sources"
    stage = Stage.FETCH

    def __init__(self, connection: Connection, run: int, policy: RetryPolicy, skip: Sequence[str] = ()) -> None:
        super().__init__(connection, run, policy)
        self._skip = skip

    def ready_hosts(self, after: str = "", limit: int = 64, only: Callable[[str], bool] = lambda _: True) -> list[str]:
        """Return up to ``limit`` hosts with work that is due now, in order, beginning after host ``after``.

        Those for which ``only`` is false are passed over.
        """
        hosts: list[str] = []
        beyond = after and f"{after}\0"
        while len(hosts) < limit and (found := self._connection.rows(_HOSTS, (beyond, limit))):
            hosts += [host for host, due in found if due <= now_ms() and only(host)]
            # The next of all texts.
            beyond = f"{found[-1][0]}\0"
        return hosts[:limit]

    def due(self) -> int:
        """Return how many sources could be claimed now; counted no further than 256."""
        sql = "SELECT count(*) FROM (SELECT 1 FROM sources WHERE status IN ('ready', 'retry') LIMIT 256)"
        return int(self._connection.rows(sql)[0][0])

    def claim(self, host: str, limit: int) -> list[SourceItem]:
        """Lease up to ``limit`` due sources of one host, oldest first."""
        return self.claim_of({host: limit})

    def claim_of(self, limits: Mapping[str, int]) -> list[SourceItem]:
        """Lease due sources of several hosts in one transaction, up to so many of each, oldest first."""
        with self._connection.transaction("fetch.claim") as db:
            return [item for host, limit in limits.items() for item in self._claim(db, host, limit)]

    def _claim(self, db: Database, host: str, limit: int) -> list[SourceItem]:
        rows = db.conn.execute(
            "UPDATE sources SET status = 'running', lease_run = ? WHERE id IN ("
            "SELECT id FROM sources WHERE status IN ('ready', 'retry') AND host = ? AND not_before <= ? "
            "ORDER BY not_before, id LIMIT ?) "
            "RETURNING id, url, host, attempts, image, etag, last_modified, mirror, "
            "(SELECT iif(instr(l.line, CAST('\"iiif\"' AS BLOB)), l.line, NULL) FROM records r "
            "JOIN record_lines l ON l.record = r.id WHERE r.source = sources.id AND r.state = 'active' "
            "ORDER BY r.id LIMIT 1)",
            (self._run, host, now_ms(), limit),
        ).fetchall()
        # Nearly all are new; only of those that were fetched before must it be known what the cache still holds.
        return [_item(row, db) for row in sorted(rows)]

    def postpone(self, items: Iterable[tuple[int, int]]) -> None:
        """Put claimed sources back, each until an instant, Unix milliseconds, without charging an attempt."""
        with self._connection.transaction("fetch.postpone") as db:
            db.conn.executemany(
                "UPDATE sources SET status = CASE WHEN attempts > 0 THEN 'retry' ELSE 'ready' END, lease_run = NULL, "
                "not_before = ? WHERE id = ? AND status = 'running' AND lease_run = ?",
                [(until_ms, source, self._run) for source, until_ms in items],
            )

    def line(self, source: int) -> bytes | None:
        """Return the manifest line of the first active record that needs the source."""
        rows = self._connection.rows(
            "SELECT l.line FROM records r JOIN record_lines l ON l.record = r.id "
            "WHERE r.source = ? AND r.state = 'active' ORDER BY r.id LIMIT 1",
            (source,),
        )
        return bytes(rows[0][0]) if rows else None

    def lines_of(self, url: str) -> list[bytes]:
        """Return the manifest lines of active records that need the source with this URL, no more than `LINES`."""
        rows = self._connection.rows(
            "SELECT l.line FROM sources s JOIN records r ON r.source = s.id JOIN record_lines l ON l.record = r.id "
            "WHERE s.url = ? AND r.state = 'active' ORDER BY r.id DESC LIMIT ?",
            (url, LINES),
        )
        return [bytes(line) for (line,) in rows]

    def own_picture(self, url: str) -> bytes | None:
        """Return the picture that a record held itself, by its URL."""
        rows = self._connection.rows("SELECT data FROM own_pictures WHERE url = ?", (url,))
        return bytes(rows[0][0]) if rows else None

    def captions_are_waiting(self) -> bool:
        """Return whether any picture is still to be captioned or in work."""
        rows = self._connection.rows(
            "SELECT EXISTS (SELECT 1 FROM captions WHERE status IN ('ready', 'retry')) "
            "OR EXISTS (SELECT 1 FROM captions WHERE status = 'running')"
        )
        return bool(rows[0][0])

    def known_image(self, sha256: str, *, with_original: bool) -> tuple[int, str] | None:
        """Return ``(image, hash of its working copy)`` for bytes that are an image of the cache already."""
        rows = self._connection.rows(
            "SELECT id, working_sha256 FROM images WHERE sha256 = ? AND state = 'present' AND original_kept >= ?",
            (sha256, int(with_original)),
        )
        return (rows[0][0], rows[0][1]) if rows else None

    def refresh(self) -> int:
        """Put every fetched source that a record needs back into the queue; return how many that were.

        They keep their images and what the server said of them, so unchanged ones cost one request each.
        """
        with self._connection.transaction("fetch.refresh") as db:
            return db.conn.execute(
                "UPDATE sources SET status = 'ready', attempts = 0, crashes = 0, not_before = 0 WHERE status = 'done' "
                "AND EXISTS (SELECT 1 FROM records r WHERE r.source = sources.id AND r.state = 'active')"
            ).rowcount

    def give_up(self, host: str, slug: str, message: str) -> int:
        """Make every source of the host that is not in flight dead; return how many that were."""
        with self._connection.transaction("fetch.give_up") as db:
            return db.conn.execute(
                "UPDATE sources SET status = 'dead', error_class = ?, error = ?, done_at = ? "
                "WHERE status IN ('ready', 'retry') AND host = ?",
                (slug, message, now_ms(), host),
            ).rowcount

    def commit(self, fetched: Sequence[FetchedImage | KnownImage], recipe: int | None = None) -> int:
        """Commit fetched images in one transaction; return how many were still held by this run.

        Identical bytes under two URLs become one image.  With a ``recipe`` the captions that have become
        possible are queued in the same transaction, so captioning can go on beside fetching; but for those of images
        with a flag that is to be skipped.
        """
        with self._connection.transaction("fetch.commit") as db:
            return sum(self._commit_one(db, image, recipe) for image in fetched)

    def _commit_one(self, db: Database, fetched: FetchedImage | KnownImage, recipe: int | None) -> bool:
        source, now = fetched.source, now_ms()
        held = db.conn.execute(
            "SELECT 1 FROM sources WHERE id = ? AND status = 'running' AND lease_run = ?", (source.id, self._run)
        ).fetchone()
        if held is None:
            return False
        if isinstance(fetched, FetchedImage):
            image = _store_image(db, fetched)
        elif _is_present(db, fetched.image):
            image = fetched.image
        else:
            # Evicted since it was looked for: it must be fetched after all, whatever validators say.
            db.conn.execute("UPDATE sources SET status = 'ready', lease_run = NULL WHERE id = ?", (source.id,))
            return False
        self._finish(db, fetched, image, now)
        flag_placeholder(db, image, source.host)
        self._log_attempt(db, source.id, fetched.started_at, now, None, None)
        if recipe is not None:
            queue_captions(db, recipe, source.id)
            skip_captions(db, recipe, self._skip, image)
        return True

    @staticmethod
    def _finish(db: Database, fetched: FetchedImage | KnownImage, image: int, now: int) -> None:
        # What a 304 leaves unsaid stays as it was, the time of the last change included: no bytes came.
        confirmed = isinstance(fetched, KnownImage) and fetched.image == fetched.source.image
        db.conn.execute(
            "UPDATE sources SET status = 'done', image = ?, attempts = attempts + 1, lease_run = NULL, "
            "done_at = CASE WHEN ? THEN coalesce(done_at, ?) ELSE ? END, error_class = NULL, error = NULL, "
            "http_status = ?, etag = coalesce(?, CASE WHEN ? THEN etag END), "
            "last_modified = coalesce(?, CASE WHEN ? THEN last_modified END), "
            "final_url = coalesce(?, CASE WHEN ? THEN final_url END), mirror = ? WHERE id = ?",
            (
                image,
                confirmed,
                now,
                now,
                fetched.http_status,
                fetched.etag,
                confirmed,
                fetched.last_modified,
                confirmed,
                fetched.final_url,
                confirmed,
                fetched.mirror,
                fetched.source.id,
            ),
        )

    def _fail_one(self, db: Database, failure: ItemFailure) -> bool:
        if failure.http_status is not None:
            # First, while the lease still tells whether the failure counts.
            db.conn.execute(
                "UPDATE sources SET http_status = ? WHERE id = ? AND status = 'running' AND lease_run = ?",
                (failure.http_status, failure.id, self._run),
            )
        return super()._fail_one(db, failure)


def _item(row: Sequence[Any], db: Database) -> SourceItem:
    """Return a claimed source, with what is known of the version that the cache holds, if it holds one."""
    number, url, host, attempts, image, etag, last_modified, mirror, iiif = row
    if image is None or not _is_present(db, image):
        image = etag = last_modified = mirror = None
    return SourceItem(
        id=number,
        url=url,
        host=host,
        attempts=attempts,
        image=image,
        etag=etag,
        last_modified=last_modified,
        mirror=mirror,
        iiif=iiif,
    )


def _is_present(db: Database, image: int | None) -> bool:
    """Return whether the cache holds the working copy of the image."""
    row = db.conn.execute("SELECT 1 FROM images WHERE id = ? AND state = 'present'", (image,)).fetchone()
    return image is not None and row is not None


def _store_image(db: Database, fetched: FetchedImage) -> int:
    """Insert or renew the image row for these bytes; return its id."""
    decoded, working = fetched.decoded, fetched.decoded.working
    row = db.conn.execute(
        "INSERT INTO images (sha256, bytes, mime, width, height, working_sha256, working_bytes, working_width, "
        "working_height, longest_edge, original_kept, flags) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (sha256) DO UPDATE SET working_sha256 = excluded.working_sha256, "
        "working_bytes = excluded.working_bytes, working_width = excluded.working_width, "
        "working_height = excluded.working_height, longest_edge = excluded.longest_edge, "
        "original_kept = max(original_kept, excluded.original_kept), state = 'present', "
        f"flags = iif({IS_PLACEHOLDER}, {plus_placeholder('excluded.flags')}, excluded.flags) RETURNING id",
        (
            fetched.sha256,
            fetched.size,
            decoded.mime,
            decoded.width,
            decoded.height,
            working.sha256,
            working.size,
            working.width,
            working.height,
            working.longest_edge,
            int(fetched.original_kept),
            ",".join(decoded.flags),
        ),
    ).fetchall()
    return int(row[0][0])
