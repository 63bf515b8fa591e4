"""Commands to a live run from another process: pause, resume, stop, retry.

A command is a row that the runner reads within a second, obeys and acknowledges.
"""

import dataclasses
import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etl.clock import now_ms
from etl.errors import StateMissingError
from etl.models import FailureFilter, QualityFlag, Stage
from etl.state.database import DATABASE_NAME, be_wary, translate_errors
from etl.state.lock import is_locked

PAUSE, RESUME, STOP, RETRY = "pause", "resume", "stop", "retry"


def filter_of(arguments: Mapping[str, Any]) -> FailureFilter:
    """Return the filter that `send` was given.  Raises `ValueError` for arguments that it has not written."""
    kinds = {"stage": Stage, "error_class": str, "host": str, "key": str, "flag": QualityFlag,
             "repetition_penalty": float}  # fmt: skip
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in kinds or isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(name)
        values[name] = kinds[name](value)
    return FailureFilter(**values)


def send(state: Path, name: str, chosen: FailureFilter | None = None, *, patience_s: float = 10.0) -> str | None:
    """Ask the live run to do something; return its answer, or ``None`` when it did not answer in time.

    Raises `StateMissingError` when there is no database or no live run.
    """
    path = state / DATABASE_NAME
    if not path.exists() or not is_locked(state):
        raise StateMissingError(f"no run is active on {state}; nothing to {name}")
    arguments = {k: v for k, v in dataclasses.asdict(chosen or FailureFilter()).items() if v is not None}
    with translate_errors(path):
        connection = sqlite3.connect(path, isolation_level=None, timeout=10)
        try:
            be_wary(connection)
            # Two connections that checkpoint at once can corrupt the log of SQLite up to 3.51.2.
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            number = connection.execute(
                "INSERT INTO commands (name, arguments, created_at) VALUES (?, ?, ?)",
                (name, json.dumps(arguments), now_ms()),
            ).lastrowid
            deadline = time.monotonic() + patience_s
            while time.monotonic() < deadline:
                row = connection.execute(
                    "SELECT result FROM commands WHERE id = ? AND acknowledged_at IS NOT NULL", (number,)
                ).fetchone()
                if row is not None:
                    return str(row[0])
                time.sleep(0.1)
        finally:
            connection.close()
    return None
