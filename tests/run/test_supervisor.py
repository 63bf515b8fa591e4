"""A run as a process: signals, commands of other processes, a second run, and what is left at its end."""

import json
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.etl_process import SIGNALS, Program
from support.fault_server import Behaviour, Exchange, FaultServer, drip, hang, ok, status
from support.states import use_recipe
from support.watching import wait_for
from support.workbench import scenes, write_manifest
from support.zygote import Zygote

from etl.caption.model.checkpoint import DEMO_CHECKPOINT
from etl.domain.items import CaptionResult
from etl.domain.statuses import FinishReason, Stage
from etl.settings import Settings
from etl.state.store import Store

MakeProgram = Callable[..., Program]
SLOW = drip(15_000)
"""About a third of a second for a picture."""


class Held:
    """Answers once it is told to: a run that waits for it lives as long as its test wants."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        while not (self.free.wait(0.02) or exchange.closing.is_set()):
            pass
        ok(exchange)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def make_program(tmp_path: Path, plain_zygote: Zygote) -> MakeProgram:
    """Return a maker of the program on this test's state directory."""

    def make(**settings: Any) -> Program:
        return Program(tmp_path, zygote=plain_zygote, **settings)

    return make


def ingest(program: Program, server: FaultServer, count: int, behaviour: Behaviour | None = None) -> Path:
    """Ingest so many records of drawn pictures, each served with this behaviour; return the manifest."""
    records = []
    for number, (_, body) in enumerate(scenes(count)):
        records.append({"id": f"r{number}", "url": server.add(f"/{number}.jpg", body)})
        if behaviour:
            server.fail(f"/{number}.jpg", behaviour)
    manifest = write_manifest(program.directory / "manifest.jsonl", records)
    assert program.here("ingest", manifest).code == 0
    return manifest


def leases(program: Program) -> int:
    """Return how many items still belong to a run."""
    return sum(
        program.rows(f"SELECT count(*) FROM {table} WHERE lease_run IS NOT NULL OR status = 'running'")[0][0]
        for table in ("sources", "captions")
    )


def last_run(program: Program) -> str:
    """Return the state of the last run."""
    return str(program.rows("SELECT state FROM runs ORDER BY id DESC LIMIT 1")[0][0])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_run_after_committing(server: FaultServer, make_program: MakeProgram, number: int) -> None:
    """After SIGINT or SIGTERM what is on its way is committed, the rest given back, and no process is left."""
    program = make_program(per_host=2)
    ingest(program, server, 40, SLOW)
    with program.start("fetch") as run:
        wait_for(lambda: program.count("sources", "done") >= 2)
        family = run.family()
        run.send(number)
        ended = run.wait()
    assert ended.code == SIGNALS[signal.Signals(number)]
    assert ended.seconds < 25
    assert "everything finished is kept" in ended.stderr
    assert "Traceback" not in ended.stderr
    done = program.count("sources", "done")
    assert done == server.requests.total(), "every request that was sent is committed"
    assert done < 40, "nothing was claimed any more"
    assert program.count("sources", "ready") == 40 - done
    assert leases(program) == 0
    assert last_run(program) == "interrupted"
    assert family, "the run had decoders"
    assert not psutil.wait_procs(family, timeout=30)[1]
    assert not program.processes()


def test_a_second_signal_ends_the_run_at_once(server: FaultServer, make_program: MakeProgram) -> None:
    """The first signal waits for a server that hangs; the second does not, and still gives everything back."""
    program = make_program(per_host=8)
    ingest(program, server, 8)
    for number in range(3):
        server.fail(f"/{number}.jpg", hang)
    with program.start("fetch") as run:
        wait_for(lambda: program.count("sources", "done") == 5 and program.count("sources", "running") == 3)
        family = run.family()
        run.send(signal.SIGTERM)
        time.sleep(1.5)
        assert run.process.poll() is None, "it waits for what is in flight"
        run.send(signal.SIGTERM)
        ended = run.wait()
    assert (ended.code, ended.seconds < 10) == (143, True), "a stop alone takes 20 s"
    assert (program.count("sources", "done"), program.count("sources", "ready"), leases(program)) == (5, 3, 0)
    assert program.rows("SELECT state, message FROM runs ORDER BY id DESC LIMIT 1") == [
        ("interrupted", "a second signal")
    ]
    assert not psutil.wait_procs(family, timeout=30)[1]
    assert not program.processes()


def test_a_live_run_obeys_pause_resume_and_stop(server: FaultServer, make_program: MakeProgram) -> None:
    """Each command is acknowledged within seconds and does what it says; a stopped run exits 0."""
    program = make_program(per_host=1)
    ingest(program, server, 40, SLOW)
    with program.start("fetch") as run:
        wait_for(lambda: program.count("sources", "done") >= 1)
        paused = program.here("pause")
        assert (paused.code, "paused" in paused.stderr, paused.seconds < 5) == (0, True, True)
        wait_for(lambda: program.count("sources", "running") == 0)
        wait_for(lambda: program.status()["run"]["state"] == "paused")
        before = server.requests.total()
        time.sleep(0.7)
        assert server.requests.total() == before
        assert json.loads(program.here("resume", "--json").stdout) == {"answer": "resumed"}
        wait_for(lambda: program.count("sources", "done") > before)
        stopped = program.run("stop")
        assert (stopped.code, "stopping" in stopped.stderr) == (0, True)
        ended = run.wait()
    assert ended.code == 0
    assert last_run(program) == "interrupted"
    assert leases(program) == 0
    assert 0 < program.count("sources", "ready") < 40
    assert program.rows("SELECT count(*) FROM commands WHERE acknowledged_at IS NULL") == [(0,)]
    nobody = program.here("stop")
    assert (nobody.code, "no run is active" in nobody.stderr) == (2, True)


