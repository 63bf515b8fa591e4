"""The connection: transactions, private files, readers that cannot write, full disks, damaged files."""

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.states import assert_sound, put_sources, settings_for

from etl.domain.statuses import Stage
from etl.errors import DiskFullError, EtlError, StateError, StateMissingError
from etl.state.database import DATABASE_NAME, Connection, open_reader
from etl.state.read.export_rows import export_rows
from etl.state.read.failures import failed_items
from etl.state.read.manifests import manifest_lines
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.state.store import Store


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    """An open database with one table of one column."""
    opened = Connection(tmp_path / DATABASE_NAME)
    opened.db.conn.execute("CREATE TABLE t (n INTEGER)")
    yield opened
    opened.close()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB of its own, where the tests may mount one."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode != 0:
        pytest.skip("mounting a tmpfs needs root and CAP_SYS_ADMIN")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_returning_is_committed(tmp_path: Path, connection: Connection) -> None:
    """Rows claimed by RETURNING inside `transaction` are there after the file is opened anew, and so is what follows.

    Outside a transaction, an undrained RETURNING keeps one open and loses both at close.
    """
    with connection.transaction() as db:
        assert db.conn.execute("INSERT INTO t VALUES (1) RETURNING n").fetchone() == (1,)
    with connection.transaction() as db:
        db.conn.execute("INSERT INTO t VALUES (2)")
    assert not connection.db.conn.in_transaction
    connection.close()
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as again:
        assert again.execute("SELECT n FROM t").fetchall() == [(1,), (2,)]


def test_transaction_takes_the_write_lock_before_it_reads(tmp_path: Path, connection: Connection) -> None:
    """A transaction that reads first and writes later waits for another writer instead of failing on a stale view."""
    other = sqlite3.connect(tmp_path / DATABASE_NAME, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO t VALUES (1)")
    timer = threading.Timer(0.3, other.execute, ("COMMIT",))
    timer.start()
    try:
        with connection.transaction() as db:
            (seen,) = db.conn.execute("SELECT count(*) FROM t").fetchone()
            db.conn.execute("INSERT INTO t VALUES (?)", (seen + 1,))
    finally:
        timer.join()
        other.close()
    assert connection.rows("SELECT n FROM t") == [(1,), (2,)]


def test_failed_transaction_changes_nothing(connection: Connection) -> None:
    """An exception in the block rolls everything back and leaves the connection usable."""
    with pytest.raises(ValueError, match="mine"), connection.transaction() as db:
        db.conn.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(700)])
        raise ValueError("mine")
    assert connection.rows("SELECT count(*) FROM t") == [(0,)]
    with connection.transaction() as db:
        db.conn.execute("INSERT INTO t VALUES (1)")
    assert connection.rows("SELECT count(*) FROM t") == [(1,)]


def test_transactions_do_not_nest(connection: Connection) -> None:
    """A transaction inside another is refused and takes the outer one with it, so no half is ever committed."""
    with pytest.raises(StateError, match="within a transaction"), connection.transaction() as db:
        db.conn.execute("INSERT INTO t VALUES (1)")
        with connection.transaction():
            pass
    assert connection.rows("SELECT count(*) FROM t") == [(0,)]


