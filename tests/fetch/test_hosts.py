"""How the fetch stage treats hosts that are slow, dead or strict, and what it remembers of them."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from support.fault_server import FaultServer, ok, reset_at_once, status
from support.workbench import Workbench, scenes

from etl.clock import now_ms
from etl.domain.statuses import HostState, Stage
from etl.domain.views import HostInfo, StageSummary
from etl.net.client import Download, Downloader
from etl.state.read.progress import ProgressReader
from etl.state.read.reader import Reader
from etl.state.store import Store

MakeBench = Callable[..., Workbench]


@pytest.fixture(autouse=True)
def every_host_is_the_server(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the one server stand in for every host, as an HTTP proxy."""
    monkeypatch.setenv("HTTP_PROXY", server.base)


def add(server: FaultServer, host: str, count: int) -> list[str]:
    """Serve different scenes on a host; return their URLs."""
    drawn = scenes(count, seed=hash(host) % 1000)
    return [
        server.add(f"http://{host}/{n}.jpg", body) and f"http://{host}/{n}.jpg" for n, (_, body) in enumerate(drawn)
    ]


def test_a_dead_host_is_left_in_peace_while_others_go_on(server: FaultServer, make_bench: MakeBench) -> None:
    """Eight failures open its breaker; one probe at a time finds it alive again, and the rest pays no attempt."""
    dead, good = add(server, "dead.test", 40), add(server, "good.test", 10)
    for url in dead[:8]:
        server.fail(url, reset_at_once, times=1)
    bench = make_bench(per_host=8, concurrency=16)
    bench.ingest(*dead, *good)
    assert bench.fetch().done == 50
    assert bench.rows("SELECT max(attempts) FROM sources") == [(2,)]
    assert bench.rows("SELECT count(*) FROM attempts WHERE error_class IS NOT NULL") == [(8,)]


def test_a_host_that_stays_dead_is_given_up(server: FaultServer, make_bench: MakeBench) -> None:
    """Beyond its patience the run ends: the rest of the host fails as host_down, untried, and can be retried."""
    urls = [f"http://dead.test/{n}.jpg" for n in range(60)]
    for url in urls:
        server.fail(url, reset_at_once)
    bench = make_bench(per_host=8, max_attempts=50, host_patience=1.0)
    bench.ingest(*urls)
    summary = bench.fetch()
    assert summary.dead == 60
    assert bench.rows("SELECT DISTINCT error_class FROM sources") == [("host_down",)]
    asked = {path for path, n in server.requests.items() if n}
    assert len(asked) < 40
    assert bench.retry()["fetch"] == 60


def test_an_hour_of_patience_is_kept_by_the_next_run(server: FaultServer, make_bench: MakeBench) -> None:
    """A pause that a host asked for outlives the run: the next one sends it nothing and serves the others."""
    urls = add(server, "busy.test", 3)
    other = add(server, "good.test", 2)
    bench = make_bench()
    bench.ingest(*urls, *other)
    with Store.open(bench.settings) as store, store.run((Stage.FETCH,)) as run:
        paused = HostInfo(
            host="busy.test", state=HostState.PAUSED, reason="HTTP 429, asks to wait 3600 s", until=now_ms() + 3_600_000
        )
        store.hosts(run).record([paused])
    with bench.beside(bench.fetch) as (_, _future):
        bench.wait_until("SELECT count(*) = 2 FROM sources WHERE status = 'done'")
    assert not any("busy.test" in request.target for request in server.log)
    [(state, until)] = bench.rows("SELECT state, until FROM hosts WHERE host = 'busy.test'")
    assert state == "paused"
    assert until > now_ms() + 3_500_000


def test_a_host_that_was_dead_is_tried_at_once_by_the_next_run(server: FaultServer, make_bench: MakeBench) -> None:
    """Whoever starts a run after repairing the network waits for no open breaker; one probe closes it."""
    bench = make_bench(per_host=4, backoff_cap=600.0)
    bench.ingest(*add(server, "back.test", 6))
    with Store.open(bench.settings) as store, store.run((Stage.FETCH,)) as run:
        silent = HostInfo(
            host="back.test",
            state=HostState.NOT_ANSWERING,
            reason="8 sources failed in a row",
            until=now_ms() + 600_000,
        )
        store.hosts(run).record([silent])
    with bench.beside(bench.fetch) as (_, future):
        bench.wait_until("SELECT count(*) = 6 FROM sources WHERE status = 'done'")
        assert future.result(timeout=10) == StageSummary(done=6)


