"""The caption queue: what is queued for which recipe, and what becomes of it."""

from pathlib import Path

import pytest
from support.states import (
    assert_sound,
    captioned,
    failed,
    fetch_all,
    fetched,
    put_records,
    put_sources,
    use_recipe,
)

from etl.clock import now_ms
from etl.domain.statuses import Stage
from etl.ingest.options import IngestOptions
from etl.ingest.prompts import PromptTemplate
from etl.state.captions import CaptionQueue
from etl.state.store import Store

URL = "http://a.example/1.jpg"


@pytest.fixture
def queue(store: Store) -> CaptionQueue:
    """The queue of a current recipe; two pictures are there, neither is queued."""
    put_sources(store, URL, "http://a.example/2.jpg")
    fetch_all(store)
    return store.captions(store.begin_run([Stage.CAPTION]), use_recipe(store))


def _statuses(store: Store) -> list[object]:
    return [row[0] for row in store._connection.rows("SELECT status FROM captions ORDER BY id")]


def _outcomes(store: Store) -> list[object]:
    return [row[0] for row in store._connection.rows("SELECT outcome FROM records ORDER BY id")]


def test_every_pair_of_picture_and_prompt_is_queued_once(store: Store, state: Path) -> None:
    """Records that share picture and prompt share a caption; another title is another prompt, so another caption."""
    records = [
        {"id": "1", "url": URL, "title": "The harbour"},
        {"id": "2", "url": "http://b.example/same.jpg", "title": "The harbour"},
        {"id": "3", "url": URL, "title": "The old port"},
    ]
    put_records(store, records)
    fetch_all(store, ["same", "same"])
    queue = store.captions(store.begin_run([Stage.CAPTION]), use_recipe(store))
    assert queue.enqueue_possible() == 2
    assert queue.enqueue_possible() == 0
    items = queue.claim(10)
    assert sorted("old port" in item.prompt for item in items) == [False, True]
    queue.commit([captioned(items[0])], now_ms())
    assert sorted(map(str, _outcomes(store))) == ["captioned", "captioned", "pending"]
    assert_sound(state)


def test_fetch_queues_captions_as_it_commits(store: Store, state: Path) -> None:
    """With a recipe given, the commit of a picture queues its captions in the same transaction."""
    put_sources(store, URL)
    recipe = use_recipe(store)
    run = store.begin_run([Stage.FETCH, Stage.CAPTION])
    sources, captions = store.sources(run), store.captions(run, recipe)
    (item,) = sources.claim("a.example", 1)
    assert captions.open_items() == 0
    sources.commit([fetched(item)], recipe)
    assert captions.open_items() == 1
    assert len(captions.claim(5)) == 1
    assert captions.claim(5) == []
    assert captions.claim_suspect() is None
    assert_sound(state)


def test_commit_keeps_everything_of_the_caption(store: Store, state: Path, queue: CaptionQueue) -> None:
    """Text, tokens, finish reason, run and time are stored; the record is captioned, the attempt in the history."""
    queue.enqueue_possible()
    first, second = queue.claim(2)
    before = now_ms()
    assert queue.commit([captioned(first, "A quay."), captioned(second)], before) == 2
    row = store._connection.rows(
        "SELECT status, text, tokens, finish_reason, attempts, lease_run, done_at >= ? FROM captions", (before,)
    )[0]
    assert row == ("done", "A quay.", 3, "stop", 1, None, 1)
    assert _outcomes(store) == ["captioned", "captioned"]
    assert store._connection.rows("SELECT count(*) FROM attempts WHERE stage = 'caption'") == [(2,)]
    assert queue.next_due_ms() is None
    assert_sound(state)


def test_late_caption_changes_nothing(store: Store, state: Path, queue: CaptionQueue) -> None:
    """A caption of a lost lease is not stored, nor is a second one of the same item."""
    queue.enqueue_possible()
    (item, _) = queue.claim(2)
    queue.release_all()
    assert queue.commit([captioned(item, "late")], now_ms()) == 0
    other = store.captions(store.begin_run([Stage.CAPTION]), queue.recipe)
    (again, _) = other.claim(2)
    before = list(store._connection.db.conn.iterdump())
    assert queue.commit([captioned(item, "late")], now_ms()) == 0
    assert queue.fail([failed(item.id, retryable=False)]) == [False]
    queue.release([item.id])
    assert list(store._connection.db.conn.iterdump()) == before
    assert other.commit([captioned(again, "mine"), captioned(again, "twice")], now_ms()) == 1
    assert store._connection.rows("SELECT text FROM captions WHERE status = 'done'") == [("mine",)]
    assert_sound(state)