def test_a_command_that_came_too_late_does_not_stop_the_next_run(
    server: FaultServer, make_program: MakeProgram
) -> None:
    """A stop that its run never read is closed when the next run opens the state."""
    program = make_program()
    ingest(program, server, 4)
    with sqlite3.connect(program.state / "state.db") as connection:
        connection.execute("INSERT INTO commands (name, arguments, created_at) VALUES ('stop', '{}', 1)")
    connection.close()
    assert program.here("fetch").code == 0
    assert program.count("sources", "done") == 4
    assert last_run(program) == "done"


def test_failed_items_are_retried_by_the_live_run(server: FaultServer, make_program: MakeProgram) -> None:
    """`retry-failed` beside a run hands dead sources to it, and the run fetches them before it ends."""
    program = make_program(per_host=2)
    ingest(program, server, 4)
    held = Held()
    server.fail("/0.jpg", held)
    server.fail("/3.jpg", status(404), times=1)
    with program.start("fetch") as run:
        wait_for(lambda: program.count("sources", "dead") == 1)
        dry = program.here("retry-failed", "--dry-run")
        assert (dry.code, program.count("sources", "dead")) == (4, 1), "only the writer can count for sure"
        answer = program.here("retry-failed", "--class", "http_404")
        held.free.set()
        ended = run.wait()
    assert (answer.code, "fetch: 1 ready again" in answer.stderr) == (0, True)
    assert ended.code == 0
    assert (program.count("sources", "done"), server.requests["/3.jpg"]) == (4, 2)
    assert program.rows("SELECT count(*) FROM attempts WHERE error_class = 'http_404'") == [(1,)]


def test_flagged_captions_are_made_again_by_the_live_run(server: FaultServer, make_program: MakeProgram) -> None:
    """`retry-failed --flag` beside a run is obeyed by it, with the penalty that was asked for."""
    program = make_program()
    ingest(program, server, 1)
    assert program.here("fetch").code == 0
    with Store.open(Settings(state=program.state)) as store:
        queue = store.captions(store.begin_run([Stage.CAPTION]), use_recipe(store))
        queue.enqueue_possible()
        (item,) = queue.claim(1)
        queue.commit([CaptionResult(item.id, "so so so", 3, FinishReason.STOP, ("repetition",))], 0)
    held = Held()
    ingest(program, server, 2)
    server.fail("/1.jpg", held)
    with program.start("fetch") as run:
        wait_for(lambda: program.count("sources", "running") == 1)
        answer = program.here("retry-failed", "--flag", "repetition", "--repetition-penalty", "1.5")
        held.free.set()
        assert run.wait().code == 0
    assert (answer.code, answer.stderr) == (0, "caption: 1 will be made again with a repetition penalty of 1.5\n")
    assert program.rows("SELECT status, repetition_penalty FROM captions") == [("ready", 1.5)]


@pytest.mark.soak
def test_a_second_run_changes_nothing(server: FaultServer, make_program: MakeProgram) -> None:
    """A run on a state that another holds exits 4 with one line; readers go on beside it."""
    program = make_program(per_host=2)
    manifest = ingest(program, server, 6)
    held = Held()
    server.fail("/3.jpg", held)
    with program.start("fetch") as run:
        wait_for(lambda: program.count("sources", "done") == 5)
        runs = program.rows("SELECT count(*) FROM runs")
        assert program.run("fetch").code == 4
        for command in (("fetch",), ("run", "--input", manifest), ("ingest", manifest), ("verify",)):
            second = program.here(*command)
            assert (second.code, second.stdout, second.stderr.count("\n")) == (4, "", 1)
            assert second.stderr.startswith(f"error: another run holds this state directory (pid {run.process.pid} ")
        assert program.rows("SELECT count(*) FROM runs") == runs
        assert program.count("sources", "running") == 1
        assert program.status()["run"]["state"] == "running"
        held.free.set()
        assert run.wait().code == 0
    assert set(server.requests.values()) == {1}


def test_a_model_that_is_not_there_ends_before_anything_begins(server: FaultServer, make_program: MakeProgram) -> None:
    """A wrong model directory exits 2 with one line, before a picture is asked for."""
    program = make_program()
    manifest = ingest(program, server, 20)
    ended = program.here("run", "-q", "--input", manifest, "--model", program.directory / "nowhere")
    assert ended.code == 2
    assert ended.stderr.startswith("error: there is no directory ")
    assert ended.stderr.count("\n") == 1
    assert server.requests.total() == 0


@pytest.mark.soak
def test_a_model_that_cannot_be_loaded_ends_the_run_but_not_the_fetched(
    server: FaultServer, make_program: MakeProgram
) -> None:
    """Weights that lack one exit 2 with one line; what fetch had in flight beside the loading is committed."""
    program = make_program()
    broken = program.directory / "broken"
    shutil.copytree(DEMO_CHECKPOINT, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"lm_head.weight", b"lm_hand.weight", 1))
    manifest = ingest(program, server, 20)
    ended = program.run("run", "-q", "--input", manifest, "--model", broken, timeout_s=180)
    assert ended.code == 2
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert program.count("sources", "done") == server.requests.total() > 0
    assert leases(program) == 0
    assert last_run(program) == "failed"
    assert not program.processes()
