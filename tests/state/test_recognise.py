"""What stands in the place of the database: only a new beginning is a new beginning, everything else is said."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from support.etl_process import Program
from support.made_state import MadeState
from support.workbench import write_manifest
from support.zygote import Zygote

COMMANDS = (
    ("ingest", "m.jsonl"), ("run", "--input", "m.jsonl"), ("fetch",), ("caption",), ("fetch", "--dry-run"),
    ("export", "out.jsonl"), ("status",), ("failures",), ("why", "a"), ("runs",), ("report", "-o", "out.jsonl"),
    ("verify", "--deep"), ("gc", "--captioned", "--originals"), ("retry-failed",), ("split", "2", "parts"),
    ("merge", "state"),
)  # fmt: skip
"""Every command that opens a state at which no run is at work."""


def a_part_of(size: int) -> Callable[[Path], None]:
    """Return what leaves so many bytes of a database."""
    return lambda path: os.truncate(path, size)


def _database(path: Path, *statements: str) -> None:
    path.unlink()
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


def no_tables(path: Path) -> None:
    """Leave a database of the right header, in which nothing is."""
    _database(path, "PRAGMA journal_mode = WAL")


def of_another(path: Path) -> None:
    """Leave a database that another program has signed."""
    _database(path, "PRAGMA application_id = 252006673", "CREATE TABLE blobs (n INTEGER)")


def with_other_tables(path: Path) -> None:
    """Leave an unsigned database of another program."""
    _database(path, "CREATE TABLE blobs (n INTEGER)")


def without_types(path: Path) -> None:
    """Leave a database with our tables, in which numbers may be texts."""
    with closing(sqlite3.connect(path)) as database:
        tables = database.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name <> '_sqlite_migrations'")
        loose = [sql.replace("STRICT", "").replace("WITHOUT ROWID", "").rstrip().rstrip(",") for (sql,) in tables]
    _database(path, *loose)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (a_part_of(0), "is empty although there are pictures"),
    "10 bytes": (a_part_of(10), "damaged (file is not a database)"),
    "a header": (a_part_of(100), "damaged"),
    "half a page": (a_part_of(8192), "damaged"),
    "a page": (a_part_of(16384), "damaged"),
    "five pages": (a_part_of(5 * 16384), "damaged"),
    "no tables": (no_tables, "is empty although there are pictures"),
    "another's": (of_another, "a database of something else"),
    "other tables": (with_other_tables, "a database of something else"),
    "no types": (without_types, "a database of something else"),
    "a directory": (a_directory, "is a directory"),
    "a pipe": (a_pipe, "is a FIFO"),
    "a link": (a_link, "is a link"),
}


def contents(directory: Path) -> dict[str, object]:
    """Return what is there, but for the lock and what SQLite needs to look at a database."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else path.lstat().st_mode
        for path in directory.rglob("*") if path.name not in ("lock", "state.db-wal", "state.db-shm")
    }  # fmt: skip


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state with a picture and without a log, an export beside it."""
    directory = tmp_path_factory.mktemp("lived")
    made = MadeState(directory)
    made.ingest(b'{"id": "a", "url": "http://a.example/a.jpg"}\n')
    made.finish({"a": "A street."})
    made.export()
    shutil.rmtree(directory / "state" / "logs")
    (directory / "state" / "images" / "working" / "ab").mkdir(parents=True, exist_ok=True)
    (directory / "state" / "images" / "working" / "ab" / f"{'ab' * 32}.jpg").write_bytes(b"picture")
    write_manifest(directory / "m.jsonl", [{"id": "a", "url": "http://a.example/a.jpg"}])
    return directory


@pytest.mark.parametrize("name", DAMAGES)
def test_a_database_that_was_lost_is_not_a_new_one(lived: Path, tmp_path: Path, name: str) -> None:
    """Whatever is in its place, every command says so in one line and changes nothing: no export, no picture."""
    damage, said = DAMAGES[name]
    shutil.copytree(lived, tmp_path / "copy")
    program = Program(tmp_path / "copy")
    damage(program.state / "state.db")
    before = contents(tmp_path / "copy")
    for command in COMMANDS:
        ended = program.here(*command)
        assert (ended.code, ended.stdout) == (1, ""), (command, ended)
        assert said in ended.stderr and ended.stderr.count("\n") == 1, (command, ended.stderr)
        assert contents(tmp_path / "copy") == before, command


def test_a_log_alone_tells_of_a_lost_state(tmp_path: Path) -> None:
    """Before a picture has come, the log of the runs does; a log of SQLite's beside nothing is one too."""
    made = MadeState(tmp_path)
    made.ingest(b'{"id": "a", "url": "http://a.example/a.jpg"}\n')
    path = made.settings.state / "state.db"
    os.truncate(path, 0)
    assert "although there is a log of its runs" in Program(tmp_path).here("ingest", "manifest.jsonl").stderr
    shutil.rmtree(made.settings.state / "logs")
    path.with_name("state.db-wal").write_bytes(b"x" * 100)
    assert "although its write-ahead log is there" in Program(tmp_path).here("ingest", "manifest.jsonl").stderr
    assert path.with_name("state.db-wal").read_bytes() == b"x" * 100
    path.with_name("state.db-wal").unlink()
    assert Program(tmp_path).here("status").code == 2
    assert Program(tmp_path).here("ingest", "manifest.jsonl").code == 0


BEGINNINGS = ("schema.before_migrations", "schema.before_commit", "schema.migrated", "schema.versioned")


@pytest.mark.parametrize("point", BEGINNINGS)
def test_a_state_whose_making_was_killed_is_made(tmp_path: Path, plain_zygote: Zygote, point: str) -> None:
    """Killed anywhere before its tables are there, it is a new state for ingest, and none yet for all others."""
    program = Program(tmp_path, zygote=plain_zygote)
    manifest = write_manifest(tmp_path / "m.jsonl", [{"id": "a", "url": "http://a.example/a.jpg"}])
    assert program.run("ingest", manifest, failpoints=f"{point}=kill").code == 137
    before = point in BEGINNINGS[:2]
    ended = program.run("export", "out.jsonl")
    assert (ended.code, (tmp_path / "out.jsonl").exists()) == ((2, False) if before else (0, True)), ended.stderr
    assert not before or "run `etl ingest --state" in ended.stderr
    assert program.run("ingest", manifest).code == 0
    assert program.run("verify", "--deep").code == 0


def test_the_tables_outlive_the_write_ahead_log(tmp_path: Path) -> None:
    """A state whose log was lost right after its making is an empty one, not a lost one."""
    code = (
        "import os, sys, pathlib\nfrom etl.settings import Settings\nfrom etl.state.store import Store\n"
        "from etl.domain.statuses import Stage\nstore = Store.open(Settings(state=pathlib.Path('state')))\n"
        "with store.run((Stage.INGEST,)):\n    os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    os.truncate(tmp_path / "state" / "state.db-wal", 0)
    assert Program(tmp_path).here("status").code == 0
