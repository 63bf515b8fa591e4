"""Signals in every phase: the program ends in time, with its exit code, and leaves nothing behind that is not sound."""

import fcntl
import os
import pty
import select
import signal
import sqlite3
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.common_check import check_state
from support.etl_process import Ended, EtlProcess, Program
from support.fault_server import FaultServer, drip, hang, status
from support.watching import wait_for
from support.workbench import scenes, write_manifest
from support.zygote import Zygote

LIMIT_S = 25.0
"""What a spot machine gives at least, and what the command line's page promises."""

FREELY_S = 15.0
"""Far below the grace of 20 s, so whoever ends within it did not wait for that to pass."""


@pytest.fixture
def program(tmp_path: Path, plain_zygote: Zygote) -> Program:
    return Program(tmp_path, zygote=plain_zygote, interval=0.1)


def ingest(program: Program, server: FaultServer, count: int) -> Path:
    """Ingest so many records of drawn pictures; return the manifest."""
    records = [
        {"id": f"r{n}", "url": server.add(f"/{n}.jpg", body)} for n, (_, body) in enumerate(scenes(count))
    ]  # fmt: skip
    manifest = write_manifest(program.directory / "manifest.jsonl", records)
    assert program.run("ingest", manifest).code == 0
    return manifest


def stop(run: EtlProcess, number: int, within_s: float = FREELY_S) -> Ended:
    """Send a signal and see the command end with its exit code, in time, and no process of it left."""
    family = run.family()
    run.send(number)
    ended = run.wait()
    assert (ended.code, ended.seconds < within_s) == (128 + number, True), ended
    assert "Traceback" not in ended.stderr
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in family), 5)
    return ended


def leases(program: Program) -> list[tuple[object, ...]]:
    """Return what still belongs to a run."""
    return program.rows(
        "SELECT id FROM sources WHERE lease_run IS NOT NULL UNION ALL "
        "SELECT id FROM captions WHERE lease_run IS NOT NULL"
    )


def last_run(program: Program) -> tuple[object, ...]:
    """Return state and message of the last run."""
    return program.rows("SELECT state, message FROM runs ORDER BY id DESC LIMIT 1")[0]


def test_while_retries_wait(program: Program, server: FaultServer) -> None:
    """A run that only waits for the next attempt ends at once, and the attempt stays due."""
    ingest(program, server, 2)
    server.fail("/1.jpg", status(503, retry_after="300"))
    with program.start("fetch") as run:
        wait_for(lambda: program.count("sources", "retry") == 1 and program.count("sources", "done") == 1, 30)
        stop(run, signal.SIGTERM)
    assert (program.count("sources", "retry"), leases(program)) == (1, [])
    check_state(program.state)


def test_while_the_model_loads(program: Program, server: FaultServer) -> None:
    """Nothing is in flight then, so nobody waits for the model."""
    ingest(program, server, 1)
    assert program.run("fetch").code == 0
    # A new interpreter, which has torch to import yet.
    with Program(program.directory).start("caption") as run:
        wait_for(lambda: program.rows("SELECT 1 FROM runs WHERE stages = 'caption'"), 30)
        stop(run, signal.SIGINT)
    assert program.rows("SELECT count(*) FROM recipes") == [(0,)]
    assert last_run(program) == ("interrupted", None)


def test_while_it_captions(server: FaultServer, tmp_path: Path, zygote: Zygote) -> None:
    """Every caption that is done stays; the same command then makes the others, each once."""
    program = Program(tmp_path, zygote=zygote, batch_size=4)
    manifest = ingest(program, server, 36)
    command = ("run", "--input", manifest, "--output", program.directory / "out.jsonl")
    with program.start(*command) as run:
        wait_for(lambda: program.count("captions", "done") >= 8, 180)
        stop(run, signal.SIGTERM)
    assert not (program.directory / "out.jsonl").exists()
    assert leases(program) == []
    assert not program.processes()
    kept = dict(program.rows("SELECT id, done_at FROM captions WHERE status = 'done'"))
    assert 8 <= len(kept) < 36
    assert program.run(*command).code == 0
    now = dict(program.rows("SELECT id, done_at FROM captions WHERE status = 'done'"))
    assert len(now) == 36
    assert kept.items() <= now.items(), "what was done before is not done again"
    assert set(server.requests.values()) == {1}
    assert len((program.directory / "out.jsonl").read_bytes().splitlines()) == 36


