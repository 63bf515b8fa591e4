"""The common check of every fault test: after whatever happened, nothing is lost, nothing doubled, all of it sound.

    check_state(state)                                     # the state alone, also half done
    check_state(state, output=out, keys=keys)              # and the finished export of these keys, in manifest order

What `etl verify --deep` says is asked of the program itself; the rest is counted here, with SQL of the test's own, so
that a fault of the program's counting cannot hide behind the same fault in its checking.
"""

import gzip
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.etl_process import Program

from etl.compression import zstd

NOTHING = ("missing", "damaged", "missing_originals", "damaged_originals", "orphans", "parts")
"""What `etl verify` counts and a state after a clean end has none of."""


@dataclass(frozen=True)
class Exported:
    """What the export says of the keys.

    Attributes:
        captioned: keys with a caption.
        failed: keys without one, and the error class of each.
    """

    captioned: dict[str, str]
    failed: dict[str, str]


def check_state(
    state: Path,
    *,
    output: Path | None = None,
    keys: Sequence[str] = (),
    id_field: str = "id",
    leftovers: bool = False,
    program: Program | None = None,
) -> Exported | None:
    """Assert that the state is sound, and that ``output``, if given, holds each of ``keys`` once, in their order.

    Each must have a caption, or else an error class.  ``leftovers`` allows orphans and unfinished files, as a process
    that was killed may leave them until the next fetch.  A ``program`` runs `etl verify` where its processes start
    faster than new ones.  No run may be alive.  Returns what the export says.
    """
    with closing(sqlite3.connect(state / "state.db", timeout=30)) as database:
        found = _verified(state, program)
        allowed = ("orphans", "parts") if leftovers else ()
        left = {name: found[name] for name in NOTHING if name not in allowed and found[name]}
        assert (found["deep"], found["problems"], left) == (True, [], {}), f"verify found {found}"
        broken = [row for row in database.execute("PRAGMA integrity_check") if row != ("ok",)]
        broken += database.execute("PRAGMA foreign_key_check").fetchall()
        assert not broken, f"the database is not sound: {broken}"
        kept, true = _counters(database), _counted(database)
        assert kept == true, f"counters {kept}, counted {true}"
    if output is None:
        return None
    assert found["export"] == "compared", f"the last export on record was not compared: {found['export']}"
    return check_export(output, keys, id_field)


def check_export(output: Path, keys: Sequence[str], id_field: str = "id") -> Exported:
    """Assert that an export holds each of ``keys`` once, in their order, each with a caption or an error class."""
    records = _read(output)
    there = [record[id_field] for record in records]
    assert len(set(keys)) == len(keys), "the test's own keys are not distinct"
    assert there == list(keys), f"missing {set(keys) - set(there)}, unknown {set(there) - set(keys)}, or out of order"
    captioned, failed = {}, {}
    for record in records:
        key = record[id_field]
        assert "vlm_caption" in record, f"{key} was left undone"
        if record["vlm_caption"] is None:
            assert record["vlm_error"], f"{key} has neither caption nor error"
            failed[key] = record["vlm_error"]
        else:
            assert record["vlm_caption"].strip() and "vlm_error" not in record, f"{key}: {record}"
            captioned[key] = record["vlm_caption"]
    return Exported(captioned, failed)


def _verified(state: Path, program: Program | None) -> dict[str, Any]:
    """Return what `etl verify --deep --json` says, whose exit code must be 0."""
    done = (program or Program(state.parent, state=state)).here("verify", "--deep", "--json")
    assert done.code == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _counters(database: sqlite3.Connection) -> dict[tuple[str, int, str], int]:
    rows = database.execute("SELECT stage, recipe, status, n FROM counters WHERE n <> 0")
    return {(stage, recipe, status): n for stage, recipe, status, n in rows}


def _counted(database: sqlite3.Connection) -> dict[tuple[str, int, str], int]:
    """Return what the counters should be, counted row by row."""
    counted: dict[tuple[str, int, str], int] = {}

    def count(stage: str, recipe: int, status: str, n: int = 1) -> None:
        counted[stage, recipe, status] = counted.get((stage, recipe, status), 0) + n

    for (status,) in database.execute("SELECT status FROM sources"):
        count("sources", 0, status)
    for recipe, status in database.execute("SELECT recipe, status FROM captions"):
        count("captions", recipe, status)
    for (size,) in database.execute("SELECT bytes FROM images"):
        count("images", 0, "bytes", size)
    for state, outcome in database.execute("SELECT state, outcome FROM records"):
        count("records", 0, state)
        if state == "active":
            count("outcomes", 0, outcome)
    return {key: n for key, n in counted.items() if n}


def _read(output: Path) -> list[dict[str, Any]]:
    data = output.read_bytes()
    if output.suffix == ".gz":
        data = gzip.decompress(data)
    elif output.suffix == ".zst":
        data = zstd.decompress(data)
    return [json.loads(line) for line in data.splitlines()]
