"""Bad networks and bad hosts through the whole fetch stage: right classes, few requests, no haste, nothing twice."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from support.bad_answers import after_a_break
from support.etl_process import Program
from support.fault_cases import CASES, DIALLED, MAX_BYTES, PICTURE, RESTS, Case, furnish
from support.fault_server import Exchange, FaultServer
from support.workbench import Workbench, encoded, wait_for, write_manifest

from benchmarks.archive_claims import first_round, second_round
from benchmarks.small_archive import FAULTS, SmallArchive, behaviour_of

ATTEMPTS = 3

AGES_S = 3600
"""A wait that no test sits out."""


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the machine's own proxies away."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        furnish(running)
        yield running


@dataclass(frozen=True)
class End:
    """How a source ends: its status and error class, and the requests that this took."""

    status: str
    slug: str | None
    requests: int


def end_of(case: Case) -> End:
    """Return how a source ends whose every request is answered so."""
    if (case.wait_s or 0) > AGES_S:
        return End("retry", case.slug, 1)
    if case.outcome is None:
        return End("done", None, case.requests)
    return End("dead", case.outcome, ATTEMPTS if case.retryable else case.requests)


def end_of_rest(case: Case) -> End:
    """Return how a source ends whose first request breaks and whose second, for the rest, is answered so."""
    return End("done", None, 2) if case.slug is None else End("dead", "truncated", ATTEMPTS)


BEHAVIOURS = [(case.name, case.behaviour, end_of(case)) for case in CASES if case not in DIALLED] + [
    (f"rest: {case.name}", after_a_break(case.behaviour), end_of_rest(case)) for case in RESTS
]


def test_no_behaviour_causes_a_storm_of_requests(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a host does, its source ends in its class after one request, or after the attempts that it is allowed.

    Each behaviour has a host of its own, behind a proxy, so that the pauses of one do not touch the others.
    """
    monkeypatch.setenv("HTTP_PROXY", server.base)
    hosts = {f"host{n}.test": behaviour for n, behaviour in enumerate(BEHAVIOURS)}
    for host, (_, behaviour, _) in hosts.items():
        server.add(f"http://{host}/fault", PICTURE + host.encode())
        server.fail(f"http://{host}/fault", behaviour)
    bench = Workbench(
        tmp_path, concurrency=32, max_attempts=ATTEMPTS, backoff_s=0.05, connect_timeout_s=0.6, read_timeout_s=0.9,
        min_rate=2000, max_bytes=MAX_BYTES,
    )  # fmt: skip
    bench.ingest(*(f"http://{host}/fault" for host in hosts))
    soon_ms = round(1000 * (time.time() + AGES_S))
    unfinished = "SELECT 1 FROM sources WHERE status IN ('ready', 'running') OR (status = 'retry' AND not_before < ?)"
    with bench.beside(bench.fetch) as (flow, running):
        wait_for(lambda: not bench.rows(unfinished, soon_ms), 60)
        flow.stop()
        running.result(timeout=10)
    counted = Counter(urlsplit(request.target).hostname for request in server.log)
    found = {
        hosts[host][0]: End(status, slug, counted[host])
        for host, status, slug in bench.rows("SELECT host, status, error_class FROM sources")
    }
    assert found == {name: end for name, _, end in BEHAVIOURS}
    assert not bench.files("parts")


def test_a_host_that_never_gets_further_is_not_resumed_for_ever(server: FaultServer, tmp_path: Path) -> None:
    """A connection that brings much, but always the same, is resumed free of charge once; then attempts are charged."""
    body = encoded(Image.effect_noise((900, 900), 60), "TIFF")

    def heedless(exchange: Exchange) -> None:
        exchange.head(200, {"Content-Length": str(len(body)), "ETag": exchange.resource.etag})
        exchange.send(body[:400_000])
        exchange.close()

    server.add("/large.tif", body, "image/tiff")
    bench = Workbench(tmp_path, max_attempts=ATTEMPTS)
    # The twenty-first request would be answered whole, so that a storm ends.
    bench.ingest(server.fail("/large.tif", heedless, times=20))
    bench.fetch()
    assert bench.rows("SELECT status, error_class, attempts FROM sources") == [("dead", "truncated", ATTEMPTS)]
    assert server.requests["/large.tif"] == ATTEMPTS + 1


def archive_urls(port: int, count: int = 300) -> list[str]:
    """Return URLs on two hosts of one server, among which every behaviour occurs."""
    hosts = ("127.0.0.1", "localhost")
    for series in range(1000):
        urls = [f"http://{hosts[n % 2]}:{port}/series {series}/{n}.{'tif' if n % 3 else 'jpg'}" for n in range(count)]
        if {behaviour_of(url) for url in urls} == {"ok", *(name for _, name in FAULTS)}:
            return urls
    raise AssertionError("no series has every behaviour")


def test_an_archive_of_two_bad_hosts_is_fetched_politely_and_once(tmp_path: Path) -> None:
    """Real runs over 300 sources, a tenth of them faulty, keep every promise; once healed, all of it is done."""
    per_host = 6
    program = Program(
        tmp_path, allow_host="127.0.0.1,localhost", per_host=per_host, max_attempts=4, connect_timeout_s=5,
        read_timeout_s=2,
    )  # fmt: skip
    with SmallArchive() as archive:
        urls = archive_urls(archive.port)
        records = [{"id": f"r{n}", "url": url} for n, url in enumerate(urls)]
        assert program.run("ingest", write_manifest(tmp_path / "manifest.jsonl", records)).code == 0
        assert program.run("fetch", timeout_s=120).code == 3
        failures = map(json.loads, program.run("failures", "--json").stdout.splitlines())
        classes = {failure["url"]: failure["error_class"] for failure in failures}
        claims = first_round(archive.notes, urls, classes, per_host=per_host)
        seen = len(archive.notes.visits)
        archive.heal()
        assert program.run("retry-failed").code == 0
        assert program.run("fetch").code == 0
        claims += second_round(archive.notes.visits[seen:], urls, program.status()["sources"])
    assert [str(claim) for claim in claims if not claim.holds] == []
