"""An archive that is larger than the cache may be: captioned pictures make room for the next ones."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from support.fault_server import FaultServer
from support.workbench import PlainCaptioner, Workbench, scenes

from etl.caption.stage import caption
from etl.domain.statuses import Stage
from etl.domain.views import StageSummary
from etl.errors import DiskFullError
from etl.fetch.stage import fetch
from etl.run.supervisor import run_stages
from etl.run_control import RunControl
from etl.state.store import Store

MakeBench = Callable[..., Workbench]

LIMIT = 40_000
"""Bytes: room for about a third of the pictures below."""

FEW: dict[str, Any] = {"max_cache_size": LIMIT, "concurrency": 2, "per_host": 2}
"""Settings: what is on its way when the cache is full still comes, so little may be on its way."""

ON_ITS_WAY = 30_000
"""Bytes of eight pictures: two downloads, two claimed ahead, four that wait for the decoder."""


@pytest.fixture(autouse=True)
def _none_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pictures as small as these take their turn, as large ones do, or all would be on their way at once."""
    monkeypatch.setattr("etl.fetch.loop.MEMORY_AHEAD", 0)


@pytest.fixture
def urls(server: FaultServer) -> list[str]:
    """Serve forty pictures."""
    return [server.add(f"/{n}.jpg", body) for n, (_, body) in enumerate(scenes(40))]


def cached_bytes(bench: Workbench) -> int:
    """Return the bytes of the cache's files."""
    return sum(path.stat().st_size for path in bench.files())


def run_both(bench: Workbench, captioner: PlainCaptioner, load_s: float = 0.0) -> None:
    """Fetch beside captioning, as one run, with a model that takes so long to load."""
    settings = bench.settings

    def load_and_caption(store: Store, run: int, control: RunControl) -> StageSummary:
        time.sleep(load_s)
        return caption(store, run, settings, captioner, control, more_coming=lambda: control.is_active(Stage.FETCH))

    with Store.open(settings) as store, store.run((Stage.FETCH, Stage.CAPTION)) as run:
        run_stages(store, run, {
            Stage.FETCH: lambda store, run, control: fetch(store, run, settings, control),
            Stage.CAPTION: load_and_caption,
        })  # fmt: skip


def test_captioned_pictures_make_room_for_the_next(server: FaultServer, make_bench: MakeBench, urls: list[str]) -> None:
    """One run captions everything, each picture is fetched once, and the cache keeps to its limit."""
    bench = make_bench(**FEW)
    bench.ingest(*urls)
    run_both(bench, PlainCaptioner())
    assert bench.counts("captions") == {"done": 40}
    assert bench.rows("SELECT count(*) > 10 FROM images WHERE state = 'evicted'") == [(1,)]
    assert cached_bytes(bench) <= LIMIT + ON_ITS_WAY
    assert set(server.requests.values()) == {1}


def test_another_model_gets_the_evicted_pictures_back(
    server: FaultServer, make_bench: MakeBench, urls: list[str]
) -> None:
    """A second model captions everything within the same limit; what had left the cache comes a second time."""
    bench = make_bench(**FEW)
    bench.ingest(*urls)
    run_both(bench, PlainCaptioner("first"))
    gone = bench.rows("SELECT count(*) FROM images WHERE state = 'evicted'")[0][0]
    before = server.requests.total()
    # Until the second model is known, nothing tells which pictures it wants back.
    run_both(bench, PlainCaptioner("second"), load_s=1.0)
    assert bench.counts("captions") == {"done": 80}
    assert cached_bytes(bench) <= LIMIT + ON_ITS_WAY
    assert server.requests.total() - before >= gone


def test_a_full_cache_is_no_fault_when_nothing_is_left_to_fetch(make_bench: MakeBench, urls: list[str]) -> None:
    """Pictures that were on their way together may pass the limit; if they were the last, fetch ends well."""
    bench = make_bench(max_cache_size=1000)
    bench.ingest(*urls[:3])
    assert bench.fetch() == StageSummary(done=3)
    assert cached_bytes(bench) > 1000


def test_alone_fetch_stops_at_the_limit_and_goes_on_after_captioning(
    server: FaultServer, make_bench: MakeBench, urls: list[str]
) -> None:
    """A cache full of pictures that are still to be captioned ends fetch with exit code 5; nothing is lost by it."""
    bench = make_bench(**FEW)
    bench.ingest(*urls)
    turns = 0
    while turns < 10:
        try:
            bench.fetch()
            break
        except DiskFullError as error:
            assert error.exit_code == 5
            assert "max_cache_size" in str(error)
            assert bench.counts("sources").keys() == {"done", "ready"}
        assert bench.caption(PlainCaptioner()).done > 0
        turns += 1
    assert 1 < turns < 10
    bench.caption(PlainCaptioner())
    assert bench.counts("captions") == {"done": 40}
    assert set(server.requests.values()) == {1}
