"""The schema: migrations, versions, and what the database itself enforces."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database
from support.once import migrate
from support.states import assert_sound, fetch_all, put_sources, settings_for

from etl.clock import now_ms
from etl.domain.statuses import HostState, Stage
from etl.domain.views import HostInfo
from etl.errors import StateNewerError
from etl.state.database import DATABASE_NAME, SCHEMA_VERSION
from etl.state.migrations import migrations
from etl.state.read.hosts import all_hosts
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.state.store import Store


def _sql(state: Path, statement: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(state / DATABASE_NAME, isolation_level=None)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def test_new_database_has_the_version_and_pragmas(store: Store) -> None:
    """A new database is in WAL mode, fully synchronous, with foreign keys, 16 KiB pages and its version set."""
    values = {
        name: store._connection.rows(f"PRAGMA {name}")[0][0]
        for name in ("journal_mode", "synchronous", "foreign_keys", "page_size", "user_version")
    }
    assert values == {
        "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "page_size": 16384, "user_version": SCHEMA_VERSION,
    }  # fmt: skip


def test_what_tests_begin_with_is_what_the_program_makes(state: Path, store: Store) -> None:
    """The copied schema of the other tests is that of a database which the migrations themselves have made."""
    with closing(sqlite3.connect(state.parent / DATABASE_NAME, isolation_level=None)) as made:
        migrate(Database(made))
        for asked in ("SELECT * FROM sqlite_master ORDER BY name", "PRAGMA user_version"):
            found, right = store._connection.rows(asked), made.execute(asked).fetchall()
            assert [row[-1] for row in found] == [row[-1] for row in right]
    assert store._connection.rows("SELECT count(*) FROM _sqlite_migrations") == [(SCHEMA_VERSION,)]


def test_opening_again_keeps_everything(state: Path) -> None:
    """A second opening migrates nothing and loses nothing."""
    with Store.open(settings_for(state)) as store:
        put_sources(store, "http://a.example/1.jpg", "http://a.example/2.jpg")
    with Store.open(settings_for(state)) as store:
        assert store._connection.rows("SELECT count(*) FROM records") == [(2,)]
    assert_sound(state)


def test_version_is_repaired_after_a_death_behind_the_migration(state: Path) -> None:
    """A process that died between the migration and its number leaves a database that the next one numbers."""
    Store.open(settings_for(state)).close()
    _sql(state, "PRAGMA user_version = 0")
    Store.open(settings_for(state)).close()
    assert _sql(state, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


def test_half_a_migration_is_rolled_back(state: Path) -> None:
    """A migration that fails in its middle leaves no table behind, so that the next opening begins cleanly."""
    state.mkdir()
    old = Database(state / DATABASE_NAME)
    migrations.apply(old, stop_before="0002_hosts_and_mirrors")
    old.close()
    _sql(state, "CREATE TABLE hosts (hers INTEGER)")
    with pytest.raises(Exception, match="hosts"):
        Store.open(settings_for(state))
    assert _sql(state, "SELECT name FROM pragma_table_info('sources') WHERE name = 'mirror'") == []
    _sql(state, "DROP TABLE hosts")
    Store.open(settings_for(state)).close()
    assert_sound(state)


def test_first_released_schema_is_migrated(state: Path) -> None:
    """A database of version 1 can be read as it is, and is brought up to date by the first writer, nothing lost."""
    state.mkdir()
    old = Database(state / DATABASE_NAME)
    migrations.apply(old, stop_before="0002_hosts_and_mirrors")
    old.close()
    _sql(state, "INSERT INTO sources (url, host) VALUES ('http://a.example/1.jpg', 'a.example')")
    _sql(state, "PRAGMA user_version = 1")
    with Reader(state) as reader:
        assert all_hosts(reader) == []
        assert read_progress(reader).sources["ready"] == 1
    with Store.open(settings_for(state)) as store, store.run((Stage.FETCH,)) as run:
        store.hosts(run).record(
            [HostInfo(host="a.example", state=HostState.NOT_ANSWERING, reason="dead", until=now_ms() + 60_000, done=2)]
        )
        store.hosts(run).record(
            [HostInfo(host="a.example", state=HostState.NOT_ANSWERING, reason="dead", until=now_ms() + 60_000, done=3)]
        )
        assert store.sources(run).claim("a.example", 5)[0].url == "http://a.example/1.jpg"
        assert list(store.hosts(run).pauses()) == ["a.example"]
    with Reader(state) as reader:
        assert [(one.host, one.state, one.done) for one in all_hosts(reader)] == [
            ("a.example", HostState.NOT_ANSWERING, 5)
        ]
    assert_sound(state)


@pytest.mark.parametrize("opens", [lambda state: Store.open(settings_for(state)), Reader])
def test_newer_database_is_refused_and_untouched(state: Path, opens: object) -> None:
    """A database of a newer version ends with exit code 2, and not one byte of it changes."""
    Store.open(settings_for(state)).close()
    _sql(state, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = (state / DATABASE_NAME).read_bytes()
    with pytest.raises(StateNewerError, match="upgrade") as caught:
        opens(state)  # type: ignore[operator]
    assert caught.value.exit_code == 2
    assert (state / DATABASE_NAME).read_bytes() == before


def test_outcome_is_settled_for_records_that_come_after_the_fetch(store: Store, state: Path) -> None:
    """A record that joins a source which is already dead fails at once, without any further write."""
    put_sources(store, "http://a.example/1.jpg")
    with store._connection.transaction() as db:
        db.conn.execute("UPDATE sources SET status = 'dead', error_class = 'http_404'")
    put_sources(store, "http://a.example/1.jpg", "http://a.example/1.jpg")
    assert store._connection.rows("SELECT key, outcome FROM records ORDER BY key") == [("0", "failed"), ("1", "failed")]
    assert_sound(state)


def test_done_needs_its_result(store: Store) -> None:
    """The database itself refuses a source that is done without an image."""
    put_sources(store, "http://a.example/1.jpg")
    with pytest.raises(sqlite3.IntegrityError), store._connection.transaction() as db:
        db.conn.execute("UPDATE sources SET status = 'done'")


def test_checks_find_counters_and_outcomes_that_lie(store: Store, state: Path) -> None:
    """The soundness check that the other tests rest on notices a wrong counter and a wrong outcome."""
    put_sources(store, "http://a.example/1.jpg")
    fetch_all(store)
    assert_sound(state)
    with store._connection.transaction() as db:
        db.conn.execute("UPDATE counters SET n = n + 1 WHERE stage = 'sources' AND status = 'done'")
    with pytest.raises(AssertionError):
        assert_sound(state)
    with store._connection.transaction() as db:
        db.conn.execute("UPDATE counters SET n = n - 1 WHERE stage = 'sources' AND status = 'done'")
        db.conn.execute("UPDATE records SET outcome = 'failed'")
    with pytest.raises(AssertionError):
        assert_sound(state)
