"""The only reader of the state database: short read-only queries, each fetched whole.

Everything that shows a state (`etl status`, the dashboard, exports) asks here and nowhere else.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from etl.clock import now_ms
from etl.domain.statuses import RunState, Stage
from etl.domain.views import Failure, FailureFilter, Progress, RunInfo
from etl.state.database import DATABASE_NAME, ENGINE_VERSION, check_version, known, open_reader, translate_errors
from etl.state.lock import is_locked
from etl.state.read.export_rows import ExportRow, export_sql
from etl.state.read.failures import CURRENT, FAILURES, failure_condition

RATE_WINDOW_MS = 60_000
"""Rates are averages over this window."""

PAGE = 2000
"""Rows read at once by the queries that walk a whole state."""

PAGE_BYTES = 32 * 1024**2
"""Bytes of manifest lines from which such a page is full, however few they are."""


@dataclass(frozen=True, slots=True)
class RecipeRow:
    """One recipe as stored; ``spec`` is its canonical JSON."""

    id: int
    sha256: str
    model: str
    revision: str
    spec: str
    current: bool


class Reader:
    """Read-only access to one state directory; use as a context manager.

    Attributes:
        version: of the schema when it was opened; readers do not migrate.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self._path = state / DATABASE_NAME
        self._db = open_reader(state)
        try:
            with translate_errors(self._path):
                self.version = check_version(self._db)
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def rows(self, sql: str, arguments: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one query and fetch it whole."""
        with translate_errors(self._path):
            return list(self._db.execute(sql, arguments).fetchall())

    def _page(self, sql: str, arguments: Sequence[object], line: int) -> list[tuple[Any, ...]]:
        """Run the query for a page whose column ``line`` holds manifest lines; rows beyond `PAGE_BYTES` are left."""
        rows, size = list[tuple[Any, ...]](), 0
        with translate_errors(self._path):
            cursor = self._db.execute(sql, arguments)
            for row in cursor:
                rows.append(row)
                size += len(row[line])
                if size >= PAGE_BYTES:
                    break
            cursor.close()
        return rows

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """See one unchanging state during the block; keep it short beside a live run."""
        with translate_errors(self._path):
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("COMMIT")

    # Progress and runs.

    def progress(self) -> Progress:
        """Return all counts and rates at one instant; constant time whatever the size of the state."""
        with self.snapshot():
            counts: dict[str, dict[str, int]] = {
                "records": {}, "outcomes": {}, "sources": {}, "captions": {}, "images": {},
            }  # fmt: skip
            for stage, status, n in self.rows(
                "SELECT stage, status, n FROM counters WHERE recipe = 0 "
                "OR recipe = (SELECT id FROM recipes WHERE current = 1)"
            ):
                counts[stage][status] = n
            runs = self.runs(1)
            now = now_ms()
            fetched, size = self._window("sources", now)
            captioned, _ = self._window("captions", now)
        span = RATE_WINDOW_MS / 1000
        if runs and now - runs[0].started_at < RATE_WINDOW_MS:
            span = max(1.0, (now - runs[0].started_at) / 1000)
        return Progress(
            records=counts["records"], outcomes=counts["outcomes"], sources=counts["sources"],
            captions=counts["captions"], bytes_fetched=counts["images"].get("bytes", 0), fetched_per_s=fetched / span,
            captioned_per_s=captioned / span, bytes_per_s=size / span, run=runs[0] if runs else None, at=now,
        )  # fmt: skip

    def _window(self, table: str, now: int) -> tuple[int, int]:
        """Return items done and bytes fetched within the last `RATE_WINDOW_MS`."""
        size = "coalesce(sum(i.bytes), 0)" if table == "sources" else "0"
        join = "JOIN images i ON i.id = t.image" if table == "sources" else ""
        row = self.rows(
            f"SELECT count(*), {size} FROM {table} t {join} WHERE t.status = 'done' AND t.done_at > ? "
            "AND t.done_at <= ?",
            (now - RATE_WINDOW_MS, now),
        )[0]
        return int(row[0]), int(row[1])

    def runs(self, limit: int = 20) -> list[RunInfo]:
        """Return the latest runs, newest first."""
        rows = self.rows(
            "SELECT id, uid, stages, state, started_at, heartbeat_at, ended_at, host, pid, message, "
            "CASE WHEN json_valid(config) THEN json_extract(config, '$.deadline') END FROM runs "
            "ORDER BY id DESC LIMIT ?",
            (limit,),
        )
        return [self._run(*row) for row in rows]

    def _run(self, number: int, uid: str, stages: str, state: str, *rest: Any) -> RunInfo:
        started, heartbeat, ended, host, pid, message, deadline = rest
        if ended is None and not is_locked(self.state):
            # Nobody holds the kernel's lock: the process is gone, however fresh its heartbeat.
            state = RunState.CRASHED
        return RunInfo(
            number, uid, tuple(filter(None, stages.split(","))), known(RunState, state), started, heartbeat, ended,
            host, pid, message, _unix_ms(deadline),
        )  # fmt: skip

    def began_at(self, run: str) -> int | None:
        """Return when a run began, Unix milliseconds, by its uid, the beginning of that, or its number."""
        number = int(run) if run.isdecimal() and len(run) < 12 else None
        runs = self.rows("SELECT started_at, uid, id FROM runs WHERE uid LIKE ? || '%' OR id = ?", (run, number))
        for is_it in (lambda uid, _: uid == run, lambda _, id_: id_ == number, lambda *_: len(runs) == 1):
            for started_at, *names in runs:
                if is_it(*names):
                    return int(started_at)
        return None

    def run_config(self, run: int) -> dict[str, Any]:
        """Return the settings that a run was started with."""
        return dict(json.loads(self.rows("SELECT config FROM runs WHERE id = ?", (run,))[0][0]))

    # Failures and stories.

    def failures(self, chosen: FailureFilter | None = None, limit: int | None = None) -> Iterator[Failure]:
        """Yield dead items and invalid records, by stage and error class."""
        chosen = chosen or FailureFilter()
        if chosen.flag is not None:
            return
        for stage, sql in FAILURES.items():
            if chosen.stage not in (None, stage):
                continue
            # In the order of the partial indexes over dead items: by number, a page would look at every item.
            after = ("", 0)
            while limit is None or limit > 0:
                size = PAGE if limit is None else min(PAGE, limit)
                condition, arguments = failure_condition(stage, chosen)
                rows = self.rows(
                    f"{sql}{condition} AND (t.error_class, t.id) > (?, ?) ORDER BY t.error_class, t.id LIMIT ?",
                    (*arguments, *after, size),
                )
                for row in rows:
                    yield Failure(stage, *row)
                limit = None if limit is None else limit - len(rows)
                if len(rows) < size:
                    break
                after = (rows[-1][1], rows[-1][0])

    def failure_classes(self) -> list[tuple[str, str, int]]:
        """Return ``(stage, error_class, count)`` of everything that is dead or invalid."""
        return [
            (stage, slug or "", n)
            for stage, table, where in (
                (Stage.INGEST, "records", "state = 'invalid'"),
                (Stage.FETCH, "sources", "status = 'dead'"),
                (Stage.CAPTION, "captions", f"status = 'dead' AND {CURRENT}"),
            )
            for slug, n in self.rows(f"SELECT error_class, count(*) FROM {table} WHERE {where} GROUP BY error_class")
        ]

    def waiting_classes(self) -> list[tuple[str, str, int]]:
        """Return ``(stage, error_class, count)`` of everything that waits for another attempt."""
        return [
            (stage, slug or "", n)
            for stage, table, where in ((Stage.FETCH, "sources", "true"), (Stage.CAPTION, "captions", CURRENT))
            for slug, n in self.rows(
                f"SELECT error_class, count(*) FROM {table} WHERE status IN ('ready', 'retry') "
                f"AND {where} AND error_class IS NOT NULL GROUP BY error_class"
            )
        ]

    def story(self, key: str) -> dict[str, Any] | None:
        """Return everything known of one record: its line, source, image, captions and attempts."""
        record = self._one(
            "SELECT r.id, r.key, m.path AS manifest, r.position AS line, r.state, r.outcome, r.error_class, r.error, "
            "r.source, r.prompt AS prompt_id, p.text AS prompt FROM records r "
            "JOIN manifests m ON m.id = r.manifest LEFT JOIN prompts p ON p.id = r.prompt WHERE r.key = ?",
            key,
        )
        if record is None:
            return None
        source = self._one("SELECT * FROM sources WHERE id = ?", record.pop("source"))
        prompt = record.pop("prompt_id")
        image = self._one("SELECT * FROM images WHERE id = ?", source["image"]) if source else None
        captions = self._many(
            "SELECT c.*, p.model, p.revision, p.current FROM captions c JOIN recipes p ON p.id = c.recipe "
            "WHERE c.image = ? AND c.prompt = ? ORDER BY c.id",
            image["id"] if image else None,
            prompt,
        )
        attempts = self._attempts(Stage.FETCH, source["id"]) if source else []
        for caption in captions:
            caption["earlier"] = self._earlier(caption["id"])
            attempts += self._attempts(Stage.CAPTION, caption["id"])
        line = self.rows("SELECT line FROM record_lines WHERE record = ?", (record.pop("id"),))[0][0]
        return {
            "record": record, "source": source, "image": image, "captions": captions, "attempts": attempts,
            "line": bytes(line).decode("utf-8", "replace"),
        }  # fmt: skip

    def _earlier(self, caption: int) -> list[dict[str, Any]]:
        """Return what a caption was before it was made again, oldest first."""
        if self.version < ENGINE_VERSION:
            return []
        return self._many(
            "SELECT text, finish_reason, tokens, flags, repetition_penalty, run, done_at FROM earlier_captions "
            "WHERE caption = ? ORDER BY id",
            caption,
        )

    def _attempts(self, stage: Stage, item: int) -> list[dict[str, Any]]:
        return self._many(
            "SELECT stage, n, run, started_at, ended_at, error_class, message FROM attempts "
            "WHERE stage = ? AND item = ? ORDER BY id",
            stage,
            item,
        )

    def _one(self, sql: str, *arguments: object) -> dict[str, Any] | None:
        found = self._many(sql, *arguments)
        return found[0] if found else None

    def _many(self, sql: str, *arguments: object) -> list[dict[str, Any]]:
        with translate_errors(self._path):
            cursor = self._db.execute(sql, arguments)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    # Images, recipes, manifests, export.

    def longest_edges(self) -> list[int]:
        """Return the different limits that the present working copies were made with."""
        return [row[0] for row in self.rows("SELECT DISTINCT longest_edge FROM images WHERE state = 'present'")]

    def recipes(self) -> list[RecipeRow]:
        """Return all recipes, oldest first."""
        rows = self.rows("SELECT id, sha256, model, revision, spec, current FROM recipes ORDER BY id")
        return [RecipeRow(row[0], row[1], row[2], row[3], row[4], bool(row[5])) for row in rows]

    def manifests(self) -> list[tuple[int, str, str, bool]]:
        """Return ``(id, path, spec, complete)`` of every manifest, in the order they were first ingested."""
        return [
            (number, path, spec, bool(complete))
            for number, path, spec, complete in self.rows("SELECT id, path, spec, complete FROM manifests ORDER BY id")
        ]

    def lines(self, manifest: int) -> Iterator[tuple[int, str, bytes]]:
        """Yield ``(record, state, line)`` for the records of one manifest, in order, removed ones left out."""
        after = (0, 0)
        while rows := self._page(
            "SELECT r.position, r.id, r.state, l.line FROM records r JOIN record_lines l ON l.record = r.id "
            "WHERE r.manifest = ? AND (r.position, r.id) > (?, ?) AND r.state <> 'removed' "
            "ORDER BY r.position, r.id LIMIT ?",
            (manifest, *after, PAGE),
            line=3,
        ):
            yield from (row[1:] for row in rows)
            after = rows[-1][:2]

    def export_rows(self, manifest: int, recipe: int | None, after: tuple[int, int] = (0, 0)) -> Iterator[ExportRow]:
        """Yield the records of one manifest in its order, removed ones left out, joined with one recipe's captions.

        Begins behind the record with the position and number ``after``.
        """
        sql = export_sql(self.version)
        while rows := self._page(sql, (recipe, manifest, *after, PAGE), line=5):
            for row in rows:
                yield ExportRow(*row)
            after = rows[-1][:2]


def _unix_ms(moment: Any) -> int | None:
    """Return a run's deadline, which is stored as a moment with its zone; ``None`` for what is none."""
    try:
        return round(datetime.fromisoformat(moment).timestamp() * 1000) if moment else None
    except (ValueError, TypeError, OverflowError):
        return None
