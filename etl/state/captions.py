"""The caption queue: recipes, queueing what can be captioned, claiming, committing."""

import json
from collections.abc import Iterable, Sequence

from etl.clock import now_ms
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.statuses import Stage
from etl.errors import WorkingCopyError
from etl.state.database import Connection
from etl.state.images import lose_images, wake_evicted
from etl.state.record_captions import queue_captions, records_of_caption, skip_captions, take_up_skipped
from etl.state.work_queue import ALONE_AFTER_CRASHES, DEAD_AFTER_CRASHES, RetryPolicy, WorkQueue


class CaptionQueue(WorkQueue):
    """Work queue over ``captions`` of one recipe."""

    table = "captions"
    stage = Stage.CAPTION
    # A worker holds hundreds of captions; only one that is tried alone is judged by its death.
    dead_after_crashes = DEAD_AFTER_CRASHES

    def __init__(
        self, connection: Connection, run: int, recipe: int, policy: RetryPolicy, skip: Sequence[str] = ()
    ) -> None:
        super().__init__(connection, run, policy)
        self.recipe = recipe
        self._skip = skip

    def enqueue_possible(self) -> int:
        """Queue a caption for every active record whose image is here; cancel those that no record needs.

        Images with a flag that is to be skipped have theirs cancelled, too.  The sources of evicted images that need
        one go back into the fetch queue.  Returns the number of captions that are new or wanted again.
        """
        with self._connection.transaction("caption.enqueue") as db:
            # One after the other, each with the partial index of its statuses.
            for which in ("status IN ('ready', 'retry')", "status = 'dead'"):
                db.conn.execute(
                    f"UPDATE captions SET status = 'cancelled' WHERE recipe = ? AND {which} "
                    f"AND NOT EXISTS (SELECT 1 {records_of_caption('captions')})",
                    (self.recipe,),
                )
            take_up_skipped(db, self.recipe, self._skip)
            wake_evicted(db)
            queued = queue_captions(db, self.recipe)
            return queued - min(queued, skip_captions(db, self.recipe, self._skip))

    def claim(self, limit: int) -> list[CaptionItem]:
        """Lease up to ``limit`` due captions, oldest first; items with many crashes are left for `claim_suspect`."""
        return self._claim(limit, f"crashes < {ALONE_AFTER_CRASHES}")

    def claim_suspect(self) -> CaptionItem | None:
        """Lease one due caption that may have killed its process; the caller runs it alone."""
        items = self._claim(1, f"crashes >= {ALONE_AFTER_CRASHES}")
        return items[0] if items else None

    def next_due_ms(self) -> int | None:
        """Return when the next waiting caption of this recipe may be tried; ``None`` when none waits."""
        sql = "SELECT min(not_before) FROM captions WHERE status IN ('ready', 'retry') AND recipe = ?"
        value = self._connection.rows(sql, (self.recipe,))[0][0]
        return None if value is None else int(value)

    def _claim(self, limit: int, which: str) -> list[CaptionItem]:
        with self._connection.transaction("caption.claim") as db:
            claimed = [
                row[0]
                for row in db.conn.execute(
                    "UPDATE captions SET status = 'running', lease_run = ? WHERE id IN ("
                    "SELECT id FROM captions WHERE status IN ('ready', 'retry') AND recipe = ? AND not_before <= ? "
                    f"AND {which} ORDER BY not_before, id LIMIT ?) RETURNING id",
                    (self._run, self.recipe, now_ms(), limit),
                ).fetchall()
            ]
            if not claimed:
                return []
            rows = db.conn.execute(
                "SELECT c.id, i.working_sha256, p.text, c.crashes, c.repetition_penalty FROM captions c "
                "JOIN images i ON i.id = c.image JOIN prompts p ON p.id = c.prompt "
                f"WHERE c.id IN ({','.join('?' * len(claimed))}) ORDER BY c.id",
                claimed,
            ).fetchall()
        return [CaptionItem(*row) for row in rows]

    def commit(self, results: Sequence[CaptionResult], started_at: int) -> int:
        """Commit finished captions in one transaction; return how many were still held by this run."""
        now, committed = now_ms(), 0
        with self._connection.transaction("caption.commit") as db:
            for result in results:
                changed = db.conn.execute(
                    "UPDATE captions SET status = 'done', text = ?, tokens = ?, finish_reason = ?, flags = ?, "
                    "thinking = ?, run = ?, done_at = ?, attempts = attempts + 1, lease_run = NULL, "
                    "error_class = NULL, error = NULL "
                    "WHERE id = ? AND status = 'running' AND lease_run = ?",
                    (
                        result.text,
                        result.tokens,
                        result.finish_reason,
                        ",".join(result.flags),
                        result.thinking or None,
                        self._run,
                        now,
                        result.id,
                        self._run,
                    ),
                ).rowcount
                if changed:
                    self._log_attempt(db, result.id, started_at, now, None, None)
                    committed += 1
        return committed

    def working_copies(self, captions: Iterable[int]) -> dict[int, str]:
        """Return the hash of the working copy that each of these captions is made from."""
        rows = self._connection.rows(
            "SELECT c.id, i.working_sha256 FROM captions c JOIN images i ON i.id = c.image "
            "WHERE c.id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(captions)),),
        )
        return dict(rows)

    def lost_before(self, captions: Iterable[int]) -> set[int]:
        """Return those of these captions that had no picture, or a bad one, earlier in this run."""
        rows = self._connection.rows(
            "SELECT item FROM attempts WHERE stage = ? AND item IN (SELECT value FROM json_each(?)) AND run = ? "
            "AND error_class = ?",
            (self.stage, json.dumps(list(captions)), self._run, WorkingCopyError.slug),
        )
        return {item for (item,) in rows}

    def lose(self, failures: Sequence[ItemFailure]) -> int:
        """Let captions whose working copy has gone wait, uncharged, and put its sources back into the fetch queue.

        Every image with the same working copy has lost it.  Returns the number of captions that this run still held.
        """
        with self._connection.transaction("caption.lose") as db:
            images, now = list[int](), now_ms()
            for failure in failures:
                row = db.conn.execute(
                    "UPDATE captions SET status = 'cancelled', lease_run = NULL "
                    "WHERE id = ? AND status = 'running' AND lease_run = ? RETURNING image",
                    (failure.id, self._run),
                ).fetchall()
                if row:
                    self._log_attempt(db, failure.id, failure.started_at, now, failure.slug, failure.message)
                    images.append(row[0][0])
            sharing = db.conn.execute(
                "SELECT id FROM images WHERE state = 'present' AND working_sha256 IN (SELECT working_sha256 "
                "FROM images WHERE id IN (SELECT value FROM json_each(?)))",
                (json.dumps(images),),
            ).fetchall()
            lose_images(db, [image for (image,) in sharing])
        return len(images)

    def open_items(self) -> int:
        """Return the number of captions of this recipe that are ready, waiting or running."""
        sql = (
            "SELECT coalesce(sum(n), 0) FROM counters WHERE stage = 'captions' AND recipe = ? "
            "AND status IN ('ready', 'retry', 'running')"
        )
        return int(self._connection.rows(sql, (self.recipe,))[0][0])


def use_recipe(connection: Connection, *, sha256: str, model: str, revision: str, spec: str) -> int:
    """Make a recipe the current one, so that outcomes and counts speak of it; return its id.

    Images that were evicted because they had their captions under another recipe will be fetched again.
    """
    with connection.transaction("caption.recipe") as db:
        db.conn.execute(
            "INSERT INTO recipes (sha256, model, revision, spec, created_at) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (sha256) DO NOTHING",
            (sha256, model, revision, spec, now_ms()),
        )
        recipe, current = db.conn.execute("SELECT id, current FROM recipes WHERE sha256 = ?", (sha256,)).fetchone()
        if not current:
            db.conn.execute("UPDATE recipes SET current = (id = ?)", (recipe,))
            db.conn.execute(
                "UPDATE records SET outcome = (SELECT outcome FROM record_outcomes v WHERE v.record = records.id) "
                "WHERE state = 'active'"
            )
            wake_evicted(db)
        return int(recipe)
