"""Fetching from mirrors: when the record's own address fails, is down, or is not wanted."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fault_server import FaultServer, html, reset_at_once, status
from support.workbench import Workbench, scenes

from etl.domain.views import StageSummary
from etl.errors import ConfigError

MakeBench = Callable[..., Workbench]

TO_STORE = r"^http://slow\.test/=http://store.test/"


@pytest.fixture(autouse=True)
def every_host_is_the_server(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the one server stand in for every host, as an HTTP proxy."""
    monkeypatch.setenv("HTTP_PROXY", server.base)


def add(server: FaultServer, *urls: str) -> None:
    """Serve a different scene under each URL."""
    for url, (_, body) in zip(urls, scenes(len(urls)), strict=True):
        server.add(url, body)


def asked(server: FaultServer) -> list[str]:
    """Return the URLs that were asked for, in their order."""
    return [request.target for request in server.log]


def sources(bench: Workbench) -> list[tuple[object, ...]]:
    """Return status, error class and mirror of every source."""
    return bench.rows("SELECT status, error_class, mirror FROM sources ORDER BY id")


def test_a_dead_primary_is_replaced_by_its_mirror(server: FaultServer, make_bench: MakeBench) -> None:
    """Where the primary has no picture the mirror is asked in the same attempt; source and story say so."""
    server.fail("http://slow.test/a.jpg", status(404))
    add(server, "http://slow.test/b.jpg", "http://store.test/a.jpg")
    bench = make_bench(rewrite_url=(TO_STORE,))
    bench.ingest("http://slow.test/a.jpg", "http://slow.test/b.jpg")
    assert bench.fetch() == StageSummary(done=2)
    assert sources(bench) == [("done", None, "http://store.test/a.jpg"), ("done", None, None)]
    assert server.requests["http://store.test/b.jpg"] == 0
    story = bench.story("r0")
    assert story["source"]["mirror"] == "http://store.test/a.jpg"
    assert json.loads(story["line"])["url"] == "http://slow.test/a.jpg"


def test_failures_of_an_earlier_run_are_retried_on_a_mirror(server: FaultServer, make_bench: MakeBench) -> None:
    """What died before a mirror was named is fetched from it after retry-failed."""
    server.fail("http://slow.test/a.jpg", html)
    add(server, "http://store.test/a.jpg")
    bench = make_bench()
    bench.ingest("http://slow.test/a.jpg")
    assert bench.fetch() == StageSummary(dead=1)
    bench.retry()
    assert bench.fetch(rewrite_url=(TO_STORE,)) == StageSummary(done=1)


def test_preferred_mirrors_spare_the_primary(server: FaultServer, make_bench: MakeBench) -> None:
    """With prefer_mirror the primary is asked only for what the mirror lacks."""
    add(server, "http://store.test/a.jpg", "http://slow.test/b.jpg")
    server.fail("http://store.test/b.jpg", status(404))
    bench = make_bench(rewrite_url=(TO_STORE,), prefer_mirror=True)
    bench.ingest("http://slow.test/a.jpg", "http://slow.test/b.jpg")
    assert bench.fetch() == StageSummary(done=2)
    assert [mirror for *_, mirror in sources(bench)] == ["http://store.test/a.jpg", None]
    assert server.requests["http://slow.test/a.jpg"] == 0


def test_a_template_takes_the_name_from_the_record(server: FaultServer, make_bench: MakeBench) -> None:
    """The record's own field names the file on the mirror."""
    server.fail("http://slow.test/a.jpg", status(403))
    add(server, "http://store.test/x/moved 1.jpg")
    bench = make_bench(mirror_template="http://store.test/x/{resolved_image_filename}")
    bench.ingest({"id": "1", "url": "http://slow.test/a.jpg", "resolved_image_filename": "moved 1.jpg"})
    assert bench.fetch() == StageSummary(done=1)
    assert sources(bench) == [("done", None, "http://store.test/x/moved%201.jpg")]


def test_a_mirror_may_be_a_directory(server: FaultServer, make_bench: MakeBench, tmp_path: Path) -> None:
    """Pictures that were copied to this machine are read where they lie."""
    server.fail("http://slow.test/a.jpg", status(404))
    copy = tmp_path / "copies" / "a.jpg"
    copy.parent.mkdir()
    copy.write_bytes(scenes(1)[0][1])
    bench = make_bench(rewrite_url=(rf"^http://slow\.test={copy.parent}",))
    bench.ingest("http://slow.test/a.jpg")
    assert bench.fetch() == StageSummary(done=1)
    assert sources(bench) == [("done", None, str(copy))]
    assert copy.exists()