def test_threads_take_turns(connection: Connection) -> None:
    """Two threads that write through one connection do not step into each other's transactions."""

    def count_up() -> None:
        for _ in range(100):
            with connection.transaction() as db:
                (n,) = db.conn.execute("SELECT coalesce(max(n), 0) FROM t").fetchone()
                db.conn.execute("INSERT INTO t VALUES (?)", (n + 1,))

    threads = [threading.Thread(target=count_up) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert connection.rows("SELECT count(DISTINCT n), max(n) FROM t") == [(200, 200)]


def test_files_are_private(state: Path) -> None:
    """Database, log and lock can be read by their owner alone, whatever the umask."""
    before = os.umask(0)
    try:
        with Store.open(settings_for(state)) as store, store.run((Stage.INGEST,)):
            names = {path.name: path.stat().st_mode & 0o777 for path in state.rglob("*")}
    finally:
        os.umask(before)
    assert names.pop("logs") == 0o700
    assert {"state.db", "state.db-wal", "lock", "etl.log"} <= names.keys()
    assert set(names.values()) == {0o600}


def test_reader_cannot_write(store: Store, state: Path) -> None:
    """A reader's connection refuses every write; its error is one that a user can act on."""
    put_sources(store, "http://a.example/1.jpg")
    with Reader(state) as reader, pytest.raises(StateError, match="readonly"):
        reader.rows("UPDATE sources SET status = 'dead'")
    assert store._connection.rows("SELECT status FROM sources") == [("ready",)]


def test_reader_sees_a_snapshot(store: Store, state: Path) -> None:
    """Within `snapshot` a reader sees one state, however much is committed meanwhile; without it, the latest."""
    put_sources(store, "http://a.example/1.jpg")
    with Reader(state) as reader:
        with reader.snapshot():
            assert reader.rows("SELECT count(*) FROM records") == [(1,)]
            put_sources(store, "http://a.example/1.jpg", "http://a.example/2.jpg")
            assert reader.rows("SELECT count(*) FROM records") == [(1,)]
        assert reader.rows("SELECT count(*) FROM records") == [(2,)]


def test_reading_leaves_no_transaction_open(store: Store, state: Path) -> None:
    """After any query a reader holds no snapshot, so that the log can be emptied under it."""
    put_sources(store, *(f"http://a.example/{n}.jpg" for n in range(50)))
    with Reader(state) as reader:
        read_progress(reader)
        next(iter(manifest_lines(reader, 1)))
        next(export_rows(reader, 1, None))
        busy, _, _ = store._connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0]
    assert busy == 0
    assert (state / "state.db-wal").stat().st_size == 0


@pytest.mark.parametrize("opens", [open_reader, lambda state: Connection(state / DATABASE_NAME, create=False)])
def test_missing_database_is_said_to_be_missing(tmp_path: Path, opens: object) -> None:
    """Reading a state that does not exist ends with exit code 2 and creates nothing."""
    with pytest.raises(StateMissingError, match="etl ingest") as caught:
        opens(tmp_path)  # type: ignore[operator]
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_open_without_create_makes_nothing(state: Path) -> None:
    """`Store.open` with ``create=False`` leaves no directory and no lock behind."""
    with pytest.raises(StateMissingError):
        Store.open(settings_for(state), create=False)
    assert not state.exists()


def _leave_garbage(path: Path) -> None:
    path.write_bytes(b"this is no database at all " * 1000)


def _garble_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(16384)
        file.write(os.urandom(16384 * 4))


@pytest.mark.parametrize("damage", [_leave_garbage, _garble_the_middle])
def test_damaged_file_is_said_to_be_damaged(state: Path, damage: object) -> None:
    """A file that is no database, or one with garbled pages, ends with one clear line for writer and reader."""
    with Store.open(settings_for(state)) as store:
        put_sources(store, *(f"http://a.example/{n}.jpg" for n in range(200)))
    damage(state / DATABASE_NAME)  # type: ignore[operator]
    with pytest.raises(StateError, match="damaged"):
        Store.open(settings_for(state))
    with pytest.raises(StateError, match="damaged"), Reader(state) as reader:
        list(failed_items(reader))
        read_progress(reader)


