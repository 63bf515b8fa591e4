"""The fetch stage over a real server, real files and real decoder processes."""

import contextlib
import hashlib
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from support.fault_server import (
    Exchange,
    FaultServer,
    announce,
    disconnect,
    drip,
    garbage,
    hang,
    html,
    ok,
    redirect,
    reset_at_once,
    status,
    truncated,
)
from support.watching import wait_for
from support.workbench import Workbench, encoded, scenes

from etl import run_control as flow_module
from etl.domain.statuses import Stage
from etl.domain.views import StageSummary
from etl.errors import ConfigError, DiskFullError
from etl.fetch import source as fetch_source_module
from etl.fetch.stage import fetch
from etl.images.cache import ImageCache
from etl.run_control import RunControl
from etl.state.store import Store

MakeBench = Callable[..., Workbench]


class Meter:
    """Answers after a while, and knows how many requests were open at once: at most per host, and in total."""

    def __init__(self, hold_s: float) -> None:
        self.peak: Counter[str] = Counter()
        self._hold_s = hold_s
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> None:
        host = urlsplit(exchange.handler.path).hostname or ""
        with self._lock:
            self._open[host] += 1
            self.peak[host] = max(self.peak[host], self._open[host])
            self.peak["all"] = max(self.peak["all"], self._open.total())
        exchange.closing.wait(self._hold_s)
        with self._lock:
            self._open[host] -= 1
        ok(exchange)


def add_pictures(server: FaultServer, *paths: str) -> list[str]:
    """Serve a different scene under each path; return the URLs."""
    return [server.add(path, body) for path, (_, body) in zip(paths, scenes(len(paths)), strict=True)]


def test_a_url_is_fetched_once_however_many_records_name_it(server: FaultServer, bench: Workbench) -> None:
    """Two records with one URL cost one request, now and in any later run."""
    [url] = add_pictures(server, "/a.jpg")
    bench.ingest({"id": "first", "url": url}, {"id": "second", "url": url})
    assert bench.fetch() == StageSummary(done=1)
    assert bench.fetch() == StageSummary()
    assert server.requests["/a.jpg"] == 1
    assert bench.rows("SELECT count(DISTINCT source), count(*) FROM records") == [(1, 2)]


def test_identical_bytes_become_one_image(server: FaultServer, bench: Workbench) -> None:
    """Two URLs with the same bytes share an image row and a working copy."""
    [(_, body)] = scenes(1)
    bench.ingest(server.add("/a.jpg", body), server.add("/b.jpg", body))
    assert bench.fetch().done == 2
    assert bench.rows("SELECT sha256, bytes FROM images") == [(hashlib.sha256(body).hexdigest(), len(body))]
    assert len(bench.files("working")) == 1


