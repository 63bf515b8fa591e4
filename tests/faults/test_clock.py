"""A clock that is set by a day, during runs and between them: no wait gets stuck, none ends early, no age is negative.

Within a run the process's own clock is set.  Between runs the stored instants are, as if they had been stored by a
clock that was wrong.
"""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.common_check import check_state
from support.etl_process import Program
from support.fault_server import Behaviour, Exchange, FaultServer, status
from support.watching import wait_for
from support.workbench import PlainCaptioner, Workbench, scenes
from support.zygote import Zygote

from etl.cli.render import progress_json
from etl.clock import now_ms
from etl.domain.statuses import RunState
from etl.export.stage import ExportOptions
from etl.run.pipeline import export_manifest, run_pipeline
from etl.run.plan import Plan
from etl.state.read.cost import cost
from etl.state.read.hosts import all_hosts
from etl.state.read.progress import ProgressReader
from etl.state.read.reader import Reader
from etl.state.store import Store

pytestmark = pytest.mark.usefixtures("forked_decoders")

DAY_S = 86_400
HOUR_MS = 3_600_000


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        for n, (_, body) in enumerate(scenes(3)):
            running.add(f"/{n}.jpg", body)
        yield running


class Clock:
    """The clock of this process, which can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() + self.ahead_s * 1_000_000_000)

    def set_by(self, seconds: int, behaviour: Behaviour) -> Behaviour:
        """Answer so, and set the clock meanwhile."""

        def behave(exchange: Exchange) -> None:
            behaviour(exchange)
            self.ahead_s += seconds

        return behave


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Stop a run that would wait for a day, so that its test fails instead of hanging."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def ages(bench: Workbench) -> list[float]:
    """Return everything that is told as an age, a length of time or a rate."""
    with Reader(bench.state) as reader:
        progress = progress_json(ProgressReader(reader).progress())
        spent = cost(reader, 3600.0)
    took = bench.rows("SELECT ended_at - started_at FROM runs WHERE ended_at IS NOT NULL")
    return [
        progress["run"]["heartbeat_age_s"],
        *progress["rates"].values(),
        spent.total if spent else 0,
        *sum(took, ()),
    ]


def finish(bench: Workbench, zygote: Zygote, records: int) -> None:
    """Caption and export all of it, and do the common check."""
    output = bench.state.parent / "out.jsonl"
    bench.caption(PlainCaptioner())
    export_manifest(bench.settings, str(output), ExportOptions())
    program = Program(bench.state.parent, zygote=zygote)
    exported = check_state(bench.state, output=output, keys=[f"r{n}" for n in range(records)], program=program)
    assert exported is not None and not exported.failed


@pytest.mark.parametrize("first_s", [DAY_S, -DAY_S], ids=["forward and back", "back and forward"])
def test_a_clock_that_is_set_during_a_run(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_zygote: Zygote, first_s: int
) -> None:
    """During a host's wait the clock jumps by a day, and back during the next: each wait is as it was asked."""
    clock = Clock(monkeypatch)
    busy = status(503, retry_after="1")
    answers = iter([clock.set_by(first_s, busy), clock.set_by(-first_s, busy)])
    server.fail("/0.jpg", lambda exchange: next(answers)(exchange), times=2)
    bench = Workbench(tmp_path, backoff=0.05)
    bench.ingest(*(server.url(f"/{n}.jpg") for n in range(3)))
    with stopped_after(60):
        report = run_pipeline(bench.settings, Plan(fetch=True), lambda _: None)
    assert (report.state, report.signal, report.failed) == (RunState.DONE, None, 0)
    asked = [request.at for request in server.log if request.path == "/0.jpg"]
    assert len(asked) == 3
    assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(asked))
    assert all(0 <= each < HOUR_MS for each in ages(bench))
    log = "".join(path.read_text() for path in bench.state.rglob("*.log"))
    assert "the clock was set forward by 86400 s" in log and "the clock was set back by 86400 s" in log
    finish(bench, plain_zygote, 3)


def set_stored(bench: Workbench, seconds: int) -> None:
    """Set every stored instant by so much, as if it had been stored by another clock."""
    columns = {
        "sources": "not_before", "captions": "not_before", "attempts": "started_at ended_at",
        "runs": "started_at heartbeat_at ended_at", "hosts": "until updated_at",
    }  # fmt: skip
    with Store.open(bench.settings) as store, store._connection.transaction() as db:
        for table, names in columns.items():
            changes = ", ".join(f"{name} = {name} + {1000 * seconds}" for name in names.split())
            db.conn.execute(f"UPDATE {table} SET {changes}")
        db.conn.execute("UPDATE sources SET done_at = done_at + ? WHERE status = 'done'", (1000 * seconds,))


def test_a_clock_that_was_wrong_in_an_earlier_run(server: FaultServer, tmp_path: Path, plain_zygote: Zygote) -> None:
    """What lies a day ahead begins anew: our own waits are cut to their cap, a host's is as long as it asked for."""
    server.fail("/0.jpg", status(429, retry_after="3600"), times=1)
    server.fail("/1.jpg", status(500), times=1)
    bench = Workbench(tmp_path, backoff=300.0, backoff_cap=300.0, concurrency=1)
    other = "localhost"
    bench.ingest(server.url("/1.jpg").replace("127.0.0.1", other), server.url("/0.jpg"))
    waits = "SELECT error_class, not_before FROM sources WHERE status = 'retry' ORDER BY error_class"
    with bench.beside(lambda control: bench.fetch(control, allow_host=("127.0.0.1", other))) as (control, running):
        wait_for(lambda: len(bench.rows(waits)) == 2, 30)
        control.stop()
        running.result(timeout=30)
    set_stored(bench, DAY_S)
    Store.open(bench.settings).close()
    left = {slug: (until - now_ms()) / 1000 for slug, until in bench.rows(waits)}
    assert 3500 < left["http_429"] <= 3600
    assert 200 < left["http_5xx"] <= 300
    with Reader(bench.state) as reader:
        paused = {info.host: ((info.until or 0) - now_ms()) / 1000 for info in all_hosts(reader)}
    assert 3500 < paused["127.0.0.1"] <= 3600
    assert all(0 <= each < HOUR_MS for each in ages(bench))
    # And the other way round: the clock was a day behind, so that all waits are over.
    set_stored(bench, -DAY_S)
    assert bench.fetch(allow_host=("127.0.0.1", other)).done == 2
    finish(bench, plain_zygote, 2)