@pytest.mark.parametrize("place", ["export.begun", pytest.param("export.before_rename", marks=pytest.mark.soak)])
def test_in_an_export(program: Program, server: FaultServer, place: str) -> None:
    """An export that is cut off leaves the old file, no part, and a run that was interrupted."""
    ingest(program, server, 1)
    output = program.directory / "out.jsonl"
    output.write_text("old")
    with program.start("export", output, failpoints=f"{place}=sleep:60") as run:
        wait_for(lambda: list(program.directory.glob("*.part")), 30)
        stop(run, signal.SIGTERM)
    assert output.read_text() == "old"
    assert not list(program.directory.glob("*.part"))
    assert last_run(program) == ("interrupted", "stopped by SIGTERM")


def test_in_verify_and_gc(program: Program, server: FaultServer) -> None:
    """They are cut off in the middle of a transaction, which is then as if it had not begun."""
    manifest = ingest(program, server, 2)
    assert program.run("fetch").code == 0
    copies = [path for path in (program.state / "images").rglob("*") if path.is_file()]
    kept = copies[0].read_bytes()
    copies[0].unlink()
    with program.start("verify", failpoints="images.requeue.before_commit=sleep:60") as run:
        wait_for(lambda: writes(program), 30)
        stop(run, signal.SIGTERM)
    assert program.count("sources", "done") == 2
    copies[0].write_bytes(kept)
    manifest.write_text(manifest.read_text().splitlines()[0] + "\n")
    assert program.run("ingest", manifest).code == 0
    with program.start("gc", failpoints="images.evict.before_commit=sleep:60") as run:
        wait_for(lambda: writes(program), 30)
        stop(run, signal.SIGINT)
    check_state(program.state)
    assert program.rows("SELECT count(*) FROM images WHERE state = 'present'") == [(2,)]


def writes(program: Program) -> bool:
    """Return whether somebody has a transaction open that writes."""
    connection = sqlite3.connect(program.state / "state.db", timeout=0, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    finally:
        connection.close()
    return False


def test_a_terminal_that_goes_away(program: Program, server: FaultServer) -> None:
    """An SSH session that breaks ends a run as SIGTERM does, with 129; that nobody reads its words is no matter."""
    ingest(program, server, 100)
    for n in range(100):
        server.fail(f"/{n}.jpg", drip(30_000))
    master, slave = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, "-m", "etl.cli.app", "fetch", "--per-host", "1"], env=program.environment, stdin=slave,
        stdout=slave, stderr=slave, start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    reader = threading.Thread(target=_read_until_gone, args=(master, lambda: program.count("sources", "done") >= 1))
    reader.start()
    reader.join()
    os.close(master)
    assert run.wait(60) == 129
    assert last_run(program) == ("interrupted", None)
    assert program.count("sources", "done") == server.requests.total() < 100, "what was in flight was committed"
    assert leases(program) == []
    wait_for(lambda: not program.processes(), 5)
    check_state(program.state)


