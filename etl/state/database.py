"""Opening the state database, and the one way to write to it: `transaction`."""

import errno
import functools
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from etl import files
from etl.errors import DiskFullError, EtlError, StateError, StateMissingError, StateNewerError
from etl.failpoints import failpoint
from etl.open_files import out_of_files
from etl.state.recognise import check_file, check_tables
from etl.text import clean, nearest

if TYPE_CHECKING:
    from etl.state.sqlite import Database

DATABASE_NAME = "state.db"

HOSTS_VERSION = 2
"""The first version of the schema that knows hosts and mirrors.  A reader must do with an older one."""

ENGINE_VERSION = 3
"""The first version that knows samples of the caption engine, and captions that were made again."""

LOOKING_VERSION = 4
"""The first version with the dashboard's indexes."""

SPLIT_VERSION = 5
"""The first version that knows splits, and the formats of exports."""

THINKING_VERSION = 7
"""The first version that keeps what a model reasoned before a caption."""

FLAGS_VERSION = 8
"""The first version with flags of images, and captions that are skipped for them."""

OWN_PICTURES_VERSION = 10
"""The first version that keeps pictures which stood in records apart from these."""

TAKEN_OUT_VERSION = 11
"""The first version whose lines that pictures were taken out of can be told from all others."""

SCHEMA_VERSION = 11
"""Number of migrations; stored as ``user_version`` so that an older program can refuse a newer database."""

PAGE_SIZE = 16384
"""Manifest lines of about 1.3 kB fill 4 kB pages badly: 54k against 31k rows/s at ingest with 16 kB."""

CACHE_KIB = 64 * 1024
"""SQLite's cache of pages.  Keys and hashes are looked up all over their indexes, so it is not to be small."""

_PRAGMAS = (
    f"PRAGMA page_size = {PAGE_SIZE}",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    f"PRAGMA cache_size = -{CACHE_KIB}",
)

_text = functools.partial(str, encoding="utf-8", errors="replace")

WARY = ("PRAGMA trusted_schema = OFF", "PRAGMA cell_size_check = ON")
"""For every connection: a state that was copied here may have been written by anybody.  Its views and triggers get no
function that has an effect outside, and damaged pages are found before they are used."""


def be_wary(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Return the connection, set up for a database that a stranger may have written, or a disk has damaged.

    What is no UTF-8 is read as U+FFFD: one text costs neither an export nor a run; `etl verify --deep` names it.
    """
    connection.text_factory = _text
    for pragma in WARY:
        connection.execute(pragma)
    return connection


class Connection:
    """The writer's connection: one at a time, shared by the threads of a run.

    `transaction` is the only place where a write begins.  It takes the write lock at once (BEGIN IMMEDIATE),
    because a transaction that reads first and writes later fails with SQLITE_BUSY_SNAPSHOT without waiting.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        if not create and not os.path.lexists(path):
            raise _missing(path.parent)
        with translate_errors(path):
            check_file(path)
            # Created by us, so that the database is private from its first byte; one that is there is not opened, for
            # closing it would let go of SQLite's locks on it.
            with suppress(FileExistsError):
                os.close(files.open_plain(files.real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL))
            raw = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            try:
                be_wary(raw)
                # Before anything is written to what may not be ours.
                check_tables(raw, path, create=create)
                for pragma in _PRAGMAS:
                    raw.execute(pragma)
            except BaseException:
                raw.close()
                raise
        self.path = path
        # 20 ms that commands which only read do not pay.
        from etl.state.sqlite import Database

        self.db = Database(raw, execute_plugins=False)
        self._lock = threading.RLock()

    @contextmanager
    def transaction(self, name: str | None = None) -> "Iterator[Database]":
        """Yield the database inside one transaction: committed at the end, rolled back on any exception.

        ``name`` says what it commits, as `etl.failpoints` has it; one without a name cannot be stopped there.
        """
        with self._lock, translate_errors(self.path):
            raw = self.db.conn
            raw.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                if name:
                    failpoint(f"{name}.before_commit")
                raw.execute("COMMIT")
                if name:
                    failpoint(f"{name}.committed")
            except BaseException:
                # SQLite itself rolls back on SQLITE_FULL; asking again would hide the first error.
                if raw.in_transaction:
                    raw.execute("ROLLBACK")
                raise

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Hold other threads off and translate errors around work that manages its own transactions."""
        with self._lock, translate_errors(self.path):
            yield

    def rows(self, sql: str, arguments: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one read and fetch it whole, between the transactions of other threads."""
        with self._lock, translate_errors(self.path):
            return list(self.db.conn.execute(sql, arguments).fetchall())

    def close(self) -> None:
        """Close the connection, moving the write-ahead log into the database."""
        with self._lock:
            self.db.close()


def _missing(state: Path) -> StateMissingError:
    """Return what is said of a state that is not there, with the one beside it that was probably meant."""
    try:
        beside = [one.name for one in state.parent.iterdir() if os.path.lexists(one / DATABASE_NAME)]
    except OSError:
        beside = []
    near = nearest(state.name, beside)
    hint = f"did you mean {clean(str(state.with_name(near)), 200)}? If not, " if near else ""
    return StateMissingError(f"there is no state database in {state}; {hint}run `etl ingest` first")


def open_reader(state: Path) -> sqlite3.Connection:
    """Open a state database for reading only.

    Raises `StateMissingError` when there is none, or nothing in it yet, and `StateError` for what is no database of
    ours, or one that was lost.  Every read must be short and fetched whole: an open read
    transaction keeps the write-ahead log from being emptied.
    """
    path = state / DATABASE_NAME
    if not os.path.lexists(path):
        raise _missing(state)
    wal = state / f"{DATABASE_NAME}-wal"
    try:
        # Even a reader makes the log's index.  Where no file can be made, nobody can write either.
        return _open_reader(path, finished=not os.access(state, os.W_OK) and not wal.exists())
    except DiskFullError:
        # What is full can still be looked at.  The attempt has left an empty log.
        if wal.exists() and wal.stat().st_size:
            raise
        return _open_reader(path, finished=True)


def _open_reader(path: Path, *, finished: bool) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if finished else ''}"
    with translate_errors(path):
        check_file(path)
        raw = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=10)
        try:
            check_tables(be_wary(raw), path, create=False)
        except BaseException:
            raw.close()
            raise
        return raw


