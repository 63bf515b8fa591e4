"""Query plans of the statements that the code really runs, over a state with items in every status.

A partial index is used only where SQLite can prove its predicate from the statement's own text, so the plans are
asked for the text as it was prepared, with its parameters left to be bound.
"""

import dataclasses
import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.states import captioned, failed, fetched, put_records, use_recipe

from etl.clock import now_ms
from etl.domain.statuses import QualityFlag, Stage
from etl.domain.views import FailureFilter
from etl.state.captions import CaptionQueue
from etl.state.images import EvictionReason, originals_of, working_copies_of
from etl.state.read.export_rows import export_rows
from etl.state.read.failures import failed_items, failure_classes, retry_classes
from etl.state.read.manifests import manifest_lines
from etl.state.read.progress import done_per_span, flag_counts, image_flag_counts, read_progress, tokens_per_s
from etl.state.read.reader import Reader
from etl.state.read.samples import NEWEST, CaptionFilter, Cursor, at_random, sample, step
from etl.state.read.search import records_by_key
from etl.state.read.story import record_story
from etl.state.record_captions import skip_captions, take_up_skipped
from etl.state.sources import SourceQueue
from etl.state.store import Store
from etl.state.work_queue import recover

Plans = dict[str, list[str]]


class _Recorder:
    """Stands before a connection and notes the plan of every statement just before it runs."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.plans: Plans = {}

    def execute(self, sql: str, arguments: Any = ()) -> sqlite3.Cursor:
        if sql.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "INSERT", "WITH")):
            rows = self._connection.execute(f"EXPLAIN QUERY PLAN {sql}", arguments).fetchall()
            self.plans[sql] = [row[3] for row in rows]
        return self._connection.execute(sql, arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class _State:
    """A state in which every status occurs, and a recorder of what is run on it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        put_records(store, [
            *({"id": str(n), "url": f"http://h{n % 3}.example/{n}.jpg"} for n in range(60)), {"id": "bad"},
        ])  # fmt: skip
        self.recipe = use_recipe(store)
        self.run = store.begin_run([Stage.FETCH, Stage.CAPTION])
        self.sources: SourceQueue = store.sources(self.run)
        self.captions: CaptionQueue = store.captions(self.run, self.recipe)
        items = self.sources.claim("h0.example", 20)
        self.sources.commit([fetched(item) for item in items[:12]], self.recipe)
        self.sources.fail([failed(item.id, retryable=item.id % 2 == 0) for item in items[12:]])
        claimed = self.captions.claim(8)
        done = [dataclasses.replace(captioned(item), flags=("repetition",)) for item in claimed[:3]]
        self.captions.commit(done, now_ms())
        self.captions.fail([failed(item.id, retryable=item.id % 2 == 0) for item in claimed[3:]])
        self.item = self.sources.claim("h1.example", 1)[0]
        self.recorder = _Recorder(store._connection.db.conn)
        store._connection.db.conn = self.recorder  # type: ignore[assignment]

    def plans(self, work: Callable[["_State"], object]) -> Plans:
        """Return the plans of what ``work`` runs through the store or through a reader."""
        self.recorder.plans.clear()
        with Reader(self.store.directory) as reader:
            recorder = _Recorder(reader._db)
            reader._db = recorder  # type: ignore[assignment]
            self.reader = reader
            work(self)
        return self.recorder.plans | recorder.plans


@pytest.fixture
def full(store: Store) -> Iterator[_State]:
    state = _State(store)
    yield state
    store._connection.db.conn = state.recorder._connection


FLAGGED = CaptionFilter(flagged=True)


def _evict_for_every_reason(state: _State) -> None:
    images = state.store.images()
    for grounds in EvictionReason:
        images.evict(grounds, [one.image for one in images.candidates(grounds, 0, 5)])
        images.owned(["ab"])


def _skip(state: _State) -> None:
    with state.store._connection.transaction() as db:
        skip_captions(db, state.recipe, ("blank", "tiny"))
        skip_captions(db, state.recipe, ("blank", "tiny"), 1)
        take_up_skipped(db, state.recipe, ("tiny",))