def test_new_recipe_captions_anew_and_keeps_the_old(store: Store, state: Path, queue: CaptionQueue) -> None:
    """Another model captions everything beside the old captions; going back finds those still done."""
    queue.enqueue_possible()
    queue.commit([captioned(item) for item in queue.claim(9)], now_ms())
    other = store.captions(store.begin_run([Stage.CAPTION]), use_recipe(store, "two"))
    assert _outcomes(store) == ["pending", "pending"]
    assert other.enqueue_possible() == 2
    assert (other.open_items(), queue.open_items()) == (2, 0)
    assert queue.claim(9) == []
    (item, _) = other.claim(9)
    other.fail([failed(item.id, "prompt_too_long", retryable=False)])
    assert _outcomes(store) == ["failed", "pending"]
    assert use_recipe(store) == queue.recipe
    assert _outcomes(store) == ["captioned", "captioned"]
    assert store._connection.rows("SELECT count(*) FROM captions WHERE status = 'done'") == [(2,)]
    assert_sound(state)


def test_changed_prompt_cancels_open_captions_and_dead_ones(store: Store, state: Path, queue: CaptionQueue) -> None:
    """Captions that no record asks for any more are cancelled, failed ones too; done ones stay; all can come back."""
    queue.enqueue_possible()
    first, second = queue.claim(2)
    queue.commit([captioned(first)], now_ms())
    queue.fail([failed(second.id, "prompt_too_long", retryable=False)])
    records = [{"id": str(n), "url": f"http://a.example/{n + 1}.jpg"} for n in range(2)]
    put_records(store, records, IngestOptions(template=PromptTemplate("What is this?")))
    assert _outcomes(store) == ["pending", "pending"]
    assert queue.enqueue_possible() == 2
    assert _statuses(store) == ["done", "cancelled", "ready", "ready"]
    put_records(store, records)
    assert queue.enqueue_possible() == 1
    assert _statuses(store) == ["done", "ready", "cancelled", "cancelled"]
    assert store._connection.rows("SELECT attempts, error_class FROM captions WHERE id = 2") == [(0, None)]
    assert _outcomes(store) == ["captioned", "pending"]
    assert_sound(state)


def test_retry_of_a_caption_waits_and_ends(store: Store, state: Path, queue: CaptionQueue) -> None:
    """A caption that fails retryably is claimed again until its attempts are spent, then its record has failed."""
    queue.enqueue_possible()
    for last in (False, False, True):
        item = queue.claim(1)[0]
        assert item.id == 1 or last
        queue.release([other.id for other in queue.claim(5)])
        assert queue.fail([failed(1, "generation")]) == [last]
        with store._connection.transaction() as db:
            db.conn.execute("UPDATE captions SET not_before = 0 WHERE id = 1")
    assert _statuses(store)[0] == "dead"
    assert _outcomes(store) == ["failed", "pending"]
    assert_sound(state)


def test_caption_outlives_a_source_that_dies_later(store: Store, state: Path, queue: CaptionQueue) -> None:
    """A captioned record stays captioned when its picture is lost and cannot be fetched again."""
    queue.enqueue_possible()
    queue.commit([captioned(item) for item in queue.claim(9)], now_ms())
    assert store.images().requeue_missing([1]) == 1
    with store.run((Stage.FETCH,)) as run:
        (item,) = store.sources(run).claim("a.example", 5)
        store.sources(run).fail([failed(item.id, "http_404", retryable=False)])
    assert _outcomes(store) == ["captioned", "captioned"]
    assert_sound(state)


def test_caption_waits_for_a_picture_that_is_gone(store: Store, state: Path, queue: CaptionQueue) -> None:
    """A caption whose picture is missing is not claimed; it is queued again with the picture."""
    queue.enqueue_possible()
    store.images().requeue_missing([1])
    assert queue.enqueue_possible() == 0
    assert [item.id for item in queue.claim(9)] == [2]
    with store.run((Stage.FETCH,)) as run:
        sources = store.sources(run)
        sources.commit([fetched(item) for item in sources.claim("a.example", 5)], queue.recipe)
    assert [item.id for item in queue.claim(9)] == [1]
    assert_sound(state)


def test_a_worker_that_dies_condemns_no_caption_before_it_was_alone(
    store: Store, state: Path, queue: CaptionQueue
) -> None:
    """A caption in hand at three deaths is claimed alone; two more there, and it is dead, its neighbour untouched."""
    queue.enqueue_possible()
    for _ in range(3):
        both = queue.claim(5)
        assert len(both) == 2
        assert queue.fail([failed(item.id, "crashed", crashed=True) for item in both]) == [False, False]
        store._connection.db.execute("UPDATE captions SET not_before = 0")
    assert queue.claim(5) == []
    for last in (False, True):
        suspect = queue.claim_suspect()
        assert suspect is not None
        assert queue.fail([failed(suspect.id, "crashed", crashed=True)]) == [last]
        store._connection.db.execute("UPDATE captions SET not_before = 0 WHERE id = ?", [suspect.id])
    other = queue.claim_suspect()
    assert other is not None
    assert queue.commit([captioned(other)], now_ms()) == 1
    assert sorted(map(str, _statuses(store))) == ["dead", "done"]
    assert_sound(state)
