"""State directories that others have made or may reach: who may read them, and what is never followed or obeyed."""

import os
import sqlite3
from pathlib import Path

import pytest
from support.states import put_sources, settings_for

from etl.domain.statuses import Stage
from etl.errors import StateError
from etl.images.cache import ImageCache
from etl.run.supervisor import _obey
from etl.run_control import RunControl
from etl.state.commands import Command
from etl.state.log import RunLog
from etl.state.read.failures import failed_items
from etl.state.read.reader import Reader
from etl.state.read.story import record_story
from etl.state.store import Store


def test_a_new_state_is_its_owner_s_alone(tmp_path: Path) -> None:
    """State, logs and image cache are private from their making on, whatever the umask; a part below them too."""
    state = tmp_path / "deep" / "state"
    before = os.umask(0)
    try:
        with Store.open(settings_for(state)) as store, store.run((Stage.INGEST,)):
            ImageCache.of_state(state).prepare()
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in (state, state / "logs", state / "images")} == {
        "state": 0o700, "logs": 0o700, "images": 0o700,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["state.db", "lock"])
def test_a_link_is_not_followed(tmp_path: Path, name: str) -> None:
    """A link in the place of the database or the lock is refused with one line, and its target is not touched."""
    state = tmp_path / "state"
    state.mkdir()
    victim = tmp_path / "victim"
    (state / name).symlink_to(victim)
    with pytest.raises(StateError, match="link"):
        Store.open(settings_for(state))
    assert not victim.exists()


def test_a_log_that_is_a_link_is_not_written(tmp_path: Path) -> None:
    """Lines that strangers have a part in go into no other file of the user's; the run goes on."""
    state, victim = tmp_path / "state", tmp_path / "profile"
    (state / "logs").mkdir(parents=True)
    (state / "logs" / "etl.log").symlink_to(victim)
    with Store.open(settings_for(state)) as store, store.run((Stage.INGEST,)):
        put_sources(store, "http://archive.example/a.jpg")
    assert not victim.exists()
    with RunLog(state):
        pass


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the directory could change everything in it; root alone may use another's, as in a container."""
    state = tmp_path / "state"
    state.mkdir()
    if os.geteuid() == 0:
        os.chown(state, 12345, -1)
        monkeypatch.setattr(os, "geteuid", lambda: 54321)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StateError, match="belongs to another user"):
        Store.open(settings_for(state))
    assert list(state.iterdir()) == []
    monkeypatch.undo()
    if os.geteuid() == 0:
        Store.open(settings_for(state)).close()


@pytest.mark.parametrize(
    "arguments",
    ["", "null", "[1]", '{"evil": 1}', '{"stage": {"a": 1}}', '{"host": [1]}', '{"stage": "x"}', "[" * 100_000, "\x00"],
)
def test_a_command_that_nobody_could_have_sent_is_refused(tmp_path: Path, arguments: str) -> None:
    """Whatever stands in the table of commands, the run answers it and goes on; nothing is put back by mistake."""
    with Store.open(settings_for(tmp_path / "state")) as store:
        with store._connection.transaction() as db:
            db.conn.execute(
                "INSERT INTO commands (name, arguments, created_at) VALUES ('retry', ?, 0), ('\x1b]evil', '{}', 0)",
                (arguments,),
            )
        retry, unknown = store.open_commands()
        answer = _obey(store, retry, RunControl())
        assert "was not obeyed" in answer
        assert len(answer) < 500
        assert "was not obeyed" in _obey(store, Command(unknown.id, unknown.name, {}), RunControl())


def test_views_and_triggers_of_a_stranger_get_no_powers(tmp_path: Path) -> None:
    """Schemas are not trusted, by the writer and by readers: functions with effects cannot be used in them."""
    with Store.open(settings_for(tmp_path / "state")) as store:
        assert store._connection.rows("PRAGMA trusted_schema") == [(0,)]
        assert store._connection.rows("PRAGMA cell_size_check") == [(1,)]
    with sqlite3.connect(tmp_path / "state" / "state.db") as connection:
        connection.execute("CREATE VIEW evil AS SELECT load_extension('/evil.so')")
    with Reader(tmp_path / "state") as reader:
        assert reader.rows("PRAGMA trusted_schema") == [(0,)]
        with pytest.raises((StateError, sqlite3.Error), match=r"unsafe use|not authorized|no such function"):
            reader.rows("SELECT * FROM evil")


@pytest.mark.parametrize("key", ["' OR 1=1 --", "%", "_", "*", '"', "k\x00", "'; DROP TABLE records; --"])
def test_keys_and_filters_are_values(tmp_path: Path, key: str) -> None:
    """What is asked for is compared, never run and never a pattern."""
    from etl.domain.views import FailureFilter
    from etl.state.read.search import records_by_key, records_by_text

    with Store.open(settings_for(tmp_path / "state")) as store:
        put_sources(store, "http://archive.example/a.jpg")
        chosen = FailureFilter(stage=Stage.FETCH, error_class=key, host=key, key=key)
        assert store.retry_failed(chosen) == {"fetch": 0}
        with Reader(tmp_path / "state") as reader:
            assert record_story(reader, key) is None
            assert list(failed_items(reader, chosen)) == []
            assert records_by_key(reader, key) == []
            assert len(records_by_text(reader, key)[0]) == (key == '"')
            assert len(reader.rows("SELECT * FROM records")) == 1