WORK: dict[str, tuple[Callable[[_State], object], str]] = {
    "claim of sources": (lambda s: s.sources.claim("h0.example", 4), "sources_ready"),
    "hosts with due work": (lambda s: s.sources.ready_hosts(), "sources_ready"),
    "next due source": (lambda s: s.sources.next_due_ms(), "sources_ready"),
    "release of sources": (lambda s: s.sources.release_all(), "sources_running"),
    "claim of captions": (lambda s: s.captions.claim(4), "captions_ready"),
    "claim of a suspect": (lambda s: s.captions.claim_suspect(), "captions_ready"),
    "next due caption": (lambda s: s.captions.next_due_ms(), "captions_ready"),
    "release of captions": (lambda s: s.captions.release_all(), "captions_running"),
    "recovery": (lambda s: recover(s.store._connection, backoff_cap_s=600), "sources_running"),
    "open commands": (lambda s: s.store.open_commands(), "commands_open"),
    "retry": (lambda s: s.store.retry_failed(FailureFilter()), "sources_dead"),
    "retry by class": (lambda s: s.store.retry_failed(FailureFilter(error_class="timeout")), "captions_dead"),
    "retry by key": (lambda s: s.store.retry_failed(FailureFilter(key="1")), "sqlite_autoindex_records_1"),
    "captions again": (
        lambda s: s.store.recaption(FailureFilter(flag=QualityFlag.REPETITION)),
        "captions_flagged",
    ),
    "caption again by key": (
        lambda s: s.store.recaption(FailureFilter(flag=QualityFlag.REPETITION, key="1")),
        "sqlite_autoindex_records_1",
    ),
    "count of flags": (lambda s: flag_counts(s.reader), "captions_flagged"),
    "count of flags of pictures": (lambda s: image_flag_counts(s.reader), "images_flagged"),
    "count to retry": (lambda s: s.store.retry_failed(FailureFilter(), dry_run=True), "sources_dead"),
    "failures": (lambda s: list(failed_items(s.reader)), "sources_dead"),
    "failures of ingest": (
        lambda s: list(failed_items(s.reader, FailureFilter(stage=Stage.INGEST))),
        "records_invalid",
    ),
    "failures of caption": (
        lambda s: list(failed_items(s.reader, FailureFilter(stage=Stage.CAPTION))),
        "captions_dead",
    ),
    "failures by class": (lambda s: list(failed_items(s.reader, FailureFilter(error_class="timeout"))), "sources_dead"),
    "failure classes": (lambda s: failure_classes(s.reader), "captions_dead"),
    "waiting classes": (lambda s: retry_classes(s.reader), "sources_waiting"),
    "waiting classes of captions": (lambda s: retry_classes(s.reader), "captions_waiting"),
    "next older caption": (lambda s: step(s.reader, NEWEST, CaptionFilter(), older=True), "captions_done_at"),
    "next newer caption": (
        lambda s: step(s.reader, Cursor(-1, -1), CaptionFilter(), older=False),
        "captions_done_at",
    ),
    "next flagged caption": (
        lambda s: step(s.reader, NEWEST, FLAGGED, older=True),
        "captions_flagged_in_order",
    ),
    "next caption with a word": (
        lambda s: step(s.reader, NEWEST, CaptionFilter(text="x"), older=True),
        "records_by_source",
    ),
    "caption at random": (lambda s: at_random(s.reader, CaptionFilter()), "INTEGER PRIMARY KEY"),
    "a caption to look at": (lambda s: sample(s.reader, 1), "records_by_source"),
    "records by key": (lambda s: records_by_key(s.reader, "1"), "sqlite_autoindex_records_1"),
    "captions over time": (lambda s: done_per_span(s.reader, "captions", 0, 1000), "captions_done_at"),
    "tokens per second": (lambda s: tokens_per_s(s.reader, read_progress(s.reader)), "captions_done_at"),
    "progress": (lambda s: read_progress(s.reader), "sources_done_at"),
    "pages of lines": (lambda s: list(manifest_lines(s.reader, 1)), "records_in_order"),
    "pages of an export": (lambda s: list(export_rows(s.reader, 1, s.recipe)), "records_in_order"),
    "story": (lambda s: record_story(s.reader, "3"), "attempts_by_item"),
    "commit of a picture": (lambda s: s.sources.commit([fetched(s.item)], s.recipe), "records_by_source"),
    "skipping captions of flagged pictures": (_skip, "images_flagged"),
    "taking up what was skipped": (_skip, "captions_skipped"),
    "whether a picture is a placeholder": (lambda s: s.sources.commit([fetched(s.item)]), "sources_by_image"),
    "making room": (_evict_for_every_reason, "sources_by_image"),
    "working copies of a shard": (lambda s: working_copies_of(s.reader, "ab"), "images_by_working_copy"),
    "originals of a shard": (lambda s: originals_of(s.reader, "ab"), "sqlite_autoindex_images_1"),
    "failed attempt": (lambda s: s.sources.fail([failed(s.item.id)]), "attempts_by_item"),
}

_SMALL = {"runs", "recipes", "manifests", "counters", "commands", "hosts", "found", "p"}
"""Tables of a few rows; ``found`` are a page of hosts, ``p`` is the alias of ``recipes`` in the view of outcomes."""


@pytest.mark.parametrize("name", WORK)
def test_work_on_open_items_costs_what_is_open(full: _State, name: str) -> None:
    """The named work uses its partial index, and none of its statements walks through a whole table."""
    work, index = WORK[name]
    plans = full.plans(work)
    assert any(f" {index} " in f"{step} " for plan in plans.values() for step in plan), plans
    for sql, plan in plans.items():
        for line in plan:
            table = re.fullmatch(r"SCAN (\w+)( LEFT-JOIN)?", line)
            assert table is None or table[1] in _SMALL, f"{line}: {sql}"


def test_settling_outcomes_looks_up_its_records(store: Store) -> None:
    """The statements inside the triggers find their records through the index over sources."""
    triggers = store._connection.rows("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    bodies = {name: sql.partition(" BEGIN ")[2].removesuffix(" END") for name, sql in triggers}
    checked = 0
    for name in ("sources_settle", "captions_settle"):
        statement = re.sub(r"new\.\w+", "1", bodies[name])
        plan = [row[3] for row in store._connection.rows(f"EXPLAIN QUERY PLAN {statement}")]
        assert any("SEARCH records USING INDEX records_by_source (source=?" in step for step in plan), plan
        checked += 1
    assert checked == 2


def test_recorder_notices_a_predicate_that_is_not_literal(full: _State) -> None:
    """A claim whose status is computed, not repeated from the index, shows up as a walk through the table."""
    full.recorder.execute("SELECT id FROM sources WHERE status || '' = 'ready' AND not_before <= ?", (0,))
    assert full.recorder.plans.popitem()[1] == ["SCAN sources"]
