"""Garbage collection on a state with real files."""

import base64
import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cached import ORIGINAL, WORKING, CachedState
from support.workbench import PlainCaptioner, Workbench, scenes

from etl.domain.views import StageSummary
from etl.export.stage import ExportOptions, export
from etl.images.cache import ImageCache
from etl.maintenance.gc import GcSummary, Removed, gc
from etl.maintenance.verify import verify
from etl.net.resume import take_note
from etl.state.read.reader import Reader
from etl.state.store import Store

DAY_S = 86_400


@pytest.fixture
def state(tmp_path: Path) -> Iterator[CachedState]:
    """Six pictures with originals: 0 and 1 captioned, 4 and 5 no longer needed; an orphan and four unfinished files."""
    with CachedState(tmp_path) as made:
        made.ingest(*"012345")
        made.fetch(originals=True)
        made.caption("0", "1")
        made.ingest(*"0123")
        made.cache.put_working(b"nobody's".ljust(100))
        made.cache.new_part().write_bytes(bytes(10))
        for age_days in (6, 8):
            part = made.cache.part_of(f"http://a.example/{age_days}")
            part.write_bytes(bytes(20))
            take_note(part, {"etag": '"1"', "content-length": "1000000"})
            for path in (part, part.with_name(f"{part.name}.note")):
                os.utime(path, (time.time() - age_days * DAY_S,) * 2)
        yield made


def collect(state: CachedState, **options: bool) -> GcSummary:
    """Collect, and check that the summary says what became of the cache."""
    before = {path: path.stat().st_size for path in state.files()}
    summary = gc(state.store, **options)
    after = sum(path.stat().st_size for path in state.files())
    kinds = (summary.orphans, summary.parts, summary.unneeded, summary.originals, summary.captioned)
    if summary.dry_run:
        assert after == sum(before.values()) == summary.cache_bytes + sum(kind.bytes for kind in kinds)
    else:
        assert summary.cache_bytes == after
        assert sum(kind.files for kind in kinds) == len(before) - len(state.files())
        assert sum(kind.bytes for kind in kinds) == sum(before.values()) - after
    return summary


def test_pictures_that_stood_in_records(tmp_path: Path) -> None:
    """They go with the last record whose line has them; those of duplicates and of what is not selected stay."""
    texts = [base64.b64encode(b"GIF89a" + bytes([n]) * 90).decode() for n in range(5)]
    bench, out = Workbench(tmp_path), tmp_path / "out.jsonl"
    given: list[tuple[str, Any]] = [("a", texts[:2]), ("a", texts[0]), ("b", texts[2])]
    kept = [{"id": key, "image": image} for key, image in given]
    bench.ingest(*kept, {"id": "c", "images": texts[2:]})
    bench.ingest(*kept)
    # As in a part whose other part has fetched the second picture.
    bench.execute("UPDATE records SET source = NULL, state = 'invalid', error_class = 'x' WHERE key = 'a#2'")
    bench.execute("UPDATE records SET state = 'unselected' WHERE key = 'b'")
    for dry_run, left, expected in ((True, 5, Removed(2, 192)), (False, 3, Removed(2, 192)), (False, 3, Removed())):
        with Store.open(bench.settings) as store:
            ImageCache.of_state(bench.state).prepare(originals=False)
            assert gc(store, dry_run=dry_run).pictures == expected
        assert bench.rows("SELECT count(*) FROM own_pictures") == [(left,)]
    with Reader(bench.state) as reader:
        export(reader, str(out), ExportOptions())
    assert not any(b"etl-picture" in line for line in out.read_bytes().splitlines())


def there(state: CachedState) -> str:
    """Return the keys whose working copies are there."""
    return "".join(key for key in "012345" if state.working_path(key).exists())


