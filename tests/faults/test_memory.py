"""Memory that runs out in a real run: it goes on with less, charges nobody, and writes the same words."""

import re
import resource
import threading
from pathlib import Path

import pytest
from support.common_check import check_state
from support.etl_process import EtlProcess, Program
from support.fault_server import Exchange, FaultServer, ok
from support.watching import wait_for
from support.workbench import scenes, write_manifest
from support.zygote import Zygote

PICTURES = 8
SLOTS = 512

LEFT = 80 * 2**20
"""Bytes that the process may still take once its model is loaded; half of what the slots want."""


def leave(run: EtlProcess, more: int) -> None:
    """Let a process take so many bytes more than it has."""
    taken = re.search(r"VmData:\s+(\d+) kB", Path(f"/proc/{run.process.pid}/status").read_text())
    assert taken
    limit = int(taken[1]) * 1024 + more
    resource.prlimit(run.process.pid, resource.RLIMIT_DATA, (limit, limit))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are set by prlimit")
def test_a_run_that_gets_less_memory_than_its_slots_want(tmp_path: Path, zygote: Zygote) -> None:
    """The kernel refuses the memory for the slots: they become fewer until they fit, and nothing else changes."""
    pictures = scenes(PICTURES)
    program, output = Program(tmp_path, zygote=zygote, slots=SLOTS), tmp_path / "out.jsonl"
    paused, loaded = threading.Event(), threading.Event()

    def held(exchange: Exchange) -> None:
        # A model is loaded for the first picture, and the others come when its process has got its limit.
        (paused if exchange.handler.path == "/0.jpg" else loaded).wait(120)
        ok(exchange)

    with FaultServer() as server:
        for n, (_, body) in enumerate(pictures):
            server.add(f"/{n}.jpg", body)
            server.fail(f"/{n}.jpg", held)
        records = [{"id": f"r{n}", "url": server.url(f"/{n}.jpg")} for n in range(PICTURES)]
        manifest = write_manifest(tmp_path / "manifest.jsonl", records)
        with program.start("run", "--input", manifest, "--output", output) as run:
            wait_for(lambda: program.count("sources", "running"), 120)
            assert program.here("pause").code == 0
            paused.set()
            wait_for(lambda: program.rows("SELECT 1 FROM recipes"), 120)
            leave(run, LEFT)
            loaded.set()
            assert program.here("resume").code == 0
            ended = run.wait(120)
    assert ended.code == 0, ended.stderr
    fewer = [
        (int(a), int(b)) for a, b in re.findall(r"out of memory with (\d+) slots; going on with (\d+)", ended.stderr)
    ]
    assert fewer[0] == (SLOTS, SLOTS // 2) and all(b == a // 2 for a, b in fewer), ended.stderr
    assert program.rows("SELECT DISTINCT attempts, crashes FROM captions") == [(1, 0)]
    assert program.rows("SELECT count(*) FROM attempts WHERE stage = 'caption' AND error_class IS NOT NULL") == [(0,)]
    exported = check_state(program.state, output=output, keys=[record["id"] for record in records], program=program)
    assert exported is not None
    # What the model says of these scenes with all the memory in the world, too.
    assert exported.captioned == {f"r{n}": scene.caption for n, (scene, _) in enumerate(pictures)}