def test_cut_log_gives_a_consistent_prefix(state: Path, tmp_path: Path) -> None:
    """Wherever the write-ahead log is cut, the database opens with all of some number of commits."""
    with Store.open(settings_for(state)) as store:
        for count in (1, 2, 3, 4):
            put_sources(store, *(f"http://a.example/{n}.jpg" for n in range(count)))
        files = {name: (state / name).read_bytes() for name in ("state.db", "state.db-wal")}
    log = files["state.db-wal"]
    counts = set()
    for cut in range(0, len(log) + 1, max(1, len(log) // 12)):
        copy = tmp_path / f"cut-{cut}"
        copy.mkdir()
        (copy / "state.db").write_bytes(files["state.db"])
        (copy / "state.db-wal").write_bytes(log[:cut])
        with Store.open(settings_for(copy)) as again:
            counts.add(again._connection.rows("SELECT count(*) FROM records")[0][0])
        assert_sound(copy)
    assert counts >= {0, 4}
    assert counts <= {0, 1, 2, 3, 4}


def test_state_below_a_file_is_refused(tmp_path: Path) -> None:
    """A state directory that cannot exist is one clear line, not a traceback."""
    (tmp_path / "file").write_text("I am no directory")
    with pytest.raises(StateError, match="not writable"):
        Store.open(settings_for(tmp_path / "file" / "state"))


def test_read_only_file_system_is_refused(mounted: Path) -> None:
    """A state on a file system that was remounted read-only is one clear line, and what it holds can be read."""
    state = mounted / "state"
    with Store.open(settings_for(state)) as store:
        put_sources(store, "http://a.example/1.jpg")
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    with pytest.raises(StateError, match="not writable"):
        Store.open(settings_for(state))
    with Reader(state) as reader:
        assert read_progress(reader).sources["ready"] == 1


def test_full_disk_stops_cleanly_and_can_be_continued(mounted: Path) -> None:
    """When the disk fills up in a commit, that commit is undone, the rest can be read, and freed room is used."""
    state, ballast = mounted / "state", mounted / "ballast"
    with Store.open(settings_for(state)) as store:
        put_sources(store, "http://a.example/1.jpg")
        filled = _fill(ballast)
        with pytest.raises(DiskFullError) as caught:
            for _ in range(200):
                with store._connection.transaction() as db:
                    db.conn.execute(
                        "INSERT INTO prompts (sha256, text) VALUES (hex(randomblob(32)), hex(zeroblob(9000)))"
                    )
        assert caught.value.exit_code == 5
        assert not store._connection.db.conn.in_transaction
        with Reader(state) as reader:
            assert read_progress(reader).sources["ready"] == 1
    assert filled > 0
    with pytest.raises(EtlError) as again:
        while True:  # closing may have given a little room back
            _fill(ballast)
            Store.open(settings_for(state)).close()
            with Store.open(settings_for(state)) as store, store.run((Stage.FETCH,)):
                for _ in range(200):
                    store.use_recipe(sha256=os.urandom(8).hex(), model="m", revision="r", spec="x" * 20_000)
    assert again.value.exit_code == 5
    ballast.unlink()
    with Store.open(settings_for(state)) as store:
        put_sources(store, "http://a.example/1.jpg", "http://a.example/2.jpg")
    assert_sound(state)


def _fill(path: Path) -> int:
    """Fill up the file system with a file; return its size."""
    with path.open("ab", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            pass
        return file.tell()


def test_two_processes_open_a_new_state_at_once(state: Path) -> None:
    """Of several processes that create the same state at once, none fails in the migration: they wait or are told."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from etl.settings import Settings\nfrom etl.errors import StateLockedError\n"
        "from etl.state.store import Store\n"
        "try:\n"
        "    Store.open(Settings(state=Path(sys.argv[1]))).close()\n"
        "except StateLockedError as error:\n"
        "    sys.exit(error.exit_code)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(state)], stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    results = [(process.communicate()[1], process.returncode) for process in processes]
    assert {code for _, code in results} <= {0, 4}, results
    assert 0 in {code for _, code in results}
    assert_sound(state)


@pytest.mark.parametrize("opens", [lambda state: Reader(state).close(), lambda state: open_again(state)])
def test_opening_leaves_the_locks_of_others_in_the_process_alone(state: Path, opens: object) -> None:
    """POSIX locks end when their process closes the file anywhere: a writer keeps its own while others come and go."""
    with Store.open(settings_for(state)) as store:
        put_sources(store, "http://a.example/1.jpg")
        before = _locks(state)
        opens(state)  # type: ignore[operator]
        assert before and _locks(state) == before


def open_again(state: Path) -> None:
    """Open a second connection of the writer's kind, and close it."""
    Connection(state / DATABASE_NAME).close()


def _locks(state: Path) -> set[str]:
    """Return the locks that this process holds on the database, as the kernel tells them."""
    inode = (state / DATABASE_NAME).stat().st_ino
    lines = Path("/proc/locks").read_text().splitlines()
    return {line.partition(":")[2] for line in lines if f":{inode} " in line and f" {os.getpid()} " in line}
