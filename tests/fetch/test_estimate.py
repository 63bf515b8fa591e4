"""What a fetch would do, before it does it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fault_server import FaultServer, status
from support.workbench import Workbench, scenes

from etl.cli.hosts import estimate_lines
from etl.domain.statuses import Stage
from etl.domain.views import HostInfo
from etl.fetch.estimate import WORKING_COPY_BYTES, FetchEstimate, estimate_of
from etl.state.read.reader import Reader
from etl.state.store import Store

MakeBench = Callable[..., Workbench]

MIB = 2**20


def estimated(bench: Workbench, *, refresh: bool = False) -> FetchEstimate:
    """Return what the next fetch would do."""
    with Reader(bench.state) as reader:
        return estimate_of(reader, bench.settings, refresh=refresh)


def record(number: int, host: str = "one.test", **fields: Any) -> dict[str, Any]:
    """Return a record of the manifest."""
    return {"id": str(number), "url": f"http://{host}/{number}.jpg", **fields}


def seen(bench: Workbench, *hosts: HostInfo) -> None:
    """Let an earlier run have seen how hosts fare."""
    with Store.open(bench.settings) as store, store.run((Stage.FETCH,)) as run:
        store.hosts(run).record(hosts)


def test_pictures_and_bytes_are_counted_by_host_and_once(bench: Workbench) -> None:
    """Records that share a URL count once; sizes come from the first record that has one, as number or as text."""
    bench.ingest(
        record(1, image_size_bytes=3 * MIB), record(2, bytes=str(MIB)), record(3),
        record(4, "two.test"), {**record(4, "two.test", image_size_bytes=500), "id": "4 again"},
        record(5, "two.test", image_size_bytes="unknown"), record(6, "two.test", image_size_bytes=-1),
    )  # fmt: skip
    found = estimated(bench)
    assert [(host.host, host.sources, host.bytes, host.unknown) for host in found.hosts] == [
        ("one.test", 3, 4 * MIB, 1), ("two.test", 3, 500, 2),
    ]  # fmt: skip
    assert (found.sources, found.bytes, found.unknown, found.seconds) == (6, 4 * MIB + 500, 3, None)


def test_only_what_is_due_and_selected_counts(server: FaultServer, bench: Workbench) -> None:
    """What is done, dead or not selected is not estimated; a refresh counts what is done too."""
    urls = [server.add(f"/{n}.jpg", body) for n, (_, body) in enumerate(scenes(3))]
    server.fail("/1.jpg", status(404))
    bench.ingest(*urls)
    bench.fetch()
    assert estimated(bench).sources == 0
    assert estimated(bench).seconds == 0.0
    assert estimated(bench, refresh=True).sources == 2
    bench.retry()
    assert estimated(bench).sources == 1


def test_the_slowest_host_decides_the_time(bench: Workbench) -> None:
    """Bytes and rates seen so far give each host's time, the pictures where no size is known; hosts work together."""
    bench.ingest(
        record(1, image_size_bytes=30 * MIB), record(2, image_size_bytes=10 * MIB), record(3), record(4, "two.test"),
        {"id": "file", "url": "/pictures/a.jpg"},
    )  # fmt: skip
    seen(bench, HostInfo(host="one.test", done=10, bytes=10 * MIB, busy_ms=20_000))
    assert estimated(bench).seconds is None
    seen(bench, HostInfo(host="two.test", done=100, busy_ms=10_000))
    found = {host.host: host.seconds for host in estimated(bench).hosts}
    assert found["one.test"] == pytest.approx(3 * 20 * 2)
    assert found["two.test"] == pytest.approx(0.1)
    assert estimated(bench).seconds == pytest.approx(120)


def test_preferred_mirrors_are_the_hosts_that_are_asked(make_bench: MakeBench) -> None:
    """With prefer_mirror pictures count for the mirror, where their record names one; else for their own host."""
    bench = make_bench(mirror_template="http://store.test/{file}", prefer_mirror=True)
    bench.ingest(record(1, file="a.jpg"), record(2), record(3, file="b.jpg"))
    assert [(host.host, host.sources) for host in estimated(bench).hosts] == [("store.test", 2), ("one.test", 1)]


def test_a_glance_at_a_host_gives_no_rate(bench: Workbench) -> None:
    """A host that was at work for less than five seconds has no rate yet."""
    bench.ingest(record(1))
    seen(bench, HostInfo(host="one.test", done=10, bytes=MIB, busy_ms=4000))
    assert estimated(bench).seconds is None


def test_the_disk_holds_copies_originals_and_what_is_under_way(make_bench: MakeBench) -> None:
    """Working copies scale with their edge, kept originals count, and a limited cache never grows past its limit."""
    bench = make_bench(longest_edge=512, concurrency=1, decoders=1)
    bench.ingest(*(record(n, image_size_bytes=MIB) for n in range(20)))
    copies = 20 * WORKING_COPY_BYTES / 4
    assert estimated(bench).disk_bytes == pytest.approx(copies + 5 * MIB)
    kept = make_bench(longest_edge=512, concurrency=1, decoders=1, keep_originals=True)
    assert estimated(kept).disk_bytes == pytest.approx(copies + 25 * MIB)
    assert estimated(make_bench(max_cache_size=1000)).disk_bytes == 1000


def test_sizes_seen_so_far_replace_the_guess(server: FaultServer, bench: Workbench) -> None:
    """Once there are pictures, their mean sizes stand for those to come."""
    [(_, body)] = scenes(1)
    bench.ingest(server.add("/a.jpg", body))
    bench.fetch()
    [copy] = bench.files("working")
    bench.ingest(server.url("/a.jpg"), record(2))
    assert estimated(bench).disk_bytes == copy.stat().st_size + len(body)


def test_an_estimate_changes_nothing_and_asks_nobody(server: FaultServer, bench: Workbench, tmp_path: Path) -> None:
    """It reads the database only: no request, no file, no row."""
    bench.ingest(server.add("/a.jpg", scenes(1)[0][1]))
    before = {path: path.stat().st_mtime_ns for path in bench.state.rglob("*.db")}
    estimated(bench)
    assert {path: path.stat().st_mtime_ns for path in bench.state.rglob("*.db")} == before
    assert server.log == []
    assert not (tmp_path / "state" / "images").exists()


def test_local_files_have_their_size_and_no_rate(bench: Workbench, tmp_path: Path) -> None:
    """The size of a local file is looked up, but of none that fetch would refuse; nobody speaks of rates never seen."""
    (tmp_path / "a.jpg").write_bytes(b"x" * 1500)
    paths = {"a": tmp_path / "a.jpg", "b": tmp_path / "gone.jpg", "c": "/etc/passwd"}
    bench.ingest(*({"id": key, "path": str(path)} for key, path in paths.items()))
    found = estimated(bench)
    assert [(host.host, host.bytes, host.unknown) for host in found.hosts] == [("", 1500, 2)]
    lines = list(estimate_lines(found, refresh=False))
    assert lines[1] == "host      local files: 3 pictures, 1.5 KiB and 2 of unknown size"
    assert lines[2].startswith("time      not estimated for local files")
