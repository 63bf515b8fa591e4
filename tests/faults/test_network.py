"""Bad networks and bad hosts: right classes, few requests, no haste, nothing twice, and never a broken picture."""

import contextlib
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from PIL import Image
from support.archive_claims import first_round, second_round
from support.bad_answers import after_a_break
from support.common_check import check_state
from support.etl_process import EtlProcess, Program
from support.fault_cases import CASES, DIALLED, MAX_BYTES, PICTURE, RESTS, Case, furnish
from support.fault_server import (
    Behaviour,
    Exchange,
    FaultServer,
    drip,
    html,
    ok,
    reset_at_once,
    reset_mid_body,
    status,
    truncated,
)
from support.small_archive import FAULTS, SmallArchive, behaviour_of
from support.watching import wait_for
from support.workbench import Workbench, encoded, scenes, write_manifest
from support.zygote import Zygote

ATTEMPTS = 3

AGES_S = 3600
"""A wait that no test sits out."""


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

    Each behaviour has a host of its own, behind a proxy, so that the pauses of one do not touch the others.  None is
    waited for without a charge: the patience is below the seconds that they ask for.
    """
    monkeypatch.setenv("HTTP_PROXY", server.base)
    hosts = {f"host{n}.test": behaviour for n, behaviour in enumerate(BEHAVIOURS)}
    for host, (_, behaviour, _) in hosts.items():
        server.add(f"http://{host}/fault", PICTURE + host.encode())
        server.fail(f"http://{host}/fault", behaviour)
    bench = Workbench(
        tmp_path, concurrency=32, max_attempts=ATTEMPTS, backoff=0.05, connect_timeout=0.6, read_timeout=0.9,
        min_rate=2000, max_bytes=MAX_BYTES, host_patience=6,
    )  # fmt: skip
    bench.ingest(*(f"http://{host}/fault" for host in hosts))
    soon_ms = round(1000 * (time.time() + AGES_S))
    unfinished = "SELECT 1 FROM sources WHERE status IN ('ready', 'running') OR (status = 'retry' AND not_before < ?)"
    with bench.beside(bench.fetch) as (control, running):
        wait_for(lambda: not bench.rows(unfinished, soon_ms), 60)
        control.stop()
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


@pytest.mark.soak
def test_an_archive_of_two_bad_hosts_is_fetched_politely_and_once(tmp_path: Path) -> None:
    """Real runs over 300 sources, a tenth of them faulty, keep every promise; once healed, all of it is done."""
    per_host = 6
    program = Program(
        tmp_path, allow_host="127.0.0.1,localhost", per_host=per_host, max_attempts=4, connect_timeout=5,
        read_timeout=2,
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


def late(exchange: Exchange) -> None:
    """Answer after a while."""
    exchange.closing.wait(0.5)
    ok(exchange)


@dataclass(frozen=True)
class Fault:
    """What is wrong with one picture of a run, and what it must come to.

    Attributes:
        behaviour: how the server answers, ``times`` times or always; as it should where there is none.
        slug: the class in which the record fails; ``None`` where it is captioned.
        requests: how often it is asked for.
    """

    behaviour: Behaviour | None = None
    times: int | None = None
    slug: str | None = None
    requests: int = 1


FAULTS_AT_ONCE = {
    "good": Fault(),
    "broken in the middle": Fault(reset_mid_body, 1, requests=2),
    "broken at once": Fault(reset_at_once, 1, requests=2),
    "late": Fault(late),
    "dripping": Fault(drip(200), 1, requests=2),
    "busy": Fault(status(429, retry_after="1"), 2, requests=3),
    "always failing": Fault(status(503), slug="http_5xx", requests=ATTEMPTS),
    "always short": Fault(truncated, slug="truncated", requests=ATTEMPTS),
    "a page": Fault(html, slug="not_an_image"),
    "half a picture": Fault(slug="truncated_image"),
    "no picture": Fault(slug="not_an_image"),
    "deadly": Fault(slug="decoder_crashed", requests=3),
}
"""By the names of the records."""


def kill_decoders(run: EtlProcess) -> None:
    """Kill every decoder of a run that is busy with a large picture, told by its memory, until the run ends."""
    while run.process.poll() is None:
        for child in run.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.memory_info().rss > 110 * 1024**2 and "etl.images.decoder_worker:main" in child.cmdline():
                    child.kill()
        time.sleep(0.01)


def test_a_run_that_meets_every_fault_at_once(server: FaultServer, tmp_path: Path, zygote: Zygote) -> None:
    """The real program: passing faults end in captions, lasting ones in their classes, and nobody is asked early."""
    bodies = {name: body for name, (_, body) in zip(FAULTS_AT_ONCE, scenes(len(FAULTS_AT_ONCE)), strict=True)}
    bodies["half a picture"] = bodies["half a picture"][:1500]
    bodies["no picture"] = b"<!DOCTYPE html><title>Error</title>"
    bodies["deadly"] = encoded(Image.new("1", (15000, 15000)), "PNG")
    for name, fault in FAULTS_AT_ONCE.items():
        server.add(f"/{name}.jpg", bodies[name])
        if fault.behaviour:
            server.fail(f"/{name}.jpg", fault.behaviour, fault.times)
    manifest = write_manifest(
        tmp_path / "manifest.jsonl", [{"id": name, "url": server.url(f"/{name}.jpg")} for name in FAULTS_AT_ONCE]
    )
    program = Program(
        tmp_path, zygote=zygote, max_attempts=ATTEMPTS, read_timeout=5, min_rate=1000, max_new_tokens=8
    )  # fmt: skip
    output = tmp_path / "out.jsonl"
    with program.start("run", "-q", "--input", manifest, "--output", output) as run:
        killer = threading.Thread(target=kill_decoders, args=(run,))
        killer.start()
        ended = run.wait(120)
        killer.join()
    assert ended.code == 3, ended.stderr
    asked = {name: [each.at for each in server.log if each.path == f"/{name}.jpg"] for name in FAULTS_AT_ONCE}
    assert {name: len(times) for name, times in asked.items()} == {n: f.requests for n, f in FAULTS_AT_ONCE.items()}
    assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(asked["busy"]))
    exported = check_state(program.state, output=output, keys=list(FAULTS_AT_ONCE), program=program)
    assert exported is not None
    assert exported.failed == {name: fault.slug for name, fault in FAULTS_AT_ONCE.items() if fault.slug}
    assert program.rows("SELECT crashes, attempts FROM sources WHERE url LIKE '%deadly%'") == [(3, 3)]

    again = server.requests.total()
    assert program.run("fetch", "-q").code == 3
    assert server.requests.total() == again, "nothing is left to be asked for"
