"""The reader: progress, failures, stories and pages, each asked beside an open store as another process would."""

from pathlib import Path

import pytest
from support.states import captioned, failed, fetch_all, fetched, put_records, put_sources, use_recipe

from etl.clock import now_ms
from etl.domain.statuses import HostState, RunState, Stage
from etl.domain.views import FailureFilter, HostInfo
from etl.state.read import reader as queries
from etl.state.read.export_rows import export_rows
from etl.state.read.failures import Failure, failed_items, failure_classes, retry_classes
from etl.state.read.manifests import all_manifests, manifest_lines
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.state.read.recipes import all_recipes
from etl.state.read.runs import latest_runs
from etl.state.read.sources import unreachable_hosts
from etl.state.read.story import record_story
from etl.state.store import Store


def _nonzero(counts: dict[str, int]) -> dict[str, int]:
    return {name: n for name, n in counts.items() if n}


@pytest.mark.usefixtures("store")
def test_progress_of_a_new_state(state: Path) -> None:
    """A state without records shows zeros and no run."""
    with Reader(state) as reader:
        progress = read_progress(reader)
    assert progress.run is None
    assert not any(_nonzero(c) for c in (progress.records, progress.outcomes, progress.sources, progress.captions))
    assert (progress.fetched_per_s, progress.captioned_per_s, progress.bytes_fetched) == (0, 0, 0)


def test_progress_counts_everything(store: Store, state: Path) -> None:
    """Counts, bytes, rates and the run come from one instant; captions count for the current recipe only."""
    records = [{"id": str(n), "url": f"http://a.example/{n}.jpg"} for n in range(6)] + [{"id": "bad"}]
    put_records(store, records)
    recipe = use_recipe(store)
    run = store.begin_run([Stage.FETCH, Stage.CAPTION])
    sources, captions = store.sources(run), store.captions(run, recipe)
    items = sources.claim("a.example", 5)
    sources.commit([fetched(item) for item in items[:3]], recipe)
    sources.fail([failed(items[3].id, "http_404", retryable=False), failed(items[4].id)])
    first, _ = captions.claim(2)
    captions.commit([captioned(first)], now_ms())
    with Reader(state) as reader:
        progress = read_progress(reader)
        use_recipe(store, "two")
        assert _nonzero(read_progress(reader).captions) == {}
    assert _nonzero(progress.records) == {"active": 6, "invalid": 1}
    assert _nonzero(progress.outcomes) == {"captioned": 1, "failed": 1, "pending": 4}
    assert _nonzero(progress.sources) == {"done": 3, "dead": 1, "retry": 1, "ready": 1}
    assert _nonzero(progress.captions) == {"done": 1, "running": 1, "ready": 1}
    assert progress.bytes_fetched == 300
    assert progress.fetched_per_s == 3 * progress.captioned_per_s > 0
    assert progress.bytes_per_s == pytest.approx(100 * progress.fetched_per_s)
    assert progress.run is not None
    assert (progress.run.state, progress.run.stages) == (RunState.RUNNING, ("fetch", "caption"))


def test_rates_forget_what_is_older_than_a_minute(store: Store, state: Path) -> None:
    """Work done more than a minute ago is in no rate."""
    put_sources(store, "http://a.example/1.jpg")
    fetch_all(store)
    with store._connection.transaction() as db:
        db.conn.execute("UPDATE sources SET done_at = done_at - 61000")
        db.conn.execute("UPDATE runs SET started_at = started_at - 100000")
    with Reader(state) as reader:
        assert read_progress(reader).fetched_per_s == 0


def test_heartbeat_and_end_are_shown(store: Store, state: Path) -> None:
    """Readers see what the run last said of itself, and nothing that it says after its end."""
    run = store.begin_run([Stage.FETCH])
    store.heartbeat(run, RunState.PAUSED)
    with Reader(state) as reader:
        assert latest_runs(reader, 1)[0].state == RunState.PAUSED
        store.end_run(run, RunState.PARTIAL, "some failed")
        store.heartbeat(run, RunState.RUNNING)
        store.end_run(run, RunState.DONE)
        (latest,) = latest_runs(reader)
    assert (latest.state, latest.message) == (RunState.PARTIAL, "some failed")


