"""Hosts whose names are never answered, beside one that gives its pictures."""

import socket
import threading
from typing import Any

import pytest
from support.fault_server import FaultServer
from support.watching import wait_for
from support.workbench import Workbench, scenes

GOOD = "SELECT count(*) FROM sources WHERE status = 'done'"


def test_names_that_never_answer_cost_only_themselves(
    server: FaultServer, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than there are slots and threads: the others are fetched meanwhile, and nothing is charged to them."""
    released, real = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
        if str(host).endswith(".silent.example"):
            assert released.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return real("127.0.0.1" if host == "good.example" else host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    good = [server.add(f"/{n}.jpg", body).replace("127.0.0.1", "good.example") for n, (_, body) in enumerate(scenes(8))]
    bench.ingest(*(f"http://{n}.silent.example/a.jpg" for n in range(100)), *good)
    work = lambda control: bench.fetch(control, connect_timeout=30, max_attempts=1)  # noqa: E731
    with bench.beside(work) as (_, running):
        try:
            wait_for(lambda: bench.rows(GOOD) == [(8,)], timeout_s=20)
            assert bench.rows("SELECT count(*) FROM attempts WHERE error_class IS NOT NULL") == [(0,)]
        finally:
            released.set()
        summary = running.result(60)
    assert (summary.done, summary.dead) == (8, 100)
    charged = bench.rows("SELECT host, attempts, error_class FROM sources WHERE error_class IS NOT NULL")
    assert {(attempts, slug) for _, attempts, slug in charged} == {(1, "dns")}
    assert all(host.endswith(".silent.example") for host, _, _ in charged)
