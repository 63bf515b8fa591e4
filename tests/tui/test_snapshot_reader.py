"""What one look reads, and how often: states older than the program, finished ones, plots, cost."""

from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from etl.clock import now_ms
from etl.domain.statuses import RunState, Stage
from etl.state.database import DATABASE_NAME
from etl.state.migrations import migrations
from etl.state.read.cost import cost
from etl.state.read.reader import Reader
from etl.state.read.samples import NEWEST, CaptionFilter, step
from tui.snapshot import StageState
from tui.snapshot_reader import SnapshotReader
from tui.throttle import Throttled

BEFORE = {1: "0002_hosts_and_mirrors", 2: "0003_captions_again_and_engine_samples", 3: "0004_looking"}


@pytest.mark.parametrize(("version", "before"), BEFORE.items())
def test_an_older_database_can_be_looked_at(tmp_path: Path, version: int, before: str) -> None:
    """A state that an older version wrote is shown as far as it goes, without being changed."""
    old = Database(tmp_path / DATABASE_NAME)
    migrations.apply(old, stop_before=before)
    old.execute("INSERT INTO sources (url, host, status, error_class) VALUES ('u', 'h', 'dead', 'http_404')")
    old.execute(f"PRAGMA user_version = {version}")
    old.close()
    with Reader(tmp_path) as reader:
        shown = SnapshotReader().read(reader)
        assert [(view.error_class, view.items) for view in shown.classes] == [("http_404", 1)]
        assert step(reader, NEWEST, CaptionFilter(flagged=True), older=True).found is None
        assert reader.rows("PRAGMA user_version") == [(version,)]


def test_the_stages_tell_where_a_state_stands(make_state: Any) -> None:
    """Each of the four stages has its word: while a run works, and after it."""
    state = make_state(6)
    state.fetch(done=4)
    state.caption("a", "b")
    state.store.sources(state.run).claim("archive.example", 1)
    with Reader(state.path) as reader:
        words = {
            view.stage: (view.state, view.done, view.total, view.queued)
            for view in SnapshotReader().read(reader).stages
        }
    assert words == {
        Stage.INGEST: (StageState.DONE, 6, 6, 0), Stage.FETCH: (StageState.RUNNING, 4, 6, 1),
        Stage.CAPTION: (StageState.WAITING, 2, 4, 2), Stage.EXPORT: (StageState.EMPTY, 0, 0, 0),
    }  # fmt: skip
    state.store.end_run(state.run, RunState.INTERRUPTED)
    with Reader(state.path) as reader:
        states = {view.stage: view.state for view in SnapshotReader().read(reader).stages}
    assert (states[Stage.FETCH], states[Stage.CAPTION]) == (StageState.IDLE, StageState.IDLE)


def test_a_plot_counts_what_was_done(make_state: Any) -> None:
    """The plot shows each ten seconds from the first in which anything was done, and grows by reading only the new."""
    state = make_state(10)
    state.fetch(done=6)
    at = now_ms()
    with state.store._connection.transaction() as db:
        for source, ago in ((1, 35), (2, 34), (3, 15), (4, 700)):
            db.conn.execute("UPDATE sources SET done_at = ? WHERE id = ?", (at - ago * 1000 + 5000, source))
    look = SnapshotReader()
    with Reader(state.path) as reader:
        assert look.read(reader).fetch.plot == (), "the first figures do not wait for it"
        first = look.read(reader).fetch.plot
        assert sum(first) >= 3 and first[0] > 0 and len(first) <= 5
        assert look.read(reader).fetch.plot == first


def test_cost_is_hours_times_price(make_state: Any) -> None:
    """A run costs by its own price; without one, the price that is given counts for runs that caption."""
    state = make_state(1, price=3.6)
    with state.store._connection.transaction() as db:
        db.conn.execute("UPDATE runs SET started_at = heartbeat_at - 1000000")
    with Reader(state.path) as reader:
        spent = cost(reader, 100.0)
    assert spent is not None
    assert (spent.price, round(spent.run, 6), round(spent.total, 6)) == (3.6, 1.0, 1.0)
    with state.store._connection.transaction() as db:
        db.conn.execute("UPDATE runs SET config = json_set(config, '$.gpu_price', 0)")
        db.conn.execute(
            "INSERT INTO runs (uid, stages, started_at, heartbeat_at, ended_at, host, pid, app_version, config) "
            "VALUES ('x', 'fetch', 0, 3600000, 3600000, 'h', 1, '1', '{}')"
        )
    with Reader(state.path) as reader:
        assert cost(reader) is None
        spent = cost(reader, 7.2)
    assert spent is not None
    assert (spent.run, round(spent.total, 6)) == (0.0, 2.0)


def test_what_costs_time_is_read_less_often() -> None:
    """A reading is repeated only when its key has changed, and not before it is worth its time."""
    clock, read = Throttled[int](), []

    def slow() -> int:
        read.append(1)
        clock_wait(0.02)
        return len(read)

    assert [clock.get("a", slow), clock.get("a", slow)] == [1, 1]
    assert clock.get("b", slow) == 1, "two seconds must pass after 20 ms of reading"
    quick, n = Throttled[int](), iter(range(9))
    assert quick.get("a", lambda: next(n)) == 0
    clock_wait(0.05)
    assert quick.get("b", lambda: next(n)) == 1


def clock_wait(seconds: float) -> None:
    """Let time pass."""
    import time

    time.sleep(seconds)