def test_permanent_faults_are_final_at_once(server: FaultServer, bench: Workbench, tmp_path: Path) -> None:
    """Each permanent fault ends dead in its own class after a single request, or none where none was allowed."""
    [(_, body)] = scenes(1)
    wanted = {
        server.fail("/401", status(401)): "http_403",
        server.fail("/403", status(403)): "http_403",
        server.url("/404"): "http_404",
        server.fail("/410", status(410)): "http_404",
        server.fail("/400", status(400)): "http_4xx",
        server.fail("/login.jpg", html): "not_an_image",
        server.add("/words.jpg", b"just some words", "image/jpeg"): "not_an_image",
        server.add("/cut.jpg", body[: len(body) // 2]): "truncated_image",
        server.add("/bomb.png", encoded(Image.new("1", (9000, 9000)), "PNG"), "image/png"): "too_many_pixels",
        server.fail("/huge.tif", announce(10**9)): "too_large",
        server.fail("/loop", redirect("/loop")): "redirects",
        "http://10.255.0.1/private.jpg": "blocked_address",
        str(tmp_path / "nowhere.jpg"): "local_file",
    }
    bench.ingest(*wanted)
    summary = bench.fetch(max_pixels=50_000_000, max_bytes=10**8)
    assert (summary.done, summary.retried, summary.dead) == (0, 0, len(wanted))
    assert dict(bench.rows("SELECT url, error_class FROM sources WHERE status = 'dead'")) == wanted
    assert set(bench.rows("SELECT attempts FROM sources")) == {(1,)}
    assert all(count == 1 for path, count in server.requests.items() if path != "/loop")
    assert bench.rows("SELECT DISTINCT outcome FROM records") == [("failed",)]
    assert not bench.files()


def test_a_picture_fails_alike_from_a_folder_and_over_http(
    server: FaultServer, bench: Workbench, tmp_path: Path
) -> None:
    """Class and message are the file's own, wherever it came from; a page's first words are among them."""
    [(_, body)] = scenes(1)
    files = {
        "page.jpg": b"<html><title>Quota exceeded</title>",
        "far.tif": b"II+\0\x08\0\0\0" + (2**60).to_bytes(8, "little"),
        "cut.jpg": body[: len(body) // 2],
        "icon.jpg": b"\0\0\1\0\1\0\x10\x10",
        "broken.png": encoded(Image.new("L", (9, 9)), "PNG")[:20] + bytes(40),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        server.add(f"/{name}", data)
    bench.ingest(*[str(tmp_path / name) for name in files], *[server.url(f"/{name}") for name in files])
    bench.fetch()
    rows = bench.rows("SELECT url, error_class, error FROM sources ORDER BY id")
    local, remote = ([row[1:] for row in half] for half in (rows[: len(files)], rows[len(files) :]))
    assert local == remote
    assert [slug for slug, _ in local] == [
        "not_an_image", "corrupt_image", "truncated_image", "not_an_image", "corrupt_image",
    ]  # fmt: skip
    assert "not a picture: Quota exceeded" in local[0][1]


def test_a_truncated_picture_is_accepted_where_enough_of_it_is_there(server: FaultServer, bench: Workbench) -> None:
    """With `accept_truncated` such a picture is done, flagged; one with less still fails."""
    [(_, body)] = scenes(1)
    bench.ingest(
        server.add("/most.jpg", body[: len(body) * 9 // 10]), server.add("/little.jpg", body[: len(body) // 4])
    )
    bench.fetch(accept_truncated=0.5)
    assert bench.rows("SELECT status, error_class FROM sources ORDER BY id") == [
        ("done", None), ("dead", "truncated_image"),
    ]  # fmt: skip
    assert bench.rows("SELECT flags FROM images") == [("truncated",)]


def test_retryable_faults_are_tried_to_the_limit_and_no_more(server: FaultServer, bench: Workbench) -> None:
    """Each passing fault gets its class and exactly the allowed attempts, all of them on record."""
    wanted = {
        server.fail("/429", status(429)): "http_429",
        server.fail("/500", status(500)): "http_5xx",
        server.fail("/503", status(503)): "http_5xx",
        server.fail("/short", truncated): "truncated",
        server.fail("/reset", reset_at_once): "reset",
        server.fail("/bye", disconnect): "reset",
        server.fail("/smtp", garbage): "protocol",
        server.fail("/hang", hang): "timeout",
        "http://127.0.0.1:1/refused.jpg": "connect",
    }
    bench.ingest(*wanted)
    summary = bench.fetch(read_timeout=0.3)
    assert (summary.done, summary.retried, summary.dead) == (0, 2 * len(wanted), len(wanted))
    assert dict(bench.rows("SELECT url, error_class FROM sources WHERE status = 'dead'")) == wanted
    # What a kept connection lost goes out anew, and belongs to the same attempt.
    assert {n for path, n in server.requests.items() if path not in ("/reset", "/bye")} == {3}
    assert min(server.requests.values()) == 3
    assert set(bench.rows("SELECT count(*), max(n) FROM attempts GROUP BY item")) == {(3, 3)}
    assert not bench.files()


def test_a_passing_fault_is_forgotten_but_for_its_history(server: FaultServer, bench: Workbench) -> None:
    """A source that fails twice and then answers is done, with three attempts and no error left on it."""
    [url] = add_pictures(server, "/a.jpg")
    server.fail("/a.jpg", status(503), times=2)
    bench.ingest(url)
    assert bench.fetch() == StageSummary(done=1, retried=2)
    assert bench.rows("SELECT status, attempts, error_class, http_status FROM sources") == [("done", 3, None, 200)]
    assert bench.rows("SELECT error_class FROM attempts ORDER BY n") == [("http_5xx",), ("http_5xx",), (None,)]


def test_waits_between_attempts_grow(server: FaultServer, bench: Workbench) -> None:
    """The wait doubles from attempt to attempt, with jitter of at most one half."""
    bench.ingest(server.fail("/a.jpg", status(500)))
    bench.fetch(backoff=0.2, backoff_cap=5.0)
    first, second, third = (request.at for request in server.log)
    assert 0.1 <= second - first < 0.6
    assert 0.2 <= third - second < 0.9


def test_retry_after_holds_the_host_and_nobody_else(
    server: FaultServer, make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that asks for a pause gets no request of any kind meanwhile; the other hosts are served."""
    monkeypatch.setenv("HTTP_PROXY", server.base)
    paths = [f"http://{host}.test/{n}.jpg" for n in range(5) for host in ("busy", "quick")]
    urls = add_pictures(server, *paths)
    server.fail("http://busy.test/0.jpg", status(429, retry_after="1"), times=1)
    bench = make_bench(per_host=1, concurrency=4)
    bench.ingest(*urls)
    assert bench.fetch() == StageSummary(done=10, retried=1)
    busy = [request.at for request in server.log if "busy" in request.target]
    quick = [request.at for request in server.log if "quick" in request.target]
    assert len(busy) == 6
    assert busy[1] - busy[0] >= 0.95
    assert max(quick) < busy[1]


def test_the_limits_hold_per_host_and_in_total(
    server: FaultServer, make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests at once reach both limits, so the work is spread, and never pass them."""
    monkeypatch.setenv("HTTP_PROXY", server.base)
    meter = Meter(hold_s=0.15)
    urls = add_pictures(server, *(f"http://{host}.test/{n}.jpg" for n in range(6) for host in "abc"))
    for url in urls:
        server.fail(url, meter)
    bench = make_bench(per_host=2, concurrency=5)
    bench.ingest(*urls)
    assert bench.fetch().done == 18
    assert meter.peak == {"a.test": 2, "b.test": 2, "c.test": 2, "all": 5}


def test_what_archives_hold_becomes_working_copies(server: FaultServer, bench: Workbench, tmp_path: Path) -> None:
    """URLs with spaces, PDF, TIFF, PNG and local files all end as JPEGs within the longest edge."""
    page = Image.new("RGB", (600, 400), (200, 200, 180))
    page.save(tmp_path / "local file.png")
    sources = {
        server.add("/fonds 1/VM97 S3.TIF", encoded(page, "TIFF"), "image/tiff"): "image/tiff",
        server.add("/plan.pdf", encoded(page, "PDF"), "application/pdf"): "application/pdf",
        server.add("/page.png", encoded(page, "PNG"), "application/octet-stream"): "image/png",
        str(tmp_path / "local file.png"): "image/png",
    }
    bench.ingest(*sources)
    assert bench.fetch().done == 4
    found = bench.rows("SELECT s.url, i.mime FROM sources s JOIN images i ON i.id = s.image")
    assert dict(found) == sources
    assert server.requests["/fonds 1/VM97 S3.TIF"] == 1
    for path in bench.files("working"):
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, max(picture.size)) == ("JPEG", "RGB", 256)
    assert (tmp_path / "local file.png").exists()


def test_originals_are_kept_only_when_asked(server: FaultServer, make_bench: MakeBench) -> None:
    """With `keep_originals` the bytes of the server lie in the cache, under their hash; else only the copy."""
    first, second = add_pictures(server, "/a.jpg", "/b.jpg")
    large = scenes(3)[2][1].ljust(100_000, b"\0")
    bench = make_bench()
    bench.ingest(first)
    bench.fetch()
    assert not bench.files("original")
    bench.ingest(first, second, server.add("/large.jpg", large))
    bench.fetch(keep_originals=True)
    bodies = [scenes(2)[1][1], large]
    kept = {path.name: path.read_bytes() for path in bench.files("original")}
    assert kept == {hashlib.sha256(body).hexdigest(): body for body in bodies}
    assert not bench.files("parts")
    assert bench.rows("SELECT original_kept FROM images ORDER BY id") == [(0,), (1,), (1,)]


def test_another_longest_edge_is_refused(server: FaultServer, bench: Workbench) -> None:
    """Working copies of two sizes would make two recipes of one; nothing is requested then."""
    first, second = add_pictures(server, "/a.jpg", "/b.jpg")
    bench.ingest(first)
    bench.fetch()
    bench.ingest(first, second)
    with pytest.raises(ConfigError, match="longest edge of 256 pixels, not 512"):
        bench.fetch(longest_edge=512)
    assert server.requests["/b.jpg"] == 0
    assert bench.counts("sources") == {"done": 1, "ready": 1}


def test_a_disk_without_room_ends_the_run_before_the_first_request(server: FaultServer, bench: Workbench) -> None:
    """Below `min_free` the stage raises and leaves every source as it was."""
    bench.ingest(*add_pictures(server, "/a.jpg"))
    with pytest.raises(DiskFullError, match="fewer than min_free"):
        bench.fetch(min_free=10**15)
    assert not server.requests
    assert bench.rows("SELECT status, attempts, lease_run FROM sources") == [("ready", 0, None)]
    assert bench.rows("SELECT state FROM runs ORDER BY id DESC LIMIT 1") == [("failed",)]


def test_a_disk_that_fills_up_keeps_what_was_committed(
    server: FaultServer, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the room goes in the middle, what was fetched stays done and the rest is ready again."""
    bench.ingest(*add_pictures(server, *(f"/{n}.jpg" for n in range(40))))
    monkeypatch.setattr(
        ImageCache, "free_bytes", lambda _: 0 if bench.counts("sources").get("done", 0) >= 2 else 10**12
    )
    with pytest.raises(DiskFullError):
        bench.fetch(min_free=1024, concurrency=1)
    counts = bench.counts("sources")
    assert counts["done"] >= 2
    assert counts["done"] + counts["ready"] == 40
    assert not bench.files("parts")


def decoders() -> list[int]:
    """Process ids of this process's children that are busy with a large picture, told by their memory."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            pages = int((stat.parent / "statm").read_text().split()[1])
            # A child that has just been forked is as large as this process; only its command tells.
            is_decoder = b"etl.images.decoder_worker" in (stat.parent / "cmdline").read_bytes()
            if parent == os.getpid() and is_decoder and pages * os.sysconf("SC_PAGESIZE") > 110 * 1024**2:
                found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
def test_a_picture_that_kills_its_decoder_costs_only_itself(server: FaultServer, tmp_path: Path) -> None:
    """Crashes are counted apart from attempts; the third is final, and the neighbours are done."""
    # Not the fixture's: decoders as they are, not forks.
    bench = Workbench(tmp_path)
    url = server.add("/deadly.png", encoded(Image.new("1", (15000, 15000)), "PNG"), "image/png")
    bench.ingest(url, *add_pictures(server, "/a.jpg", "/b.jpg"))
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.002):
            for pid in decoders():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        summary = bench.fetch(max_attempts=10)
    finally:
        over.set()
        killer.join()
    assert (summary.done, summary.dead) == (2, 1)
    found = bench.rows("SELECT status, error_class, crashes, error FROM sources WHERE url = ?", url)
    assert found[0][:3] == ("dead", "decoder_crashed", 3)
    assert "SIGKILL" in found[0][3]


def test_a_fault_of_our_own_does_not_end_the_run(
    server: FaultServer, bench: Workbench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that nobody foresaw is logged, retried and in the end final for its source alone."""
    first, second = add_pictures(server, "/a.jpg", "/b.jpg")
    bench.ingest(first, second)
    right = fetch_source_module._told

    def faulty(item, *rest, **more):  # type: ignore[no-untyped-def]
        if item.url == first:
            raise ZeroDivisionError("nobody foresaw this")
        return right(item, *rest, **more)

    monkeypatch.setattr(fetch_source_module, "_told", faulty)
    assert bench.fetch() == StageSummary(done=1, retried=2, dead=1)
    found = bench.rows("SELECT error_class, error, attempts FROM sources WHERE status = 'dead'")
    assert found == [("internal", "ZeroDivisionError: nobody foresaw this", 3)]
    assert "Traceback" in caplog.text
    assert not bench.files("parts")


def test_a_stop_lets_what_is_in_flight_finish(server: FaultServer, bench: Workbench) -> None:
    """After a stop nothing more is requested, and what was on its way is committed."""
    urls = add_pictures(server, *(f"/{n}.jpg" for n in range(6)))
    for n in range(6):
        server.fail(f"/{n}.jpg", drip(10_000))
    bench.ingest(*urls)
    with bench.beside(lambda control: bench.fetch(control, per_host=2)) as (control, running):
        wait_for(lambda: server.requests.total() == 2)
        control.stop()
        summary = running.result(timeout=10)
    assert summary == StageSummary(done=2)
    assert server.requests.total() == 2
    assert bench.counts("sources") == {"done": 2, "ready": 4}


def test_after_the_grace_period_everything_is_given_back(
    server: FaultServer, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that hangs is cancelled, costs no attempt, and leaves no part and no lease behind."""
    monkeypatch.setattr(flow_module, "GRACE_S", 0.3)
    [good] = add_pictures(server, "/good.jpg")
    body = scenes(1)[0][1]
    slow = [server.add(f"/slow{n}.jpg", body) for n in range(3)]
    for n in range(3):
        server.fail(f"/slow{n}.jpg", drip(100))
    bench.ingest(good, *slow)
    with bench.beside(lambda control: bench.fetch(control, read_timeout=60)) as (control, running):
        wait_for(lambda: bench.counts("sources").get("done") == 1 and server.requests.total() == 4)
        begun = time.monotonic()
        control.stop()
        summary = running.result(timeout=10)
    assert time.monotonic() - begun < 3
    assert summary == StageSummary(done=1, released=3)
    assert set(bench.rows("SELECT status, attempts, lease_run FROM sources")) == {("done", 1, None), ("ready", 0, None)}
    assert not bench.files("parts")


def test_a_pause_stops_requests_until_it_ends(server: FaultServer, bench: Workbench) -> None:
    """During a pause nothing is requested; afterwards the run goes on to its end."""
    urls = add_pictures(server, *(f"/{n}.jpg" for n in range(6)))
    meter = Meter(hold_s=0.2)
    for n in range(6):
        server.fail(f"/{n}.jpg", meter)
    bench.ingest(*urls)
    with bench.beside(lambda control: bench.fetch(control, per_host=1)) as (control, running):
        wait_for(lambda: server.requests.total() == 2)
        control.pause()
        wait_for(lambda: not bench.counts("sources").get("running"))
        before = server.requests.total()
        time.sleep(0.5)
        assert server.requests.total() == before < 6
        assert not running.done()
        control.resume()
        assert running.result(timeout=10).done == 6


def test_what_a_dead_process_left_unfinished_is_swept(server: FaultServer, bench: Workbench) -> None:
    """Parts from before are gone after the next fetch; finished files stay."""
    first, second = add_pictures(server, "/a.jpg", "/b.jpg")
    bench.ingest(first)
    bench.fetch()
    [finished] = bench.files("working")
    parts = bench.state / "images" / "parts"
    for name in ("0123.part", "4567.part"):
        (parts / name).write_bytes(b"half a picture")
    bench.ingest(first, second)
    bench.fetch()
    assert not bench.files("parts")
    assert finished in bench.files("working")


def test_sources_that_a_dead_run_held_are_fetched_again(server: FaultServer, bench: Workbench) -> None:
    """A lease of a run that is gone is taken back at the next start and costs no attempt."""
    bench.ingest(*add_pictures(server, "/a.jpg", "/b.jpg"))
    with Store.open(bench.settings) as store:
        # As a kill leaves it: claimed, and the run never ended.
        assert len(store.sources(store.begin_run([Stage.FETCH])).claim("127.0.0.1", 5)) == 2
    assert bench.counts("sources") == {"running": 2}
    assert bench.fetch() == StageSummary(done=2)
    assert bench.rows("SELECT DISTINCT attempts FROM sources") == [(1,)]
    assert bench.rows("SELECT state FROM runs ORDER BY id") == [("done",), ("crashed",), ("done",)]


def test_a_connection_that_keeps_breaking_costs_no_attempt_while_it_brings_something(
    bench: Workbench, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty breaks in one large file are resumed, each from its byte, and charged as one attempt."""
    monkeypatch.setattr("etl.fetch.schemes.RESUME_PAUSE_S", 0.01)
    body = encoded(Image.effect_noise((2400, 2400), 60), "TIFF")
    piece = len(body) // 20
    sent: list[tuple[int, int]] = []

    def breaking(exchange: Exchange) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", exchange.handler.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        end = min(start + piece, len(body))
        sent.append((start, end))
        head = {"Content-Length": str(len(body) - start), "ETag": '"one"'}
        ranged = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        exchange.head(206 if asked else 200, head | (ranged if asked else {}))
        exchange.send(body[start:end])
        exchange.close()

    url = server.add("/large.tif", body, "image/tiff")
    server.fail("/large.tif", breaking)
    bench.ingest(url)
    summary = bench.fetch()
    assert (summary.done, summary.dead) == (1, 0)
    assert [start for start, _ in sent[1:]] == [end for _, end in sent[:-1]], "each resumption is where the last ended"
    assert sent[-1][1] == len(body)
    assert len(sent) >= 20
    assert bench.rows("SELECT status, attempts FROM sources") == [("done", 1)]
    assert not bench.files("parts")


def test_a_download_that_was_stopped_is_resumed_by_the_next_run(bench: Workbench, server: FaultServer) -> None:
    """What a stopped run had of a file is there for the next one, which asks for the rest alone."""
    body = encoded(Image.effect_noise((1000, 1000), 60), "TIFF")
    held = threading.Event()

    def half(exchange: Exchange) -> None:
        exchange.head(200, {"Content-Length": str(len(body)), "ETag": '"one"'})
        exchange.send(body[: len(body) // 2])
        held.set()
        exchange.closing.wait(30)

    def rest(exchange: Exchange) -> None:
        start = len(body) // 2
        assert exchange.handler.headers["Range"] == f"bytes={start}-"
        exchange.head(
            206,
            {
                "Content-Length": str(len(body) - start),
                "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}",
                "ETag": '"one"',
            },
        )
        exchange.send(body[start:])

    url = server.add("/large.tif", body, "image/tiff")
    server.fail("/large.tif", half)
    bench.ingest(url)
    control = RunControl()
    with Store.open(bench.settings) as store, store.run((Stage.FETCH,)) as run:
        stage = threading.Thread(target=fetch, args=(store, run, bench.settings, control))
        stage.start()
        assert held.wait(10)
        wait_for(lambda: any(path.stat().st_size > 0 for path in bench.files("parts")), 10)
        control._stop_at = -1000.0  # the grace period is over at once
        stage.join(10)
        assert not stage.is_alive()
    server.fail("/large.tif", rest)
    assert bench.fetch().done == 1
    assert server.requests["/large.tif"] == 2
