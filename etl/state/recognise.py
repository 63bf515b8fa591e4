"""Is this file a state's database?  Asked before it is opened, and again before anything is read from it or written.

A run that is killed at its very beginning leaves a database without tables, which the next one may fill.  The same
beside pictures or a log is what is left of a state that was lost, and nobody may take it for a new one.
"""

import sqlite3
from pathlib import Path

from etl import files
from etl.errors import ConfigError, StateError, StateMissingError

_TABLES = frozenset({"runs", "manifests", "records", "record_lines", "sources", "images", "captions", "counters"})
"""Some of those that the first version already made, all in one transaction."""

_SUFFIXES = ("", "-wal", "-shm", "-journal")
"""Of the database and of what SQLite keeps beside it."""

_OWN = frozenset({"lock", "reserve", "logs", "images"})

_OF_MIGRATIONS = "_sqlite_migrations"


def check_file(path: Path) -> None:
    """Raise `StateError` for what SQLite should not even open: a link, no file, or an empty one with a write-ahead log.

    Looks at names alone: whoever closes a database's file, opened for whatever, lets go of all locks that SQLite holds
    on it elsewhere in the process.  SQLite opens them by name too, and would write into whatever a link leads to.
    """
    real = files.real(path)
    size, log, *_ = [files.plain_size(real.with_name(real.name + suffix)) for suffix in _SUFFIXES]
    # SQLite would remove that log unread.
    if size == 0 and log:
        raise _lost(path, "its write-ahead log is there")


def spare_own_files(state: Path, target: Path) -> None:
    """Raise `ConfigError` where something is to be written over what a state keeps: database, lock, logs, pictures."""
    state = state.resolve()
    if target != state and target.is_relative_to(state):
        first = target.relative_to(state).parts[0]
        if first in _OWN or first.startswith("state.db"):
            raise ConfigError(f"{target} is what the state itself keeps there; write to another place")


def check_tables(connection: sqlite3.Connection, path: Path, *, create: bool) -> None:
    """Raise `StateError` for a database of something else, and for one without tables beside what a state has left.

    Without ``create`` one without tables is a `StateMissingError`.  SQLite's errors for damaged files pass.
    """
    if connection.execute("PRAGMA application_id").fetchone()[0]:
        raise _foreign(path)
    tables = _tables(connection)
    if {name for name, strict in tables.items() if strict} >= _TABLES:
        return
    if tables:
        raise _foreign(path)
    # Whoever looks on while a state is made may have come too early: its tables are there before its log.
    if (traces := _traces(path.parent)) and not _tables(connection):
        raise _lost(path, traces)
    if not create:
        raise StateMissingError(f"there is nothing in the state database {path} yet; run `etl ingest` first")


def _tables(connection: sqlite3.Connection) -> dict[str, bool]:
    """Return the tables and views, and which of them are STRICT: ours are, so a number in them is a number."""
    rows = connection.execute("SELECT name, strict FROM pragma_table_list WHERE schema = 'main'").fetchall()
    return {name: bool(strict) for name, strict in rows if name != _OF_MIGRATIONS and not name.startswith("sqlite_")}


def _traces(state: Path) -> str:
    """Say what tells of an earlier life of the state; nothing where nothing does."""
    state = state.resolve()
    log = files.look_at(state / "logs" / "etl.log")
    if log is not None and log.is_file and log.size:
        return "there is a log of its runs"
    if _any_file(state / "images"):
        return "there are pictures"
    return ""


def _any_file(directory: Path) -> bool:
    found = files.entries(directory)
    return any(not entry.is_directory for entry in found) or any(_any_file(entry.path) for entry in found)


def _lost(path: Path, traces: str) -> StateError:
    return StateError(
        f"{path} is empty although {traces}: it was lost or cut; restore a copy of it, or begin anew in another "
        "directory with --state"
    )


def _foreign(path: Path) -> StateError:
    return StateError(
        f"{path} is a database of something else, or damaged; give another directory with --state, or restore a copy"
    )
