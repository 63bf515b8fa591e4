"""The only writer of a state directory: lock, database, runs, and access to the work queues.

with Store.open(settings) as store, store.run((Stage.FETCH,)) as run:
    sources = store.sources(run)
"""

import json
import logging
import os
import signal
import socket
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any

from etl import clock
from etl.clock import now_ms
from etl.domain.statuses import RecordState, RunState, Stage
from etl.domain.views import EngineSample, ExportSummary, FailureFilter, GpuSample
from etl.errors import Interrupted
from etl.settings import Settings
from etl.state import captions as caption_queue
from etl.state import manifests, migrations, own_pictures, requeue, reserve, waits
from etl.state.captions import CaptionQueue
from etl.state.commands import Command, parse_command
from etl.state.database import DATABASE_NAME, Connection
from etl.state.hosts import HostLog
from etl.state.images import Images
from etl.state.lock import StateLock
from etl.state.log import RunLog, journal
from etl.state.manifests import ManifestWriter
from etl.state.parts import split
from etl.state.parts.merge import Merge
from etl.state.parts.split import Split
from etl.state.requeue import Recaption
from etl.state.sources import SourceQueue
from etl.state.work_queue import RetryPolicy, recover
from etl.version import __version__


class Store:
    """Everything that changes a state.  Open it with `Store.open`; close it, or use it as a context manager."""

    def __init__(self, settings: Settings, lock: StateLock, connection: Connection, resources: ExitStack) -> None:
        self.settings = settings
        self._lock = lock
        self._connection = connection
        self._resources = resources

    @classmethod
    def open(cls, settings: Settings, *, create: bool = True) -> "Store":
        """Lock the state directory, create or migrate its database, and recover what dead runs held.

        Raises `StateLockedError`, `StateNewerError`, `StateMissingError` (with ``create=False``) or
        `StateError`; nothing was changed then.
        """
        with ExitStack() as resources:
            if not create and not os.path.lexists(settings.state / DATABASE_NAME):
                Connection(settings.state / DATABASE_NAME, create=False)
            lock = resources.enter_context(StateLock(settings.state))
            connection = Connection(settings.state / DATABASE_NAME, create=create)
            resources.callback(connection.close)
            with connection.guard():
                migrations.migrate(connection.db)
            recover(connection, backoff_cap_s=settings.backoff_cap)
            return cls(settings, lock, connection, resources.pop_all())

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database and let go of the lock."""
        self._resources.close()

    @property
    def directory(self) -> Path:
        """The state directory."""
        return self.settings.state

    def manifest(self, path: str, beside: Sequence[str] = ()) -> ManifestWriter:
        """Return the writer for the manifest known as ``path``, which takes no key from those ``beside`` it."""
        return ManifestWriter(self._connection, path, beside)

    def reselect(self, selections: Iterable[tuple[int, str, Iterable[tuple[int, RecordState]]]]) -> None:
        """Apply other selections of records (`etl.state.manifests.reselect`), all of them or none."""
        manifests.reselect(self._connection, selections)

    def sources(self, run: int) -> SourceQueue:
        """Return the fetch queue, leased to ``run``."""
        return SourceQueue(self._connection, run, RetryPolicy.of(self.settings), self.settings.skip_flag)

    def hosts(self, run: int) -> HostLog:
        """Return the log of how hosts fare, written by ``run``."""
        return HostLog(self._connection, run)

    def captions(self, run: int, recipe: int) -> CaptionQueue:
        """Return the caption queue of one recipe, leased to ``run``."""
        policy = RetryPolicy.of(self.settings)
        return CaptionQueue(self._connection, run, recipe, policy, self.settings.skip_flag)

    def settle_skipped(self, run: int) -> None:
        """Let ``skip_flag`` count for what is queued under the current recipe, without a model."""
        current = self._connection.rows("SELECT id FROM recipes WHERE current = 1")
        some = "SELECT 1 FROM captions WHERE recipe = ? AND skipped IS NOT NULL LIMIT 1"
        if current and (self.settings.skip_flag or self._connection.rows(some, current[0])):
            self.captions(run, current[0][0]).enqueue_possible()

    def drop_own_pictures(self, *, dry_run: bool) -> list[int]:
        """Remove the pictures that stood in records which are gone; return their sizes."""
        return own_pictures.drop_unneeded(self._connection, dry_run=dry_run)

    def images(self) -> Images:
        """Return the writer of what the cache holds of each image."""
        return Images(self._connection)

    # Parts: see `etl.maintenance.split` and `etl.maintenance.merge`.

    def begin_split(self, parts: int, directory: Path) -> None:
        """Deal the sources out to parts that are to be made in ``directory``."""
        split.begin_split(self._connection, parts, directory)
        journal.info("split into %d parts in %s", parts, directory)

    def note_made(self, found: Split, number: int) -> None:
        """Note that one part is complete."""
        split.note_made(self._connection, found, number)

    def fill_part(self, whole: Path, found: Split, number: int) -> None:
        """Fill this new, empty state with what part ``number`` needs of the state directory ``whole``."""
        split.fill_part(self._connection, whole, found, number)

    def attached(self, other: Path) -> AbstractContextManager[None]:
        """Let the connection see another state's database, as ``other``, during the block."""
        return split.attached(self._connection, other)

    def merge(self) -> Merge:
        """Return the merge of the part that is attached."""
        return Merge(self._connection)

    def cached_images(self, after: int, limit: int) -> list[tuple[Any, ...]]:
        """Return the next images behind ``after`` that have a file: their id, hash, bytes and whether the original is
        kept; the same of the working copy.
        """
        return self._connection.rows(
            "SELECT id, sha256, bytes, original_kept, working_sha256, working_bytes, state = 'present' FROM images "
            "WHERE id > ? AND (state = 'present' OR original_kept = 1) ORDER BY id LIMIT ?",
            (after, limit),
        )

    def use_recipe(self, *, sha256: str, model: str, revision: str, spec: str) -> int:
        """Make a recipe the current one; return its id."""
        return caption_queue.use_recipe(self._connection, sha256=sha256, model=model, revision=revision, spec=spec)

    def retry_failed(self, chosen: FailureFilter, *, dry_run: bool = False) -> dict[str, int]:
        """Put the chosen failed items back to ready; return how many per stage."""
        return requeue.retry_failed(self._connection, chosen, dry_run=dry_run)

    def recaption(self, chosen: FailureFilter, *, dry_run: bool = False) -> Recaption:
        """Put the captions with ``chosen.flag`` back into the queue, to be decoded otherwise; return what was put."""
        return requeue.recaption(self._connection, chosen, dry_run=dry_run)

    # Runs.

    def begin_run(self, stages: Sequence[Stage]) -> int:
        """Record the beginning of a run; return its id."""
        now = now_ms()
        with self._connection.transaction("run.begin") as db:
            rows = db.conn.execute(
                "INSERT INTO runs (uid, stages, started_at, heartbeat_at, host, pid, app_version, config) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
                (
                    uuid.uuid4().hex[:12],
                    ",".join(stages),
                    now,
                    now,
                    socket.gethostname(),
                    os.getpid(),
                    __version__,
                    json.dumps(self.settings.redacted()),
                ),
            ).fetchall()
        journal.info("run %d began: %s", rows[0][0], ", ".join(stages) or "nothing to do")
        return int(rows[0][0])

    def heartbeat(self, run: int, state: RunState) -> None:
        """Tell readers that the run lives and what it does; raises `StateError` when its directory was replaced."""
        self._lock.check()
        with self._connection.transaction("run.heartbeat") as db:
            db.conn.execute(
                "UPDATE runs SET heartbeat_at = ?, state = ? WHERE id = ? AND ended_at IS NULL",
                (now_ms(), state, run),
            )

    def follow_clock(self) -> None:
        """Let the held clock follow the machine's, which was set, and with it every instant that was stored by it."""
        # Under the connection's lock, so that no other thread stores an instant of the old clock behind this.
        with self._connection.transaction("run.heartbeat") as db:
            by = clock.drift_ms()
            waits.shift(db, now_ms(), by)
            clock.follow(by)
        journal.warning(
            "the clock was set %s by %.0f s; waits stay as long as they were",
            "forward" if by > 0 else "back",
            abs(by) / 1000,
        )

    def end_run(self, run: int, state: RunState, message: str | None = None) -> None:
        """Release every lease of the run and record how it ended."""
        now = now_ms()
        # The name of a file may be no UTF-8.
        message = message and message.encode("utf-8", "backslashreplace").decode()
        self.sources(run).release_all()
        self.captions(run, 0).release_all()
        with self._connection.transaction("run.end") as db:
            ended = db.conn.execute(
                "UPDATE runs SET ended_at = ?, heartbeat_at = ?, state = ?, message = ? "
                "WHERE id = ? AND ended_at IS NULL",
                (now, now, state, message, run),
            ).rowcount
        if ended:
            level = logging.ERROR if state is RunState.FAILED else logging.INFO
            journal.log(level, "run %d ended: %s%s", run, state, f": {message}" if message else "")

    @contextmanager
    def run(self, stages: Sequence[Stage]) -> Iterator[int]:
        """Record one run around a block that does not watch for signals itself: ended done, or failed.

        What the program logs meanwhile goes into the log of the state too.
        """
        with RunLog(self.directory):
            run = self.begin_run(stages)
            reserve.keep(self.directory)
            try:
                yield run
            except BaseException as error:
                cut_off = isinstance(error, KeyboardInterrupt)
                self.end_run(run, RunState.INTERRUPTED if cut_off else RunState.FAILED, _why(error))
                raise
            self.end_run(run, RunState.DONE)

    # What other processes ask for, and what was written.

    def open_commands(self) -> list[Command]:
        """Return the commands that nobody has acknowledged yet, oldest first."""
        rows = self._connection.rows("SELECT id, name, arguments FROM commands WHERE acknowledged_at IS NULL")
        return [parse_command(*row) for row in sorted(rows)]

    def acknowledge(self, command: Command, run: int | None, result: str) -> None:
        """Answer a command; its sender waits for this."""
        with self._connection.transaction("command.answer") as db:
            db.conn.execute(
                "UPDATE commands SET acknowledged_at = ?, run = ?, result = ? WHERE id = ?",
                (now_ms(), run, result, command.id),
            )
        journal.info("%s: %s", command.name, result)

    def record_gpu(self, run: int, sample: GpuSample) -> None:
        """Record the load of one GPU."""
        with self._connection.transaction("run.gpu_sample") as db:
            db.conn.execute(
                "INSERT INTO gpu_samples (run, at, gpu, load_percent, memory_used, memory_total, power_w) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (run, now_ms(), *astuple(sample)),
            )

    def record_engine(self, run: int, sample: EngineSample) -> None:
        """Record how busy the caption engine of one worker is."""
        with self._connection.transaction("run.engine_sample") as db:
            db.conn.execute(
                "INSERT INTO engine_samples (run, at, worker, slots, in_use, waiting, captions, tokens) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (run, now_ms(), *astuple(sample)),
            )

    def record_export(self, run: int, summary: ExportSummary, recipe: int | None) -> None:
        """Record a finished export."""
        with self._connection.transaction("export.row") as db:
            db.conn.execute(
                "INSERT INTO exports (run, path, recipe, rows, bytes, sha256, at, format) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    run,
                    str(summary.path),
                    recipe,
                    summary.rows,
                    summary.size,
                    summary.sha256,
                    now_ms(),
                    summary.format,
                ),
            )
        journal.info("exported %d rows to %s", summary.rows, summary.path)

    def damage(self) -> list[str]:
        """Return what SQLite finds wrong with the file of the database; nothing for a whole one.

        Asked of the writer's connection: SQLite leaves CHECK constraints out where it may only read.
        """
        rows = self._connection.rows("PRAGMA integrity_check")
        return [f"integrity: {message}" for (message,) in rows if message != "ok"]


def _why(error: BaseException) -> str:
    if isinstance(error, Interrupted):
        return f"stopped by {signal.Signals(error.number).name}"
    return str(error)[:500] or type(error).__name__