def test_failures_name_the_record_that_needs_them(store: Store, state: Path) -> None:
    """A failure of each stage carries key, URL, attempts and how many records need it, whichever URL they use."""
    put_records(store, [
        {"id": "a", "url": "http://a.example/1.jpg"},
        {"id": "b", "url": "http://a.example/1.jpg"},
        {"id": "c", "url": "http://b.example/same.jpg"},
        {"id": "d", "url": "http://c.example/same.jpg", "title": "The harbour"},
        {"id": "e", "note": "no picture"},
    ])  # fmt: skip
    recipe = use_recipe(store)
    run = store.begin_run([Stage.FETCH, Stage.CAPTION])
    sources, captions = store.sources(run), store.captions(run, recipe)
    (item,) = sources.claim("a.example", 1)
    sources.fail([failed(item.id, "http_404", retryable=False)])
    for host in ("b.example", "c.example"):
        sources.commit([fetched(item, "same") for item in sources.claim(host, 1)], recipe)
    captions.fail([failed(item.id, "prompt_too_long", retryable=False) for item in captions.claim(9)])
    with Reader(state) as reader:
        found = list(failed_items(reader))
        only = list(failed_items(reader, FailureFilter(key="d")))
    missing = "no image: none of the fields external_url, url, image_url, image, path or their like has a value"
    assert found == [
        Failure(
            stage="ingest",
            item=5,
            error_class="no_image_field",
            message=missing,
            key="e",
            url="",
            attempts=0,
            records=1,
        ),
        Failure(
            stage="fetch",
            item=1,
            error_class="http_404",
            message="it was http_404",
            key="a",
            url="http://a.example/1.jpg",
            attempts=1,
            records=2,
        ),
        Failure(
            stage="caption",
            item=1,
            error_class="prompt_too_long",
            message="it was prompt_too_long",
            key="c",
            url="http://b.example/same.jpg",
            attempts=1,
            records=1,
        ),
        Failure(
            stage="caption",
            item=2,
            error_class="prompt_too_long",
            message="it was prompt_too_long",
            key="d",
            url="http://c.example/same.jpg",
            attempts=1,
            records=1,
        ),
    ]
    assert only == [found[3]]