def test_what_nothing_needs_goes(state: CachedState) -> None:
    """Orphans, parts that cannot be resumed or are old, unneeded working copies; the rest stays, a young part too."""
    summary = collect(state)
    assert summary.orphans == Removed(1, 100)
    assert (summary.parts.files, summary.unneeded) == (3, Removed(2, 2 * WORKING))
    assert (summary.originals, summary.captioned) == (Removed(), Removed())
    assert there(state) == "0123"
    assert state.cache.part_of("http://a.example/6").exists()
    assert state.states() == dict.fromkeys("0123", "present") | dict.fromkeys("45", "evicted")
    found = verify(state.store)
    assert (found.missing, found.missing_originals, found.orphans, found.requeued) == (0, 0, 0, 0)


def test_a_second_collection_finds_nothing(state: CachedState) -> None:
    """What is collected is collected."""
    collect(state)
    again = collect(state)
    assert {again.orphans, again.parts, again.unneeded, again.originals, again.captioned} == {Removed()}


def test_captioned_pictures_and_originals_go_when_asked(state: CachedState) -> None:
    """With their options they go, all of them; what is still to be captioned stays."""
    summary = collect(state, captioned=True, originals=True)
    assert (summary.captioned, summary.originals) == (Removed(2, 2 * WORKING), Removed(6, 6 * ORIGINAL))
    assert there(state) == "23"
    assert verify(state.store).requeued == 0


@pytest.mark.parametrize("options", [{}, {"captioned": True}, {"originals": True, "captioned": True}])
@pytest.mark.parametrize("limit", [0, 3500])
def test_a_dry_run_tells_what_would_be_done(tmp_path: Path, options: dict[str, bool], limit: int) -> None:
    """It changes neither database nor files, and counts what the real collection then removes, shared files too."""
    with CachedState(tmp_path, max_cache_size=limit) as state:
        state.ingest(*"012345")
        state.fetch(copies={"1": "0", "2": "0", "5": "4"}, originals=True)
        state.caption("0", "1", "3")
        state.ingest(*"01234")
        state.cache.put_working(b"nobody's".ljust(100))
        files, rows = state.files(), list(state.store._connection.db.conn.iterdump())
        told = collect(state, dry_run=True, **options)
        assert (state.files(), list(state.store._connection.db.conn.iterdump())) == (files, rows)
        done = collect(state, **options)
        assert dataclasses.replace(told, dry_run=False) == done


def test_above_the_limit_the_oldest_go(tmp_path: Path) -> None:
    """The setting asks for originals first, then for captioned pictures, until nine tenths of it are left."""
    with CachedState(tmp_path, max_cache_size=5000) as state:
        state.ingest(*"012345")
        state.fetch(originals=True)
        state.caption()
        summary = collect(state)
        assert (summary.originals.files, summary.captioned.files, summary.cache_bytes) == (6, 2, 4000)
        assert there(state) == "2345"
    with CachedState(tmp_path, max_cache_size=4000) as state:
        assert collect(state).captioned == Removed(), "it is not above its limit"


def test_what_is_still_to_be_captioned_stays_above_the_limit(tmp_path: Path) -> None:
    """A limit that work alone exceeds is not kept."""
    with CachedState(tmp_path, max_cache_size=500) as state:
        state.ingest("0", "1")
        state.fetch()
        assert collect(state).cache_bytes == 2 * WORKING


def test_an_evicted_picture_comes_back_for_another_model(bench: Workbench, tmp_path: Path) -> None:
    """From eviction to the second model's caption: fetched again once, decoded to the same copy, captioned once."""
    for number, (_, content) in enumerate(scenes(3)):
        (tmp_path / f"{number}.jpg").write_bytes(content)
    bench.ingest(*({"id": str(number), "path": f"{number}.jpg"} for number in range(3)))
    assert bench.fetch().done == 3
    assert bench.caption(PlainCaptioner()).done == 3
    before = set(bench.files("working"))
    with Store.open(bench.settings) as store:
        assert gc(store, captioned=True).captioned.files == 3
    assert bench.fetch() == StageSummary(), "the captions are there: nothing is needed"
    assert bench.caption(PlainCaptioner("another")) == StageSummary(), "the pictures are not there"
    assert bench.fetch().done == 3
    assert set(bench.files("working")) == before
    assert bench.caption(PlainCaptioner("another")).done == 3
    assert bench.counts("captions") == {"done": 6}
