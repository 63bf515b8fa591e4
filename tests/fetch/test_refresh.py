"""Asking again for what was fetched: unchanged pictures cost one request, changed ones become new images."""

import pytest
from support.fault_server import Exchange, FaultServer, Resource, status
from support.workbench import PlainCaptioner, Workbench, scenes

from etl.domain.views import StageSummary

FIRST, SECOND = (body for _, body in scenes(2, seed=7))


def test_an_unchanged_picture_is_confirmed_without_its_bytes(server: FaultServer, bench: Workbench) -> None:
    """304 keeps image, caption and the time of the fetch; nothing is sent, decoded or captioned again."""
    bench.ingest(server.add("/a.jpg", FIRST))
    bench.fetch()
    captioner = PlainCaptioner()
    bench.caption(captioner)
    before = bench.rows("SELECT image, etag, last_modified, done_at, final_url FROM sources")
    assert bench.fetch(refresh=True) == StageSummary(done=1)
    assert bench.rows("SELECT image, etag, last_modified, done_at, final_url FROM sources") == before
    assert bench.rows("SELECT http_status FROM sources") == [(304,)]
    assert server.log[-1].headers["If-None-Match"] == before[0][1]
    assert bench.caption(captioner) == StageSummary()


def test_a_changed_picture_becomes_a_new_image(server: FaultServer, bench: Workbench) -> None:
    """New bytes are decoded and captioned; the old caption stays beside the new one."""
    bench.ingest(server.add("/a.jpg", FIRST))
    bench.fetch()
    captioner = PlainCaptioner()
    bench.caption(captioner)
    server.add("/a.jpg", SECOND)
    assert bench.fetch(refresh=True) == StageSummary(done=1)
    assert bench.rows("SELECT outcome FROM records") == [("pending",)]
    assert bench.caption(captioner) == StageSummary(done=1)
    assert bench.rows("SELECT count(*) FROM images") == [(2,)]
    assert bench.counts("captions") == {"done": 2}


def test_a_server_without_validators_sends_all_but_nothing_is_decoded(server: FaultServer, bench: Workbench) -> None:
    """Bytes that hash to an image of the cache need no decoder, from whatever URL they come."""

    def plain(exchange: Exchange) -> None:
        exchange.head(200, {"Content-Length": str(len(FIRST)), "Content-Type": "image/jpeg"})
        exchange.send(FIRST)

    first, second = server.add("/a.jpg", FIRST), server.add("/b.jpg", FIRST)
    server.fail(first, plain)
    server.fail(second, plain)
    bench.ingest(first)
    bench.fetch()
    [copy] = bench.files("working")
    written = copy.stat().st_mtime_ns
    bench.ingest(first, second)
    assert bench.fetch(refresh=True) == StageSummary(done=2)
    assert bench.rows("SELECT count(*) FROM images") == [(1,)]
    assert copy.stat().st_mtime_ns == written


def test_a_picture_that_is_gone_keeps_its_caption(server: FaultServer, bench: Workbench) -> None:
    """A refresh that fails for good makes the source dead; the record stays captioned."""
    bench.ingest(server.add("/a.jpg", FIRST))
    bench.fetch()
    bench.caption(PlainCaptioner())
    server.fail("/a.jpg", status(404))
    assert bench.fetch(refresh=True) == StageSummary(dead=1)
    assert bench.rows("SELECT outcome FROM records") == [("captioned",)]


def test_a_refresh_that_was_cut_short_goes_on_as_one(server: FaultServer, bench: Workbench) -> None:
    """What a stopped refresh left over is revalidated by the next fetch, not downloaded anew."""
    bench.ingest(*(server.add(f"/{n}.jpg", body) for n, (_, body) in enumerate(scenes(3))))
    bench.fetch()
    bench.execute("UPDATE sources SET status = 'ready'")
    assert bench.fetch() == StageSummary(done=3)
    assert bench.rows("SELECT DISTINCT http_status FROM sources") == [(304,)]


@pytest.mark.parametrize("state", ["missing", "evicted"])
def test_validators_are_not_sent_for_a_picture_that_is_gone(server: FaultServer, bench: Workbench, state: str) -> None:
    """Where the cache lost the picture, a 304 would leave nothing: the whole file is asked for."""
    bench.ingest(server.add("/a.jpg", FIRST))
    bench.fetch()
    bench.execute(f"UPDATE images SET state = '{state}'")
    for copy in bench.files("working"):
        copy.unlink()
    assert bench.fetch(refresh=True) == StageSummary(done=1)
    assert "If-None-Match" not in server.log[-1].headers
    assert len(bench.files("working")) == 1
    assert bench.rows("SELECT state FROM images") == [("present",)]


def test_a_lost_file_is_decoded_again_though_its_row_says_present(server: FaultServer, bench: Workbench) -> None:
    """Known bytes count as known only while their working copy lies in the cache."""
    resource = Resource(FIRST, "image/jpeg")
    first, second = server.add("/a.jpg", resource.body), server.add("/b.jpg", resource.body)
    bench.ingest(first)
    bench.fetch()
    for copy in bench.files("working"):
        copy.unlink()
    bench.ingest(first, second)
    assert bench.fetch() == StageSummary(done=1)
    assert len(bench.files("working")) == 1
