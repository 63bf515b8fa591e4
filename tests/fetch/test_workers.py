"""A fetch that goes out to the nodes of a cluster: the rows of a fetch on one machine, whatever becomes of the nodes.

The nodes live in the test's process, with a real downloader, decoder processes and a directory of their own each;
what travels is pickled.  With real Ray: tests/faults/test_ray_fetch.py.
"""

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.fault_server import (
    Exchange,
    FaultServer,
    announce,
    disconnect,
    garbage,
    hang,
    html,
    ok,
    ranged,
    redirect,
    reset_at_once,
    status,
    truncated,
)  # fmt: skip
from support.near_cluster import NearCluster, NearPeer, near_cluster
from support.watching import wait_for
from support.workbench import Workbench, encoded, scenes
from support.zygote import Zygote

from etl.domain.views import StageSummary
from etl.errors import ClusterError, NotPlainError
from etl.fetch.workers.peers import Loss, Worker, WorkerPool
from etl.images.cache import ImageCache
from etl.ray_cluster.directory import PREFIX
from etl.ray_cluster.nodes import FRUITLESS

ROWS = (
    "SELECT s.url, s.status, s.attempts, s.crashes, s.error_class, s.http_status, s.etag, s.last_modified, "
    "s.final_url, i.sha256, i.bytes, i.mime, i.width, i.height, i.working_sha256, i.working_bytes, i.original_kept "
    "FROM sources s LEFT JOIN images i ON i.id = s.image ORDER BY s.url"
)


