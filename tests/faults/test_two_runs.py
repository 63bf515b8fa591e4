"""Two runs on one state: the second ends with exit code 4 and changes nothing; of ten at once exactly one works."""

import hashlib
import sqlite3
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from support.fault_server import Exchange, FaultServer, ok
from support.places import Place, World
from support.watching import wait_for
from support.zygote import Zygote

SECOND = (
    ("ingest", "MANIFEST"), ("fetch", "-q"), ("caption", "-q"), ("run", "-q", "--input", "MANIFEST"),
    ("verify", "--deep"), ("gc",),
)  # fmt: skip
"""Commands that may not work beside a run."""


class Gate:
    """Holds every answer of a server until it is opened."""

    def __init__(self, world: World) -> None:
        self.opened = threading.Event()
        for number in range(world.pictures):
            world.server.fail(f"/{number}.jpg", self._answer)

    def _answer(self, exchange: Exchange) -> None:
        while not self.opened.wait(0.02) and not exchange.closing.is_set():
            pass
        ok(exchange)


@pytest.fixture
def place(tmp_path: Path, server: FaultServer, zygote: Zygote) -> Place:
    return World.made(tmp_path, server, zygote).place("state", "ingested")


def content(place: Place) -> dict[str, str]:
    """Return a hash of each table, and the files of the state; but for what a run writes every second."""
    found = {}
    with closing(sqlite3.connect(f"file:{place.state / 'state.db'}?mode=ro", uri=True)) as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})") if row[1] != "heartbeat_at"]
            rows = database.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
            found[table] = "" if table == "hosts" else hashlib.sha256(repr(rows).encode()).hexdigest()
    return found | {str(path): "" for path in place.state.rglob("*") if path.is_file()}


def is_at_rest(place: Place) -> bool:
    """Return whether a run holds all that it can, and waits for the server."""
    if place.program.count("sources", "running") < 4:
        return False
    before = content(place)
    time.sleep(1.5)
    return content(place) == before


def test_a_second_run_changes_nothing(place: Place) -> None:
    """Whatever the second command is, it ends with exit code 4 and one line; the first goes on undisturbed."""
    gate = Gate(place.world)
    with place.start("fetch", "-q") as first:
        wait_for(lambda: is_at_rest(place), 60)
        before = content(place)
        # All at once, since each waits a second for the lock.
        with ExitStack() as stack:
            for second in [stack.enter_context(place.start(*words)) for words in SECOND]:
                ended = second.wait()
                assert ended.code == 4, ended
                assert ended.stdout == "" and ended.stderr.count("\n") == 1, ended.stderr
        assert content(place) == before
        assert first.process.poll() is None
        gate.opened.set()
        assert first.wait(60).code == 3
    place.ledger.look()
    assert place.world.server.requests.total() == place.world.pictures + 1
    place.complete()


def test_of_ten_runs_at_once_one_works(place: Place) -> None:
    """Nine end with exit code 4 while one holds the lock; every picture is asked for once."""
    gate = Gate(place.world)
    with ExitStack() as stack:
        runs = [stack.enter_context(place.start("fetch", "-q")) for _ in range(10)]
        wait_for(lambda: sum(run.process.poll() is not None for run in runs) == 9, 120)
        gate.opened.set()
        codes = sorted(run.wait(60).code for run in runs)
    assert codes == [3, *[4] * 9]
    assert place.world.server.requests.total() == place.world.pictures + 1
    assert place.program.rows("SELECT count(*) FROM runs WHERE stages = 'fetch'") == [(1,)]
    place.ledger.look()
    place.complete()