def check_version(connection: sqlite3.Connection) -> int:
    """Return the version of the schema.

    Raises `StateNewerError` when the database was written by a newer version than this one.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise StateNewerError(
            f"the state database has schema {version}, this program knows up to {SCHEMA_VERSION}; "
            "upgrade caption-etl, or use another --state directory"
        )
    return version


Word = TypeVar("Word", bound=StrEnum)


def known(kind: type[Word], word: str) -> Word:
    """Return a stored word as one of those that this version knows.

    Raises `StateError` for another: the database is damaged, or something else has written it.
    """
    try:
        return kind(word)
    except ValueError as error:
        raise StateError(
            f"the state database holds the {kind.__name__} {word[:60]!r}, which this version does not know; "
            "was it written by caption-etl?"
        ) from error


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's and the system's errors into errors that a user can act on."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise _translated(error, path) from error
    except sqlite3.DatabaseError as error:
        if "malformed" in str(error) or "not a database" in str(error):
            raise StateError(f"{path} is damaged ({error}); restore a copy of the state directory") from error
        raise
    except UnicodeDecodeError as error:
        # SQLite's message quotes what it could not read.
        raise StateError(f"{path} is damaged; restore a copy of the state directory") from error
    except PermissionError as error:
        raise StateError(f"the state directory {path.parent} is not writable: {error.strerror}") from error
    except OSError as error:
        if files.is_disk_full(error):
            raise DiskFullError(_full(path)) from error
        if error.errno == errno.ELOOP:
            raise StateError(f"{path} is a link, which is never followed; put the file itself there") from error
        raise


def _full(path: Path) -> str:
    return f"the disk with {path.parent} is full; everything committed is safe: free some space and run again"


def _translated(error: sqlite3.OperationalError, path: Path) -> EtlError:
    message = str(error)
    if error.sqlite_errorcode == sqlite3.SQLITE_CANTOPEN and (found := out_of_files(error)) is not None:
        return found
    # The log's index is the first thing that a full disk has no room for; SQLite then speaks of an I/O error.
    # What Python itself finds wrong has no code.
    if "disk is full" in message or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_SHMSIZE:
        return DiskFullError(_full(path))
    if "readonly" in message or "unable to open" in message:
        return StateError(f"{path} cannot be written ({message}); check the permissions of {path.parent}")
    return StateError(f"{path}: {message}")