def test_when_both_fail_the_one_that_may_pass_decides(server: FaultServer, make_bench: MakeBench) -> None:
    """A source whose primary is gone for good and whose mirror is busy waits; both reasons are told.

    Where both fail for good, the class is that of the record's own address, and neither is asked twice.
    """
    for name in ("a", "b"):
        server.fail(f"http://slow.test/{name}.jpg", status(404))
    add(server, "http://store.test/a.jpg")
    server.fail("http://store.test/a.jpg", status(503), times=1)
    server.fail("http://store.test/b.jpg", html)
    bench = make_bench(rewrite_url=(TO_STORE,))
    bench.ingest("http://slow.test/a.jpg", "http://slow.test/b.jpg")
    assert bench.fetch() == StageSummary(done=1, retried=1, dead=1)
    [(message,)] = bench.rows("SELECT message FROM attempts WHERE error_class = 'http_5xx'")
    assert "HTTP 404" in message
    assert "mirror: HTTP 503" in message
    assert sources(bench)[1] == ("dead", "http_404", None)
    assert [url for url in asked(server) if "/b" in url] == ["http://slow.test/b.jpg", "http://store.test/b.jpg"]


def test_a_primary_that_does_not_answer_is_passed_over(server: FaultServer, make_bench: MakeBench) -> None:
    """Once the primary counts as dead, its sources go to the mirror without asking it first."""
    names = [f"{n}.jpg" for n in range(30)]
    for name in names:
        server.fail(f"http://slow.test/{name}", reset_at_once)
    add(server, *(f"http://store.test/{name}" for name in names))
    bench = make_bench(rewrite_url=(TO_STORE,), per_host=8, backoff=60.0, backoff_cap=600.0)
    bench.ingest(*(f"http://slow.test/{name}" for name in names))
    assert bench.fetch() == StageSummary(done=30)
    assert sum("slow.test" in url for url in asked(server)) < 16
    assert bench.rows("SELECT state FROM hosts WHERE host = 'slow.test'") == [("parked",)]


def test_a_source_without_a_mirror_waits_for_its_host(server: FaultServer, make_bench: MakeBench) -> None:
    """Where only some records have a mirror, the others wait without holding up anybody, and without a charge."""
    for n in range(8):
        server.fail(f"http://slow.test/{n}.jpg", reset_at_once, times=1)
    add(server, *(f"http://slow.test/{n}.jpg" for n in range(20)))
    bench = make_bench(mirror_template="http://store.test/{file}", per_host=4, max_attempts=2, backoff=0.05)
    bench.ingest(*({"id": str(n), "url": f"http://slow.test/{n}.jpg"} for n in range(20)))
    assert bench.fetch().done == 20
    assert not any("store.test" in url for url in asked(server))


def test_refresh_asks_the_mirror_that_gave_the_picture(server: FaultServer, make_bench: MakeBench) -> None:
    """The mirror's validators go to the mirror alone, and 304 from it keeps the picture."""
    server.fail("http://slow.test/a.jpg", status(404), times=1)
    add(server, "http://store.test/a.jpg")
    bench = make_bench(rewrite_url=(TO_STORE,), prefer_mirror=True)
    bench.ingest("http://slow.test/a.jpg")
    bench.fetch()
    server.log.clear()
    assert bench.fetch(refresh=True) == StageSummary(done=1)
    [request] = server.log
    assert request.target == "http://store.test/a.jpg"
    assert "If-None-Match" in request.headers
    assert sources(bench) == [("done", None, "http://store.test/a.jpg")]


def test_another_server_s_validators_are_not_sent(server: FaultServer, make_bench: MakeBench) -> None:
    """What the mirror said of its file means nothing to the primary, which is asked without conditions."""
    server.fail("http://slow.test/a.jpg", status(404), times=1)
    add(server, "http://store.test/a.jpg")
    server.add("http://slow.test/a.jpg", scenes(1)[0][1])
    bench = make_bench(rewrite_url=(TO_STORE,))
    bench.ingest("http://slow.test/a.jpg")
    bench.fetch()
    server.log.clear()
    assert bench.fetch(refresh=True) == StageSummary(done=1)
    [request] = server.log
    assert request.target == "http://slow.test/a.jpg"
    assert "If-None-Match" not in request.headers
    assert sources(bench) == [("done", None, None)]


def test_a_mirror_that_cannot_be_is_refused_before_any_request(server: FaultServer, make_bench: MakeBench) -> None:
    """A broken pattern ends the stage with what is wrong, and nothing was asked."""
    bench = make_bench(rewrite_url=("(=x",))
    bench.ingest("http://slow.test/a.jpg")
    with pytest.raises(ConfigError, match="rewrite_url"):
        bench.fetch()
    assert asked(server) == []
    assert bench.counts("sources") == {"ready": 1}