def _read_until_gone(terminal: int, enough: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not enough() and time.monotonic() < limit:
        if select.select([terminal], [], [], 0.02)[0]:
            os.read(terminal, 4096)


def test_a_hangup_that_is_ignored_stays_so(program: Program, server: FaultServer) -> None:
    """Under `nohup`, and with nobody who reads its stderr any more, a run goes on to its end."""
    ingest(program, server, 6)
    for n in range(6):
        server.fail(f"/{n}.jpg", drip(30_000))
    reading, writing = os.pipe()
    run = subprocess.Popen(
        [sys.executable, "-m", "etl.cli.app", "fetch", "--per-host", "1"], env=program.environment,
        stdin=subprocess.DEVNULL, stdout=writing, stderr=writing,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    os.close(writing)
    wait_for(lambda: program.count("sources", "done") >= 1, 30)
    os.close(reading)
    run.send_signal(signal.SIGHUP)
    assert run.wait(60) == 0
    assert (program.count("sources", "done"), last_run(program)) == (6, ("done", None))


STUCK = """
import sqlite3, sys
from etl.run import signals
signals.PATIENCE_S = float(sys.argv[1])
with signals.watch_signals() as watched:
    watched.release = lambda why: print("released:", why, flush=True)
    print("stuck", flush=True)
    sqlite3.connect(":memory:").execute(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n"
    ).fetchall()
"""


@pytest.mark.parametrize(
    ("patience_s", "signals", "why"),
    [(0.2, 1, "the work in hand did not end in time"), (3600, 2, "a second signal")],
    ids=["patience", "second"],
)
def test_inside_a_call_that_no_handler_interrupts(patience_s: float, signals: int, why: str) -> None:
    """The end comes even where the main thread never gets to run a handler; what is in hand is given back first."""
    run = subprocess.Popen([sys.executable, "-c", STUCK, str(patience_s)], stdout=subprocess.PIPE, text=True)
    with run:
        assert run.stdout is not None
        assert run.stdout.readline() == "stuck\n"
        for _ in range(signals):
            run.send_signal(signal.SIGTERM)
            time.sleep(0.6)
        assert run.stdout.read() == f"released: {why}\n"
        assert run.wait(30) == 143


def test_a_signal_that_comes_twice_at_once_is_one(program: Program, server: FaultServer) -> None:
    """`timeout` and shells send theirs twice; what is in flight is finished all the same."""
    ingest(program, server, 8)
    for n in range(8):
        server.fail(f"/{n}.jpg", drip(20_000))
    with program.start("fetch", "--per-host", "1") as run:
        wait_for(lambda: program.count("sources", "done") >= 1, 30)
        run.send(signal.SIGTERM)
        stop(run, signal.SIGTERM)
    assert last_run(program) == ("interrupted", None)
    assert program.count("sources", "done") == server.requests.total()


@pytest.mark.soak
@pytest.mark.parametrize(
    ("command", "point"),
    [("ingest", "ingest.batch.before_commit"), ("fetch", "fetch.commit.before_commit"),
     ("caption", "caption.commit.before_commit"), ("caption", "caption.recipe.before_commit"),
     ("export", "export.row.before_commit"), ("run", "export.before_fsync"), ("run", "run.heartbeat.before_commit")],
)  # fmt: skip
@pytest.mark.parametrize("second", [False, True], ids=["once", "twice"])
def test_whatever_it_is_stuck_in(
    tmp_path: Path, zygote: Zygote, server: FaultServer, command: str, point: str, second: bool
) -> None:
    """In 25 s after the first signal, or 5 s after the second, it is gone; then the same command finishes."""
    program = Program(tmp_path, zygote=zygote, interval=0.1)
    manifest = ingest(program, server, 4)
    output = program.directory / "out.jsonl"
    if command in ("caption", "export"):
        assert program.run("fetch").code == 0
    if command == "ingest":
        manifest.write_text(manifest.read_text().replace("{", '{"title": "new", '))
    arguments = {"ingest": ["ingest", manifest], "export": ["export", output], "run": ["run", "--output", output]}
    with program.start(*arguments.get(command, [command]), failpoints=f"{point}=sleep:90") as run:
        wait_for(
            lambda: run.process.poll() is not None or writes(program) or list(program.directory.glob("*.part")), 60
        )
        if second:
            run.send(signal.SIGTERM)
            time.sleep(1.0)
            begun = time.monotonic()
            if run.process.poll() is None:
                run.send(signal.SIGTERM)
            assert run.wait().code == 143
            assert time.monotonic() - begun < 5
        else:
            stop(run, signal.SIGTERM, LIMIT_S)
    wait_for(lambda: not program.processes(), 5)
    done = program.run("run", "--output", output, timeout_s=120)
    assert done.code == 0, done.stderr
    check_state(program.state, output=output, keys=[f"r{n}" for n in range(4)])


@pytest.mark.soak
def test_a_download_that_hangs(program: Program, server: FaultServer) -> None:
    """It gets its grace, no more; it is given back without a charge."""
    ingest(program, server, 3)
    server.fail("/1.jpg", hang)
    with program.start("fetch", "--read-timeout", "300") as run:
        wait_for(lambda: program.count("sources", "done") == 2, 30)
        stop(run, signal.SIGTERM, LIMIT_S)
    assert program.rows("SELECT status, attempts FROM sources WHERE url LIKE '%/1.jpg'") == [("ready", 0)]
    check_state(program.state)
