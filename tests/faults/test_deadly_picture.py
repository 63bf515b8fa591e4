"""A picture that kills whatever captions it: dead after the deaths that it is allowed, and all its neighbours done.

One that kills its decoder: `test_a_run_that_meets_every_fault_at_once` in test_network.py.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.common_check import check_state
from support.etl_process import Program
from support.workbench import Workbench, scenes, write_manifest
from support.zygote import Zygote

from etl.caption.gpus.plan import WorkerPlan
from etl.caption.gpus.pool import GpuPool
from etl.export.stage import ExportOptions
from etl.images.cache import ImageCache
from etl.run.pipeline import export_manifest
from etl.state.work_queue import DEAD_AFTER_CRASHES

pytestmark = pytest.mark.soak

PICTURES = 6
DEADLY = 3

KEYS = [f"r{n}" for n in range(PICTURES)]


def put_pictures(directory: Path) -> Path:
    """Draw the pictures and write their manifest; return it."""
    for n, (_, body) in enumerate(scenes(PICTURES)):
        (directory / f"{n}.jpg").write_bytes(body)
    return write_manifest(directory / "manifest.jsonl", [{"id": key, "path": f"{n}.jpg"} for n, key in enumerate(KEYS)])


def assert_it_died_alone(state: Path, output: Path, rows: Callable[[str], list[tuple[object, ...]]]) -> None:
    """The deadly picture has failed in its class, after its deaths; its neighbours have their captions."""
    found = rows("SELECT crashes, error_class FROM captions WHERE status = 'dead'")
    assert found == [(DEAD_AFTER_CRASHES, "crashed")]
    exported = check_state(state, output=output, keys=KEYS)
    assert exported is not None and exported.failed == {KEYS[DEADLY]: "crashed"}


def test_a_picture_that_kills_the_process_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the worker has it in hand it dies: five workers, then nobody any more."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    put_pictures(tmp_path)
    bench, output, over = Workbench(tmp_path, slots=2), tmp_path / "out.jsonl", threading.Event()
    bench.ingest(*({"id": key, "path": f"{n}.jpg"} for n, key in enumerate(KEYS)))
    bench.fetch()
    pool = GpuPool(bench.settings, (WorkerPlan("cpu"),), ImageCache.of_state(bench.state).root, 256)
    deadly = bench.rows("SELECT working_sha256 FROM images WHERE id = ?", DEADLY + 1)[0][0]
    killed = set()

    def kill() -> None:
        while not over.wait(0.001):
            worker = pool._workers[0]
            pid = worker.child.pid
            if pid not in killed and any(
                item.working_sha256 == deadly for item, _ in list(worker.ledger.in_hand.values())
            ):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        summary = bench.caption(pool)
    finally:
        over.set()
        killer.join()
        pool.close()
    assert (summary.done, summary.dead, len(killed)) == (PICTURES - 1, 1, DEAD_AFTER_CRASHES)
    export_manifest(bench.settings, str(output), ExportOptions())
    assert_it_died_alone(bench.state, output, bench.rows)


def test_a_picture_that_kills_the_run(tmp_path: Path, zygote: Zygote) -> None:
    """Where no process stands between, the run dies with it, and is started again, five times; the sixth ends."""
    output = tmp_path / "out.jsonl"
    program = Program(tmp_path, zygote=zygote, slots=2)
    assert program.run("ingest", put_pictures(tmp_path)).code == 0
    assert program.run("fetch").code == 0
    latest = "SELECT max(id) FROM runs"
    # What a dead run held stays its own until the next one has taken it back.
    in_flight = "SELECT 1 FROM captions WHERE image = ? AND status = 'running' AND lease_run > ?"
    codes = []
    for _ in range(DEAD_AFTER_CRASHES + 1):
        [(before,)] = program.rows(latest)
        with program.start("run", "-q", "--output", output) as run:
            while run.process.poll() is None and not program.rows(in_flight, DEADLY + 1, before):
                time.sleep(0.002)
            if run.process.poll() is None:
                run.send(signal.SIGKILL)
            codes.append(run.wait().code)
    assert codes == [128 + signal.SIGKILL] * DEAD_AFTER_CRASHES + [3]
    assert_it_died_alone(program.state, output, program.rows)