def test_a_rate_is_kept(server: FaultServer, make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With host_rate requests to one host start so far apart, however many may run at once."""
    starts = []
    download = Downloader.download

    async def noted(downloader: Downloader, *arguments: Any, **options: Any) -> Download:
        # Here and not where they arrive: the first may have to wait for its connection.
        starts.append(time.monotonic())
        return await download(downloader, *arguments, **options)

    monkeypatch.setattr(Downloader, "download", noted)
    urls = add(server, "slow.test", 6)
    bench = make_bench(host_rate=20.0, per_host=8)
    bench.ingest(*urls)
    assert bench.fetch() == StageSummary(done=6)
    assert len(starts) == len(server.log) == 6
    assert starts[-1] - starts[0] >= 5 * 0.05 - 0.02


def test_robots_are_obeyed_when_asked(server: FaultServer, make_bench: MakeBench) -> None:
    """A forbidden URL is not asked for, an allowed one is; robots.txt is read once for all of them."""
    urls = add(server, "site.test", 4)
    server.add("http://site.test/robots.txt", b"User-agent: *\nDisallow: /2\n", "text/plain")
    bench = make_bench(respect_robots=True)
    bench.ingest(*urls)
    assert bench.fetch() == StageSummary(done=3, dead=1)
    assert bench.rows("SELECT url FROM sources WHERE error_class = 'robots'") == [("http://site.test/2.jpg",)]
    asked = [request.target for request in server.log]
    assert "http://site.test/2.jpg" not in asked
    assert asked.count("http://site.test/robots.txt") == 1


def test_robots_count_for_redirects_too(server: FaultServer, make_bench: MakeBench) -> None:
    """A redirect into what another host forbids is not followed."""
    [target] = add(server, "strict.test", 1)
    server.add("http://strict.test/robots.txt", b"User-agent: caption-etl\nDisallow: /\n", "text/plain")
    server.fail(
        "http://site.test/a.jpg", lambda exchange: exchange.head(302, {"Location": target, "Content-Length": "0"})
    )
    bench = make_bench(respect_robots=True)
    bench.ingest("http://site.test/a.jpg")
    assert bench.fetch() == StageSummary(dead=1)
    assert bench.rows("SELECT error_class FROM sources") == [("robots",)]
    assert not any(request.target == target for request in server.log)


def test_a_host_that_withholds_its_robots_is_waited_for(server: FaultServer, make_bench: MakeBench) -> None:
    """While robots.txt answers 503 nothing else is asked for, and the sources fail as retryable in the end."""
    urls = add(server, "site.test", 2)
    server.fail("http://site.test/robots.txt", status(503))
    bench = make_bench(respect_robots=True)
    bench.ingest(*urls)
    bench.fetch()
    assert bench.rows("SELECT DISTINCT error_class FROM sources") == [("http_5xx",)]
    assert {request.target for request in server.log} == {"http://site.test/robots.txt"}


def test_robots_are_not_read_unless_asked(server: FaultServer, bench: Workbench) -> None:
    """By default no robots.txt is asked for: the pictures were named by whoever runs this."""
    bench.ingest(*add(server, "site.test", 1))
    bench.fetch()
    assert [request.target for request in server.log] == ["http://site.test/0.jpg"]


def test_how_hosts_fared_is_told(server: FaultServer, make_bench: MakeBench) -> None:
    """Pictures, bytes, failures and speed are known by host, and what failed by class."""
    urls = [*add(server, "one.test", 5), *add(server, "two.test", 3)]
    server.fail(urls[0], status(404))
    server.fail(urls[1], ok)
    bench = make_bench()
    bench.ingest(*urls)
    bench.fetch()
    with Reader(bench.state) as reader:
        progress = ProgressReader(reader).progress()
    hosts = {host.info.host: host for host in progress.hosts}
    assert [(name, hosts[name].info.done, hosts[name].info.failed) for name in sorted(hosts)] == [
        ("one.test", 4, 1), ("two.test", 3, 0),
    ]  # fmt: skip
    assert hosts["one.test"].info.bytes == sum(row[0] for row in bench.rows(
        "SELECT i.bytes FROM sources s JOIN images i ON i.id = s.image WHERE s.host = 'one.test'"
    ))  # fmt: skip
    assert hosts["one.test"].items_per_s > 0
    assert progress.fetch_errors == {"http_404": 1}
    assert progress.fetch_seconds == 0.0