def test_failures_come_in_pages(store: Store, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of a page, every failure is listed once, and a limit is a limit."""
    put_sources(store, *(f"http://a.example/{n}.jpg" for n in range(23)))
    with store.run((Stage.FETCH,)) as run:
        queue = store.sources(run)
        slugs = ["http_404", "http_403", "tls"]
        queue.fail([failed(i.id, slugs[i.id % 3], retryable=False) for i in queue.claim("a.example", 99)])
    with Reader(state) as reader:
        whole = list(failed_items(reader))
        for page in (1, 3, 23, 24):
            monkeypatch.setattr(queries, "PAGE", page)
            assert list(failed_items(reader)) == whole
            assert list(failed_items(reader, limit=7)) == whole[:7]
            assert [f.item for f in failed_items(reader, FailureFilter(error_class="tls"))] == list(range(2, 24, 3))
        assert len({failure.item for failure in whole}) == 23
        assert failure_classes(reader) == [("fetch", "http_403", 8), ("fetch", "http_404", 7), ("fetch", "tls", 8)]


def test_waiting_items_are_counted_by_their_last_error(store: Store, state: Path) -> None:
    """Items that wait for another attempt are told by the class of their last failure; fresh ones are not."""
    put_sources(store, *(f"http://a.example/{n}.jpg" for n in range(4)))
    queue = store.sources(store.begin_run([Stage.FETCH]))
    queue.fail([failed(item.id) for item in queue.claim("a.example", 3)])
    with Reader(state) as reader:
        assert retry_classes(reader) == [("fetch", "timeout", 3)]


def test_story_tells_all_of_one_record(store: Store, state: Path) -> None:
    """The story holds line, source, image, captions of all recipes and the attempts of both stages."""
    put_records(store, [{"id": "1", "url": "http://a.example/1.jpg", "title": "Fête à Québec"}])
    fetch_all(store)
    for name in ("one", "two"):
        queue = store.captions(store.begin_run([Stage.CAPTION]), use_recipe(store, name))
        queue.enqueue_possible()
        (item,) = queue.claim(1)
        queue.commit([captioned(item, f"by {name}")], now_ms())
    with Reader(state) as reader:
        story = record_story(reader, "1")
        assert record_story(reader, "nobody") is None
    assert story is not None
    assert story["record"]["line"] == 1
    assert "Fête" in story["record"]["prompt"]
    assert [(caption["model"], caption["text"]) for caption in story["captions"]] == [
        ("one", "by one"),
        ("two", "by two"),
    ]
    assert [attempt["stage"] for attempt in story["attempts"]] == ["fetch", "caption", "caption"]
    assert story["image"]["bytes"] == 100


def test_story_of_an_invalid_record(store: Store, state: Path) -> None:
    """A record that never got a source still has its line and its reason told."""
    put_records(store, [{"id": "1", "note": "no picture"}, {"id": "2", "url": "http://a.example/2.jpg"}])
    with Reader(state) as reader:
        story = record_story(reader, "1")
    assert story is not None
    assert (story["source"], story["image"], story["captions"]) == (None, None, [])
    assert story["record"]["error_class"] == "no_image_field"


def test_lines_and_export_rows_come_in_order(store: Store, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of any size give the records in manifest order, each once, removed ones left out."""
    records = [{"id": str(n), "url": f"http://a.example/{n}.jpg"} for n in range(11)]
    put_records(store, records)
    put_records(store, records[:3] + records[4:][::-1])
    expected = ["0", "1", "2", *(str(n) for n in range(10, 3, -1))]
    with Reader(state) as reader:
        ((manifest, _, _, complete),) = all_manifests(reader)
        assert complete
        for page in (1, 4, 100):
            monkeypatch.setattr(queries, "PAGE", page)
            assert [row.key for row in export_rows(reader, manifest, None)] == expected
            assert len(list(manifest_lines(reader, manifest))) == len(expected)


def test_recipes_tell_which_is_current(store: Store, state: Path) -> None:
    """All recipes are listed, oldest first, and exactly one is the current."""
    for name in ("one", "two", "one"):
        use_recipe(store, name)
    with Reader(state) as reader:
        assert [(recipe.model, recipe.current) for recipe in all_recipes(reader)] == [("one", True), ("two", False)]


def test_a_new_question_is_a_function_over_a_reader(store: Store, state: Path) -> None:
    """What nobody asked before needs one function beside the others, and no change to the reader."""

    def formats(reader: Reader) -> dict[str, int]:
        return dict(reader.rows("SELECT mime, count(*) FROM images GROUP BY mime"))

    put_sources(store, "http://a.example/1", "http://a.example/2")
    fetch_all(store)
    with Reader(state) as reader:
        assert formats(reader) == {"image/jpeg": 2}


def test_a_host_that_gave_a_picture_was_reached(store: Store, state: Path) -> None:
    """One refused connection does not make a host unreachable; that none came, that it was given up, or that nobody
    asks it any more does, and then what waits for it counts.
    """
    ends = {"once.example": "connect", "never.example": "dns", "gone.example": "host_down"}
    waiting = {"slow.example": "timeout", "silent.example": "timeout"}
    put_records(store, [
        {"id": f"{n}{host}", "url": f"http://{host}/{n}.jpg"} for host in (*ends, *waiting) for n in range(2)
    ])  # fmt: skip
    run = store.begin_run([Stage.FETCH])
    sources = store.sources(run)
    for host, slug in ends.items():
        first, second = sources.claim(host, 2)
        sources.fail([failed(second.id, slug, retryable=False)])
        if host == "never.example":
            sources.fail([failed(first.id, slug, retryable=False)])
        else:
            sources.commit([fetched(first)], use_recipe(store))
    sources.fail([failed(sources.claim(host, 1)[0].id, slug) for host, slug in waiting.items()])
    store.hosts(run).record([HostInfo(host="silent.example", state=HostState.NOT_ANSWERING)])
    with Reader(state) as reader:
        assert unreachable_hosts(reader, 5) == [
            ("never.example", "dns", 2), ("silent.example", "timeout", 2), ("gone.example", "host_down", 1)
        ]  # fmt: skip
