"""A fetch over a real Ray cluster that loses nodes and its driver: everything is fetched once, and politely."""

import importlib.util
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.common_check import check_state
from support.etl_process import Program, wait_for_done
from support.fault_server import Exchange, FaultServer, ok, status
from support.ray_nodes import RayNodes
from support.workbench import scenes, write_manifest

from etl.fetch.loop import DECODE_AHEAD

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed"),
]

PICTURES = 400
PER_HOST = 3
PAUSE_S = 2

IMAGES = (
    "SELECT s.url, i.sha256, i.bytes, i.mime, i.width, i.height, i.working_sha256, i.working_bytes FROM sources s "
    "JOIN images i ON i.id = s.image WHERE s.status = 'done' ORDER BY s.url"
)


class Meter:
    """Answers after a while, and knows how many requests a host had at once at most."""

    def __init__(self) -> None:
        self.peak: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> None:
        host = urlsplit(exchange.handler.path).hostname or exchange.handler.headers["Host"].partition(":")[0]
        with self._lock:
            self._open[host] += 1
            self.peak[host] = max(self.peak[host], self._open[host])
        exchange.closing.wait(0.1)
        with self._lock:
            self._open[host] -= 1
        ok(exchange)


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    with RayNodes() as running:
        yield running


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def serve(server: FaultServer, meter: Meter | None) -> list[str]:
    """Serve the pictures from two hosts; return their URLs."""
    urls = []
    for n, (_, body) in enumerate(scenes(PICTURES)):
        host = ("127.0.0.1", "localhost")[n % 2]
        server.add(f"/{n}.jpg", body)
        urls.append(f"http://{host}:{server.port}/{n}.jpg")
        if meter is not None:
            server.fail(f"/{n}.jpg", meter)
    return urls


def prepare(directory: Path, urls: list[str], nodes: RayNodes | None = None, **settings: Any) -> Program:
    """Return a state with these sources, to be fetched by the cluster, or locally where there is none."""
    directory.mkdir()
    if nodes is not None:
        settings |= {"fetch_backend": "ray", "ray_address": nodes.address}
    usual: dict[str, Any] = {"per_host": PER_HOST, "allow_host": "127.0.0.1,localhost,::1"}
    program = Program(directory, **(usual | settings))
    if nodes is not None:
        program.environment |= nodes.environment
    manifest = write_manifest(directory / "manifest.jsonl", [{"id": f"r{n}", "url": url} for n, url in enumerate(urls)])
    assert program.run("ingest", manifest).code == 0
    return program


def done(program: Program) -> list[str]:
    """Return the paths of the sources that are fetched."""
    return [urlsplit(url).path for (url,) in program.rows("SELECT url FROM sources WHERE status = 'done'")]


def test_nodes_and_the_driver_may_die(
    nodes: RayNodes, server: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node is killed, another joins, the driver is killed and started again: the rows are those of one machine.

    Both hosts are asked by several nodes and never by more than `per_host` requests at once, not even while nodes come
    and go; what a lost node had in hand is charged to nobody.
    """
    meter = Meter()
    urls = serve(server, meter)
    second = nodes.join()
    program = prepare(tmp_path / "ray", urls, nodes)
    begun = time.monotonic()
    with program.start("fetch", "-v") as run:
        wait_for_done(program, run, "sources", PICTURES // 5)
        both = len(nodes.actors(0)), len(nodes.actors(second))
        nodes.kill(second)
        at_kill = done(program)
        asked_at_kill = server.requests.copy()
        wait_for_done(program, run, "sources", len(at_kill) + PICTURES // 5)
        third = nodes.join()
        joined = nodes.wait_for_actors(third, 1)
        run.send(signal.SIGKILL)
        killed = run.wait()
        assert killed.code == 128 + signal.SIGKILL
    before = done(program)
    asked_before = server.requests.copy()
    ended = program.run("fetch", "-v", timeout_s=300)
    assert ended.code == 0, ended.stderr
    asked = server.requests.copy()
    seconds = time.monotonic() - begun
    local = prepare(tmp_path / "local", urls)
    ended = local.run("fetch", timeout_s=300)
    assert ended.code == 0, ended.stderr
    charged = program.rows("SELECT error_class, message FROM attempts WHERE error_class IS NOT NULL")
    again = sum(n - 1 for n in asked.values())
    with capsys.disabled():
        print(
            f"\n  {PICTURES} pictures in {seconds:.0f} s; {len(at_kill)} before a node was killed, "
            f"{len(before)} before the driver was; {again} asked for again, peak per host {dict(meter.peak)}"
        )
    assert both == (1, 1)
    assert joined == 1
    assert len(before) < PICTURES
    assert charged == []
    assert killed.stdout == "", "what Ray has to say of a lost node is not an answer of the command"
    assert program.rows(IMAGES) == local.rows(IMAGES)
    assert len(program.rows(IMAGES)) == PICTURES
    assert all(asked[path] == asked_at_kill[path] for path in at_kill), "what is done is not asked for again"
    assert all(asked[path] == asked_before[path] for path in before), "what is done is not asked for again"
    # At each kill: what was being asked for, and what was downloaded and not yet decoded and committed.
    assert again <= 2 * (2 * PER_HOST + 2 * DECODE_AHEAD)
    assert set(meter.peak.values()) == {PER_HOST}
    check_state(program.state)


def test_a_pause_holds_for_every_node(nodes: RayNodes, server: FaultServer, tmp_path: Path) -> None:
    """A Retry-After that one node is told is obeyed by the others."""
    urls = serve(server, None)
    for n in range(0, 40, 2):
        server.fail(f"/{n}.jpg", status(429, retry_after=str(PAUSE_S)), times=1)
    nodes.join()
    program = prepare(tmp_path / "ray", urls[0:80:2], nodes, per_host=1)
    ended = program.run("fetch", "-v", "--max-attempts", "30", timeout_s=300)
    assert ended.code == 0, ended.stderr
    refused = [r.at for r in server.log if server.requests[r.path] == 2]
    first = {r.path: r.at for r in reversed(server.log) if server.requests[r.path] == 2}
    times = sorted(r.at for r in server.log)
    assert len(refused) == 2 * len(first) == 40
    for at in first.values():
        assert not [t for t in times if at < t < at + PAUSE_S]
    assert program.count("sources", "done") == 40


def test_nothing_is_left_on_the_nodes(nodes: RayNodes, server: FaultServer, tmp_path: Path) -> None:
    """SIGTERM ends a fetch within 25 s, with no actor, decoder or file behind it; `run` may use both backends.

    A node without CPUs, as the head of a cluster often is, has no part in it.
    """
    urls = serve(server, Meter())[:60]
    idle = nodes.join(cpus=0)
    program = prepare(tmp_path / "ray", urls, nodes, backend="ray", ray_cpus=1, batch_size=8)
    with program.start("fetch", "-v") as run:
        wait_for_done(program, run, "sources", 10)
        assert nodes.actors(0)
        assert nodes.actors(idle) == []
        run.send(signal.SIGTERM)
        ended = run.wait()
    assert (ended.code, ended.seconds < 25) == (143, True), ended.stderr
    assert nodes.wait_for_actors(0, 0) == 0
    fetched = program.count("sources", "done")
    assert program.rows("SELECT 1 FROM sources WHERE lease_run IS NOT NULL") == []
    ended = program.run("run", "-v", timeout_s=300)
    assert ended.code == 0, ended.stderr
    assert 10 <= fetched < 60
    assert program.count("captions", "done") == program.rows("SELECT count(*) FROM images")[0][0]
    check_state(program.state)
