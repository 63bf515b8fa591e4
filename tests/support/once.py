"""What the program makes at each start, made once in a test process, which is the program some thousand times."""

import functools
import os
import sqlite3
from ssl import SSLContext
from typing import Any

import httpx2
import typer.main

from etl.state import migrations
from etl.state.database import PAGE_SIZE
from etl.state.sqlite import Database


def make_once() -> None:
    """From now on build the command line (14 ms) and read the authorities' certificates (23 ms) only once."""
    typer.main.get_command = functools.cache(typer.main.get_command)
    read = httpx2.create_ssl_context

    @functools.cache
    def context_of(*_places: str | None, **options: Any) -> SSLContext:
        return read(**options)

    def create_ssl_context(**options: Any) -> SSLContext:
        return context_of(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"), **options)

    for module in (httpx2, httpx2._transports.default):
        vars(module)["create_ssl_context"] = create_ssl_context


@functools.cache
def _migrated() -> sqlite3.Connection:
    made = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    made.execute(f"PRAGMA page_size = {PAGE_SIZE}")
    migrate(Database(made, execute_plugins=False))
    return made


migrate = migrations.migrate
"""What brings a database to the newest schema, as the program does it."""


def copy_schema() -> None:
    """From now on give a database without tables what the migrations make, made once: 20 ms and ten waits for a disk.

    Not for processes that are to die between two migrations.
    """

    def migrate_or_copy(db: Database) -> None:
        if db.conn.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            _migrated().backup(db.conn)
            db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        migrate(db)

    migrations.migrate = migrate_or_copy
