"""A work queue: a table with the queue columns, and every way an item moves through them.

    ready -> running -> done
    ready -> running -> retry -> running ...   a retryable failure waits until `not_before`
    ready -> running -> dead                   a permanent failure, or too many attempts or crashes
    ready | retry | dead -> cancelled          no active record needs it any more

Every move out of ``running`` is fenced by the run that holds the lease: a late result of a run that has lost
its lease changes nothing.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from etl.clock import now_ms
from etl.domain.items import ItemFailure
from etl.domain.statuses import Stage
from etl.settings import Settings
from etl.state import waits
from etl.state.database import Connection
from etl.state.log import journal
from etl.state.sqlite import Database
from etl.state.waits import LONGEST_ASKED_WAIT_S

ALONE_AFTER_CRASHES = 3
"""A caption whose process died this often is tried alone, so that it cannot take its batch with it."""

DEAD_AFTER_CRASHES = 5
"""Two deaths alone prove the item guilty; one could still be an operator's kill -9 at a bad moment."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a failed item is tried, and when again.

    Attributes:
        max_attempts: after which a retryable failure is final.
        backoff_s: wait before the second attempt; doubles with each further one.
        cap_s: longest wait that is our own choice.
    """

    max_attempts: int
    backoff_s: float
    cap_s: float

    @classmethod
    def of(cls, settings: Settings) -> "RetryPolicy":
        """Return what the settings say."""
        return cls(settings.max_attempts, settings.backoff, settings.backoff_cap)

    def wait_ms(self, attempts: int, retry_after_s: float | None) -> int:
        """Return the wait before the next attempt: exponential with full jitter above half, never under
        what the server asked for.
        """
        ceiling = min(self.cap_s, self.backoff_s * 2.0 ** (attempts - 1))
        wait = ceiling * random.uniform(0.5, 1.0)
        return round(1000 * max(wait, min(retry_after_s or 0.0, LONGEST_ASKED_WAIT_S)))


class WorkQueue:
    """The moves that sources and captions share.  Subclasses claim and commit.

    Attributes:
        dead_after_crashes: crashes of one item after which it is given up.
    """

    table: str
    stage: Stage
    dead_after_crashes = ALONE_AFTER_CRASHES

    def __init__(self, connection: Connection, run: int, policy: RetryPolicy) -> None:
        self._connection = connection
        self._run = run
        self._policy = policy

    def fail(self, failures: Sequence[ItemFailure]) -> list[bool]:
        """Commit failed attempts in one transaction; return for each whether the item is now dead.

        A failure of an item that this run no longer holds changes nothing and counts as not dead.
        """
        with self._connection.transaction(f"{self.stage}.fail") as db:
            dead = [self._fail_one(db, failure) for failure in failures]
        for failure, final in zip(failures, dead, strict=True):
            if final:
                journal.info("%s %d failed: %s: %s", self.stage, failure.id, failure.slug, failure.message)
        return dead

    def _fail_one(self, db: Database, failure: ItemFailure) -> bool:
        row = db.conn.execute(
            f"SELECT attempts, crashes FROM {self.table} WHERE id = ? AND status = 'running' AND lease_run = ?",
            (failure.id, self._run),
        ).fetchone()
        if row is None:
            return False
        attempts, crashes = int(row[0]) + 1, int(row[1]) + failure.crashed
        # A process that died is no proof against the picture until it happened again and again.
        spent: bool = crashes >= self.dead_after_crashes if failure.crashed else attempts >= self._policy.max_attempts
        dead = bool(spent or not (failure.retryable or failure.crashed))
        now = now_ms()
        wait = 0 if dead else self._policy.wait_ms(attempts, failure.retry_after_s)
        db.conn.execute(
            f"UPDATE {self.table} SET status = ?, attempts = ?, crashes = ?, not_before = ?, lease_run = NULL, "
            "error_class = ?, error = ?, done_at = ? WHERE id = ?",
            (
                "dead" if dead else "retry",
                attempts,
                crashes,
                now + wait,
                failure.slug,
                failure.message,
                now if dead else None,
                failure.id,
            ),
        )
        self._log_attempt(db, failure.id, failure.started_at, now, failure.slug, failure.message)
        return dead

    def release(self, ids: Iterable[int]) -> None:
        """Put claimed items back without charging an attempt: we stopped, they did not fail."""
        with self._connection.transaction(f"{self.stage}.release") as db:
            db.conn.executemany(
                f"UPDATE {self.table} SET status = CASE WHEN attempts > 0 THEN 'retry' ELSE 'ready' END, "
                "lease_run = NULL WHERE id = ? AND status = 'running' AND lease_run = ?",
                [(item, self._run) for item in ids],
            )

    def release_all(self) -> int:
        """Put back everything this run still holds; return how many items that were."""
        with self._connection.transaction(f"{self.stage}.release_all") as db:
            released = db.conn.execute(
                f"UPDATE {self.table} SET status = CASE WHEN attempts > 0 THEN 'retry' ELSE 'ready' END, "
                "lease_run = NULL WHERE status = 'running' AND lease_run = ?",
                (self._run,),
            )
            return int(released.rowcount)

    def next_due_ms(self) -> int | None:
        """Return when the next waiting item may be tried, Unix milliseconds; ``None`` when none waits."""
        sql = f"SELECT min(not_before) FROM {self.table} WHERE status IN ('ready', 'retry')"
        value = self._connection.rows(sql)[0][0]
        return None if value is None else int(value)

    def _log_attempt(
        self, db: Database, item: int, started: int, ended: int, slug: str | None, message: str | None
    ) -> None:
        if slug is None:
            db.conn.execute(
                "DELETE FROM attempts WHERE stage = ? AND item = ? AND error_class IS NULL", (self.stage, item)
            )
        db.conn.execute(
            "INSERT INTO attempts (stage, item, n, run, started_at, ended_at, error_class, message) "
            "VALUES (?, ?, 1 + (SELECT count(*) FROM attempts WHERE stage = ? AND item = ?), ?, ?, ?, ?, ?)",
            (self.stage, item, self.stage, item, self._run, started, ended, slug, message),
        )


def recover(connection: Connection, *, backoff_cap_s: float) -> dict[str, int]:
    """Take back what dead runs still hold; return the number of items per table.

    The caller holds the writer lock, so every lease belongs to a dead run.  A caption that was in flight
    counts a crash, because its picture may have killed the process.  A source does not: its picture is
    decoded in a child, whose death is charged where it happens.  Waits that were set under another clock are cut.
    Commands that nobody obeyed were meant for a run that is over.
    """
    now = now_ms()
    with connection.transaction("recover") as db:
        db.conn.execute("UPDATE runs SET state = 'crashed', ended_at = heartbeat_at WHERE ended_at IS NULL")
        # A stop that came too late for its run must not stop the next one.
        db.conn.execute(
            "UPDATE commands SET acknowledged_at = ?, result = 'too late: the run had ended' "
            "WHERE acknowledged_at IS NULL",
            (now,),
        )
        sources = db.conn.execute(
            "UPDATE sources SET status = CASE WHEN attempts > 0 THEN 'retry' ELSE 'ready' END, lease_run = NULL "
            "WHERE status = 'running'"
        ).rowcount
        captions = db.conn.execute(
            "UPDATE captions SET crashes = crashes + 1, lease_run = NULL, "
            "status = CASE WHEN crashes + 1 >= ? THEN 'dead' WHEN attempts > 0 THEN 'retry' ELSE 'ready' END, "
            "error_class = CASE WHEN crashes + 1 >= ? THEN 'crashed' ELSE error_class END, "
            "error = CASE WHEN crashes + 1 >= ? THEN 'the process died repeatedly on this picture' ELSE error END, "
            "done_at = CASE WHEN crashes + 1 >= ? THEN ? ELSE done_at END WHERE status = 'running'",
            (*(DEAD_AFTER_CRASHES,) * 4, now),
        ).rowcount
        waits.cut(db, now, backoff_cap_s)
    return {"sources": sources, "captions": captions}
