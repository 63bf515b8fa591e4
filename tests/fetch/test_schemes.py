"""Where another scheme of sources goes: one line that ingest reads too, and one opener."""

import hashlib
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.fault_server import FaultServer, status
from support.near_cluster import near_cluster
from support.workbench import Workbench, scenes

from etl.clock import now_ms
from etl.domain.statuses import HostState
from etl.domain.views import StageSummary
from etl.errors import NotFoundError, PendingError
from etl.fetch.hosts.limiter import HostNotReadyError
from etl.fetch.mirrors import Address
from etl.fetch.pending import Pending
from etl.fetch.schemes import OPENERS, Access, Opened
from etl.net.attempt import Validators
from etl.net.part import Download, PartWriter
from etl.net.urls import SCHEMES, authority
from etl.state.work_queue import RetryPolicy

pytestmark = pytest.mark.usefixtures("forked_decoders")

BODIES = {f"mem://shelf/{n}.jpg": body for n, (_, body) in enumerate(scenes(2))}


async def open_mem(access: Access, address: Address, _: Validators | None) -> Opened:
    """Take a picture from this module's memory."""
    part = access.cache.part_of(address.url)
    async with access.limiter.slot(address.host, address.url, patient=False) as request:
        if address.url not in BODIES:
            raise NotFoundError(f"not on the {address.host}")
        with PartWriter(part, max_bytes=access.max_bytes) as writer:
            writer.write(BODIES[address.url])
        access.limiter.succeeded(request, writer.size)
    return Opened(Download(sha256=writer.sha256, size=writer.size), part)


def test_every_scheme_that_ingest_accepts_has_an_opener() -> None:
    """The two tables, which lie on either side of the wall between the stages, name the same schemes."""
    assert SCHEMES.keys() == OPENERS.keys()


@pytest.mark.parametrize("nodes", [0, 1])
def test_a_scheme_is_a_line_and_an_opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int) -> None:
    """Ingested, fetched, kept as an original, failed and known again like any other, also beside a cluster's nodes."""
    monkeypatch.setitem(SCHEMES, "mem", authority)
    monkeypatch.setitem(OPENERS, "mem", open_mem)
    bench = Workbench(tmp_path, keep_originals=True)
    bench.ingest(*BODIES, "mem://shelf/none.jpg")
    with near_cluster(bench.settings, nodes) if nodes else nullcontext():
        assert bench.fetch() == StageSummary(done=2, dead=1)
    rows = bench.rows("SELECT host, status, error_class FROM sources ORDER BY id")
    assert rows == [("shelf", "done", None), ("shelf", "done", None), ("shelf", "dead", "http_404")]
    assert {path.name for path in bench.files("original")} == {
        hashlib.sha256(body).hexdigest() for body in BODIES.values()
    }
    assert bench.files("parts") == []


def test_what_has_no_opener_is_refused_at_ingest(tmp_path: Path) -> None:
    """The message names the schemes that there are."""
    bench = Workbench(tmp_path)
    bench.ingest("mem://shelf/0.jpg")
    [(slug, message)] = bench.rows("SELECT error_class, error FROM records")
    assert (slug, message) == ("invalid_url", "neither http, https, s3, gs, hf nor a local path: a mem: URL")


def test_what_is_being_made_ready_is_waited_for(server: FaultServer, tmp_path: Path) -> None:
    """A 202 costs no attempt and does not slow its host down; one that asks for more patience than there is fails."""
    bench = Workbench(tmp_path, max_attempts=1)
    bench.ingest(*(server.add(f"/{n}.jpg", body) for n, body in enumerate(BODIES.values())))
    server.fail("/0.jpg", status(202, retry_after="0"), times=6)
    server.fail("/1.jpg", status(202, retry_after="901"))
    assert bench.fetch() == StageSummary(done=1, dead=1)
    assert bench.rows("SELECT status, attempts, error FROM sources ORDER BY id") == [
        ("done", 1, None),
        ("dead", 1, f"HTTP 202, asks to wait 901 s: {server.url('/1.jpg')}"),
    ]
    assert (server.requests["/0.jpg"], server.requests["/1.jpg"]) == (7, 1)
    assert bench.rows("SELECT state FROM hosts") == [(HostState.HEALTHY,)]


def test_patience_with_what_is_being_made_ready_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often its host says that a picture is about to be ready, it is put off no longer than that."""
    now, times = 0.0, 0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pending, error = Pending(100.0, RetryPolicy(5, 4.0, 10.0)), PendingError("HTTP 202")
    while now < 1000:
        try:
            pending.put_off("http://a.example/1.jpg", error)
            break
        except HostNotReadyError as later:
            now += (later.until_ms - now_ms()) / 1000
            times += 1
    assert 90 <= now <= 100 and times > 9
