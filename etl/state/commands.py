"""Commands to a live run from another process: pause, resume, stop, retry.

A command is a row that the runner reads within a second, obeys and acknowledges.
"""

import dataclasses
import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.clock import now_ms
from etl.domain.statuses import QualityFlag, Stage
from etl.domain.views import FailureFilter
from etl.errors import StateMissingError, UsageError
from etl.state.database import DATABASE_NAME, be_wary, translate_errors
from etl.state.lock import is_locked
from etl.state.recognise import check_file
from etl.state.requeue import HIGHEST_PENALTY, LOWEST_PENALTY

PAUSE, RESUME, STOP, RETRY = "pause", "resume", "stop", "retry"


def chosen_by(arguments: Mapping[str, Any]) -> FailureFilter:
    """Return the filter that the arguments of a command say.

    Raises `UsageError` for what another version may mean, or nobody: fields and values that are not known here.
    """
    known = {field.name for field in dataclasses.fields(FailureFilter)}
    if unknown := sorted(arguments.keys() - known):
        raise UsageError(f"this version does not know {', '.join(map(repr, unknown))} in a filter")
    values = dict(arguments)
    for name, kind in (("stage", Stage), ("flag", QualityFlag)):
        if values.get(name) is not None:
            try:
                values[name] = kind(values[name])
            except ValueError as error:
                raise UsageError(f"this version knows no {name} {values[name]!r}") from error
    for name in ("error_class", "host", "key"):
        if not isinstance(values.get(name), str | None):
            raise UsageError(f"{name} must be a text, not {values[name]!r}")
    penalty = values.get("repetition_penalty")
    if penalty is not None and not (type(penalty) in (int, float) and LOWEST_PENALTY <= penalty <= HIGHEST_PENALTY):
        raise UsageError(f"repetition_penalty must be from {LOWEST_PENALTY} to {HIGHEST_PENALTY:g}, not {penalty!r}")
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
        check_file(path)
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


@dataclass(frozen=True, slots=True)
class Command:
    """A request of another process; ``arguments`` as `send` wrote them, unless there is a ``fault``."""

    id: int
    name: str
    arguments: dict[str, Any]
    fault: str | None = None


def parse_command(number: int, name: str, text: str) -> Command:
    """Return the command of a row; its ``fault`` says why its arguments cannot be understood."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Command(number, name, {}, f"its arguments are not JSON: {error}")
    if not isinstance(arguments, dict):
        return Command(number, name, {}, f"its arguments are a JSON {type(arguments).__name__}, not an object")
    return Command(number, name, arguments)