@pytest.fixture
def benches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_zygote: Zygote
) -> Iterator[tuple[Workbench, Workbench]]:
    """Return two state directories, one for a fetch here and one for a cluster; nodes put their files beside them."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = []
    for name in ("local", "cluster"):
        (tmp_path / name).mkdir()
        made.append(Workbench(tmp_path / name))
    with plain_zygote.children():
        yield made[0], made[1]


@pytest.fixture
def far(benches: tuple[Workbench, Workbench]) -> Workbench:
    return benches[1]


def add_pictures(server: FaultServer, count: int) -> list[str]:
    """Serve different scenes; return their URLs."""
    return [server.add(f"/{n}.jpg", body) for n, (_, body) in enumerate(scenes(count))]


class Meter:
    """Answers after a while, and knows how many requests were open at once at most."""

    def __init__(self, hold_s: float) -> None:
        self.peak = 0
        self._open = 0
        self._hold_s = hold_s
        self._lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> None:
        with self._lock:
            self._open += 1
            self.peak = max(self.peak, self._open)
        exchange.closing.wait(self._hold_s)
        with self._lock:
            self._open -= 1
        ok(exchange)


def large_picture() -> bytes:
    """Return a picture of half a megabyte that is worth resuming."""
    return encoded(Image.effect_noise((900, 900), 100), "PNG")


def test_the_rows_are_those_of_one_machine(
    server: FaultServer, benches: tuple[Workbench, Workbench], tmp_path: Path
) -> None:
    """Pictures and faults of every kind end alike, on a cluster and here; nothing is left on the nodes."""
    scene, other = (body for _, body in scenes(2))
    urls = [
        server.add("/a.jpg", scene),
        server.add("/same.jpg", scene),
        server.add("/b.png", encoded(Image.effect_noise((300, 200), 60), "PNG"), "image/png"),
        server.fail("/moved", redirect("/a.jpg")),
        server.fail("/inside", redirect("http://10.255.0.1/private.jpg")),
        server.fail("/403", status(403)),
        server.url("/404"),
        server.fail("/429", status(429)),
        server.fail("/503", status(503)),
        server.fail("/login.jpg", html),
        server.add("/cut.jpg", other[: len(other) // 2]),
        server.add("/bomb.png", encoded(Image.new("1", (9000, 9000)), "PNG"), "image/png"),
        server.fail("/huge.tif", announce(10**9)),
        server.fail("/short", truncated),
        server.fail("/reset", reset_at_once),
        server.fail("/bye", disconnect),
        server.fail("/smtp", garbage),
        server.fail("/hang", hang),
        "http://10.255.0.1/private.jpg",
        "http://127.0.0.1:1/refused.jpg",
        str(tmp_path / "nowhere.jpg"),
    ]
    limits: dict[str, Any] = {"max_pixels": 50_000_000, "max_bytes": 10**8, "read_timeout": 1.0, "max_attempts": 2}
    found, requests = [], []
    for bench in benches:
        bench.ingest(*urls)
        before = server.requests.copy()
        if bench is benches[0]:
            bench.fetch(**limits)
        else:
            with near_cluster(bench.settings) as cluster:
                bench.fetch(**limits)
        found.append(bench.rows(ROWS))
        # On a connection that was kept, a reset without an answer is tried once more at no charge.
        requests.append({path: n for path, n in (server.requests - before).items() if path not in ("/reset", "/bye")})
    assert found[1] == found[0]
    assert requests[1] == requests[0]
    assert sum(row[1] == "done" for row in found[1]) == 4
    assert len({row[4] for row in found[1]}) >= 12, "classes of failures"
    local, there = (bench.rows("SELECT error FROM sources ORDER BY url") for bench in benches)
    assert there == local, "the words of the errors"
    assert len([peer for peer in cluster.every if peer.asked["download"]]) == 2, "both nodes work"
    assert sum(peer.asked["decode"] for peer in cluster.every) < len(urls)
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def test_a_host_s_limit_holds_over_all_nodes(server: FaultServer, far: Workbench) -> None:
    """Three nodes together have no more requests at one host than `per_host`, which they do reach."""
    meter = Meter(0.05)
    urls = add_pictures(server, 30)
    for n in range(30):
        server.fail(f"/{n}.jpg", meter)
    far.ingest(*urls)
    with near_cluster(far.settings, 3) as cluster:
        assert far.fetch(per_host=2) == StageSummary(done=30)
    assert meter.peak == 2
    assert len([peer for peer in cluster.every if peer.asked["download"]]) >= 2


def test_what_a_host_asks_for_holds_for_all_nodes(server: FaultServer, far: Workbench) -> None:
    """After one 429 with a Retry-After no node asks that host before its time."""
    urls = add_pictures(server, 12)
    server.fail("/0.jpg", status(429, retry_after="1"), times=1)
    far.ingest(*urls)
    with near_cluster(far.settings, 2):
        assert far.fetch(per_host=1).done == 12
    times = [request.at for request in server.log]
    refused = next(request.at for request in server.log if request.path == "/0.jpg")
    assert not [at for at in times if refused < at < refused + 1]


def test_a_broken_download_goes_on_at_the_node_that_has_its_beginning(server: FaultServer, far: Workbench) -> None:
    """The rest alone is asked for, by the same node, although it would be another's turn."""

    def breaks_once(exchange: Exchange) -> None:
        if exchange.asked_from:
            return ranged(exchange)
        body = exchange.resource.body
        exchange.head(200, {"Content-Length": str(len(body)), "ETag": exchange.resource.etag})
        exchange.send(body[: len(body) // 2])
        cluster.prefer_others()
        return exchange.close()

    url = server.add("/large.png", large_picture(), "image/png")
    server.fail("/large.png", breaks_once)
    far.ingest(url)
    with near_cluster(far.settings, 2) as cluster:
        assert far.fetch() == StageSummary(done=1)
    assert [request.headers.get("Range", "")[:6] for request in server.log] == ["", "bytes="]
    assert sorted(peer.asked["download"] for peer in cluster.every) == [0, 2]


def test_originals_come_too_where_they_are_kept(server: FaultServer, far: Workbench) -> None:
    """`keep_originals` brings the very bytes of the server."""
    body = large_picture()
    far.ingest(server.add("/a.png", body, "image/png"))
    with near_cluster(far.settings):
        assert far.fetch(keep_originals=True).done == 1
    [kept] = far.files("original")
    assert kept.read_bytes() == body
    assert kept.name == hashlib.sha256(body).hexdigest()


def test_an_original_is_private_and_no_link_is_followed(server: FaultServer, far: Workbench, tmp_path: Path) -> None:
    """It comes into a file of the owner's alone; what cannot be written here ends the run and is nobody's fault."""
    far.ingest(server.add("/a.png", large_picture(), "image/png"))
    with near_cluster(far.settings):
        assert far.fetch(keep_originals=True).done == 1
    assert [file.stat().st_mode & 0o777 for file in far.files("original")] == [0o600]
    url = server.add("/b.png", large_picture(), "image/png")
    server.add("/b.png", large_picture() + b"another", "image/png")
    far.ingest(url)
    (tmp_path / "target").write_text("mine")

    def link(method: str, answer: Any) -> Any:
        if method == "decode":
            ImageCache.of_state(far.state).part_of(url).symlink_to(tmp_path / "target")
        return answer

    def plant(peer: NearPeer) -> None:
        peer.change = link

    with near_cluster(far.settings) as cluster, pytest.raises(NotPlainError, match="is a link"):
        cluster.on_new = plant
        far.fetch(keep_originals=True)
    assert (tmp_path / "target").read_text() == "mine"
    assert far.rows("SELECT count(*) FROM attempts WHERE error_class IS NOT NULL") == [(0,)]


def test_a_known_picture_is_not_decoded_again(server: FaultServer, far: Workbench) -> None:
    """The second URL with the same bytes costs a download and no decoding, nor does a 304."""
    [(_, body)] = scenes(1)
    far.ingest(server.add("/a.jpg", body))
    with near_cluster(far.settings, 1) as cluster:
        assert far.fetch().done == 1
        # Not in one fetch: the second might be there before the first is known.
        far.ingest(server.url("/a.jpg"), server.add("/b.jpg", body))
        assert far.fetch().done == 1
        assert far.fetch(refresh=True).done == 2
    assert sum(peer.asked["decode"] for peer in cluster.every) == 1
    assert sum(peer.asked["download"] for peer in cluster.every) == 4


@pytest.mark.parametrize(("method", "part"), [("decode", "working"), ("read", "data")])
def test_what_was_damaged_on_its_way_is_fetched_again(
    server: FaultServer, far: Workbench, method: str, part: str
) -> None:
    """Bytes that are not those of their hash are never kept."""
    far.ingest(server.add("/a.png", large_picture(), "image/png"))
    left = 1

    def change(asked: str, answer: Any) -> Any:
        nonlocal left
        if asked != method or not left or not answer:
            return answer
        left -= 1
        return answer | {part: b"x" + answer[part][1:]} if method == "decode" else b"x" + answer[1:]

    def spoil(peer: NearPeer) -> None:
        peer.change = change

    with near_cluster(far.settings) as cluster:
        cluster.on_new = spoil
        assert far.fetch(keep_originals=True).done == 1
    assert far.rows("SELECT error_class FROM attempts ORDER BY id") == [("node_failed",), (None,)]
    assert all(hashlib.sha256(file.read_bytes()).hexdigest() == file.stem for file in far.files("working"))
    assert all(hashlib.sha256(file.read_bytes()).hexdigest() == file.name for file in far.files("original"))


def lose_when_asked(cluster: Any, server: FaultServer, path: str, loss: Loss | None) -> threading.Thread:
    """Lose the node that asks for a path, as soon as it does; frozen where there is no loss."""

    def lose() -> None:
        wait_for(lambda: server.requests[path])
        peer = next(peer for peer in cluster.every if peer.asked["download"])
        peer.loss, peer.is_frozen = loss, loss is None

    thread = threading.Thread(target=lose)
    thread.start()
    return thread


def test_what_a_lost_node_had_in_hand_costs_nothing(server: FaultServer, far: Workbench) -> None:
    """Its sources are fetched by others, without an attempt to their name, and the host is not blamed."""
    urls = add_pictures(server, 4)
    for n in range(4):
        server.fail(f"/{n}.jpg", hang, times=1)
    far.ingest(*urls)
    with near_cluster(far.settings) as cluster:
        thread = lose_when_asked(cluster, server, "/0.jpg", Loss("the power went", with_node=True))
        summary = far.fetch(read_timeout=1, per_host=2)
        thread.join()
    assert summary.done == 4
    lost = next(peer for peer in cluster.every if peer.loss)
    assert lost.asked["download"] >= 1
    charged = far.rows("SELECT count(*) FROM attempts WHERE error_class IS NOT NULL AND error_class <> 'timeout'")
    assert charged == [(0,)]


def test_nobody_waits_until_it_is_known_how_a_node_was_lost(server: FaultServer, far: Workbench) -> None:
    """Its sources and their slots are free at once, its process is ended, and no other takes its place meanwhile."""
    urls = add_pictures(server, 6)
    server.fail("/0.jpg", hang, times=1)
    far.ingest(*urls)
    with near_cluster(far.settings) as cluster:
        thread = lose_when_asked(cluster, server, "/0.jpg", Loss("out of reach", with_node=None))
        with far.beside(lambda control: far.fetch(control, read_timeout=60, per_host=1)) as (_, ended):
            assert ended.result(60) == StageSummary(done=6)
        thread.join()
    assert [peer.is_killed for peer in cluster.every if peer.loss] == [True]
    assert (len(cluster.every), [node.fruitless for node in cluster.nodes]) == (2, [0, 0])
    assert far.rows("SELECT max(attempts) FROM sources") == [(1,)]


def test_who_was_never_alone_is_not_out_of_patience(far: Workbench) -> None:
    """The time without a node begins when the last one is lost, however long nobody asked."""

    async def work() -> tuple[bool, bool]:
        cluster = NearCluster(far.settings, 2)
        pool = WorkerPool(cluster, patience_s=0.2, silence_s=60)
        worker = Worker(cluster.grow()[0], 1)
        pool.workers.append(worker)
        before = pool.are_ready()
        await asyncio.sleep(0.3)
        pool.fault(worker, "the disk is full")
        after = pool.are_ready()
        await asyncio.gather(*cluster.ends)
        return before, after

    assert asyncio.run(work()) == (True, False)


def test_a_source_that_takes_processes_with_it_is_charged_at_last(server: FaultServer, far: Workbench) -> None:
    """A process that dies alone is replaced; from the third death on the source pays an attempt each time."""
    far.ingest(server.fail("/deadly.jpg", hang))

    def deadly(peer: NearPeer) -> None:
        ask = peer.ask

        async def dies(method: str, *arguments: Any) -> Any:
            if method == "download":
                peer.loss = Loss("killed", with_node=False)
            return await ask(method, *arguments)

        peer.ask = dies  # type: ignore[method-assign]

    with near_cluster(far.settings, 1) as cluster:
        cluster.on_new = deadly
        summary = far.fetch(max_attempts=2)
    assert (summary.done, summary.dead) == (0, 1)
    assert cluster.nodes[0].fruitless == 4
    rows = far.rows("SELECT error_class, message FROM attempts ORDER BY id")
    assert [row[0] for row in rows] == ["node_failed"] * 2
    assert "died 3 times with this source in hand" in rows[0][1]


@pytest.mark.parametrize("brings", [False, True])
def test_a_node_whose_processes_die_for_nothing_is_left_alone(
    server: FaultServer, far: Workbench, brings: bool
) -> None:
    """Six deaths in a row without a picture in between are enough, downloads or not; with one it goes on."""
    far.ingest(*add_pictures(server, 24))

    def deadly(peer: NearPeer) -> None:
        ask, decoded, alone = peer.ask, 0, asyncio.Lock()

        async def dies(method: str, *arguments: Any) -> Any:
            nonlocal decoded
            if method != "decode":
                return await ask(method, *arguments)
            # One after the other, however slow the machine is: each life brings the same number of pictures.
            async with alone:
                if decoded == brings:
                    peer.loss = Loss("killed", with_node=False)
                answer = await ask(method, *arguments)
                decoded += 1
                return answer

        peer.ask = dies  # type: ignore[method-assign]

    with near_cluster(far.settings, 1) as cluster:
        cluster.on_new = deadly
        if brings:
            assert far.fetch(concurrency=1, max_attempts=99).done == 24
            assert len(cluster.every) > FRUITLESS
        else:
            with pytest.raises(ClusterError, match="killed"):
                far.fetch(concurrency=1, max_attempts=9)
            assert len(cluster.every) == FRUITLESS


def test_nodes_that_are_lost_one_after_the_other_are_no_fault_of_a_source(server: FaultServer, far: Workbench) -> None:
    """Four times in hand when a node goes, of which nobody knows at first that it went: nothing is charged."""
    far.ingest(*add_pictures(server, 1))

    def doomed(peer: NearPeer) -> None:
        ask = peer.ask

        async def dies(method: str, *arguments: Any) -> Any:
            if method == "download" and peer.node is not cluster.nodes[-1]:
                peer.loss = Loss("no answer", with_node=None)
                known = Loss("no answer", with_node=True)
                asyncio.get_running_loop().call_later(0.1, setattr, peer, "loss", known)
            return await ask(method, *arguments)

        peer.ask = dies  # type: ignore[method-assign]

    with near_cluster(far.settings, 5) as cluster:
        cluster.on_new = doomed
        assert far.fetch() == StageSummary(done=1)
    assert [node.fruitless for node in cluster.nodes] == [0] * 5
    assert far.rows("SELECT attempts, crashes FROM sources") == [(1, 0)]


def test_a_node_that_falls_silent_is_given_up(server: FaultServer, far: Workbench) -> None:
    """No sign of life for `ray_timeout` charges an attempt, and another node takes over."""
    urls = add_pictures(server, 1)
    server.fail("/0.jpg", hang, times=1)
    far.ingest(*urls)
    with near_cluster(far.settings) as cluster:
        thread = lose_when_asked(cluster, server, "/0.jpg", None)
        assert far.fetch(ray_timeout=0.3, read_timeout=60).done == 1
        thread.join()
    assert far.rows("SELECT error_class FROM attempts ORDER BY id") == [("node_failed",), (None,)]


def test_a_node_that_cannot_work_is_done_without(server: FaultServer, far: Workbench) -> None:
    """A full disk on a node is that node's trouble: it is left alone, nothing is charged, the other does all."""
    far.ingest(*add_pictures(server, 6))

    def change(method: str, answer: Any) -> Any:
        return {"error": {"class": "", "message": "the disk is full"}} if method == "decode" else answer

    def fill(peer: NearPeer) -> None:
        if peer.node is cluster.nodes[0]:
            peer.change = change

    with near_cluster(far.settings) as cluster:
        cluster.on_new = fill
        assert far.fetch() == StageSummary(done=6)
    assert [node.left_alone for node in cluster.nodes] == ["the disk is full", ""]


@pytest.mark.parametrize(("nodes", "version", "why"), [
    (0, None, "no node of the cluster could fetch for 0.2 s"),
    (2, "0.0.0", "this node has caption-etl .*, the driver 0.0.0"),
])  # fmt: skip
def test_without_a_node_that_can_fetch_the_run_says_why(
    server: FaultServer, far: Workbench, nodes: int, version: str | None, why: str
) -> None:
    """Nothing is asked for, nothing charged."""
    far.ingest(*add_pictures(server, 2))
    with near_cluster(far.settings, nodes) as cluster:
        cluster.version = version or cluster.version
        with pytest.raises(ClusterError, match=why):
            far.fetch(endpoint_patience=0.2 if nodes == 0 else 60)
    assert not server.requests
    assert far.rows("SELECT DISTINCT status, attempts FROM sources") == [("ready", 0)]


def test_a_node_that_joins_takes_part(server: FaultServer, far: Workbench) -> None:
    """More nodes are more downloads at once, where the hosts allow it."""
    meter = Meter(0.1)
    far.ingest(*add_pictures(server, 30))
    for n in range(30):
        server.fail(f"/{n}.jpg", meter)

    with near_cluster(far.settings, 1) as cluster:

        def join() -> None:
            wait_for(lambda: meter.peak == 2)
            cluster.join()

        thread = threading.Thread(target=join)
        thread.start()
        assert far.fetch(concurrency=2, per_host=8).done == 30
        thread.join()
    assert meter.peak == 4
    assert all(peer.asked["download"] for peer in cluster.every)


def test_local_files_are_read_here(far: Workbench, tmp_path: Path) -> None:
    """A file of the driver's disk means nothing on a node."""
    [(_, body)] = scenes(1)
    picture = tmp_path / "cluster" / "here.jpg"
    picture.write_bytes(body)
    far.ingest(str(picture))
    with near_cluster(far.settings) as cluster:
        assert far.fetch().done == 1
    assert not sum(peer.asked["download"] for peer in cluster.every)
