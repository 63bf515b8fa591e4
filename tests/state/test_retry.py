"""`retry_failed`: which dead items get another chance."""

from pathlib import Path

import pytest
from support.states import assert_sound, failed, fetch_all, fetched, put_sources, use_recipe

from etl.domain.statuses import Stage
from etl.domain.views import FailureFilter
from etl.state.read.failures import failed_items, failure_classes
from etl.state.read.reader import Reader
from etl.state.read.story import record_story
from etl.state.store import Store


@pytest.fixture
def dead(store: Store) -> Store:
    """A state with dead sources 0 (a, 404), 1 (a, timeout), 2 (b, 404), and a dead caption of record 3 (b)."""
    hosts = "aabbc"
    put_sources(store, *(f"http://{host}.example/{n}.jpg" for n, host in enumerate(hosts)))
    recipe = use_recipe(store)
    with store.run((Stage.FETCH, Stage.CAPTION)) as run:
        sources, captions = store.sources(run), store.captions(run, recipe)
        items = [item for host in "abc" for item in sources.claim(f"{host}.example", 9)]
        slugs = ["http_404", "timeout", "http_404"]
        sources.fail([failed(item.id, slug, retryable=False) for item, slug in zip(items, slugs, strict=False)])
        sources.commit([fetched(item) for item in items[3:]], recipe)
        captions.fail([failed(captions.claim(1)[0].id, "prompt_too_long", retryable=False)])
    return store


@pytest.mark.parametrize(
    ("chosen", "fetch", "caption"),
    [
        (FailureFilter(), 3, 1),
        (FailureFilter(stage=Stage.FETCH), 3, None),
        (FailureFilter(stage=Stage.CAPTION), None, 1),
        (FailureFilter(stage=Stage.INGEST), None, None),
        (FailureFilter(error_class="http_404"), 2, 0),
        (FailureFilter(error_class="nothing"), 0, 0),
        (FailureFilter(host="a.example"), 2, 0),
        (FailureFilter(host="b.example"), 1, 1),
        (FailureFilter(host="b.example", error_class="timeout"), 0, 0),
        (FailureFilter(key="1"), 1, 0),
        (FailureFilter(key="3"), 0, 1),
        (FailureFilter(key="nobody"), 0, 0),
    ],
)
def test_filters_choose_what_they_say(
    dead: Store, state: Path, chosen: FailureFilter, fetch: int | None, caption: int | None
) -> None:
    """Each filter, and any two together, choose the same items for counting, listing and retrying."""
    expected = {stage: n for stage, n in ((Stage.FETCH, fetch), (Stage.CAPTION, caption)) if n is not None}
    with Reader(state) as reader:
        assert len(list(failed_items(reader, chosen))) == sum(expected.values())
    before = list(dead._connection.db.conn.iterdump())
    assert dead.retry_failed(chosen, dry_run=True) == expected
    assert list(dead._connection.db.conn.iterdump()) == before
    assert dead.retry_failed(chosen) == expected
    assert dead.retry_failed(chosen) == dict.fromkeys(expected, 0)
    assert_sound(state)


def test_retried_items_begin_anew_with_their_history(dead: Store, state: Path) -> None:
    """A retried source has no attempts charged and can be claimed at once; what happened before is still told."""
    dead.retry_failed(FailureFilter(key="1"))
    rows = dead._connection.rows("SELECT status, attempts, crashes, error_class, not_before FROM sources WHERE id = 2")
    assert rows == [("ready", 0, 0, None, 0)]
    fetch_all(dead)
    with Reader(state) as reader:
        story = record_story(reader, "1")
    assert story is not None
    assert [(attempt["n"], attempt["error_class"]) for attempt in story["attempts"]] == [(1, "timeout"), (2, None)]
    assert story["record"]["outcome"] == "pending"


def test_captions_of_an_earlier_recipe_are_left_alone(dead: Store, state: Path) -> None:
    """With another model chosen, failures of the old one are neither listed nor put into a queue nobody works on."""
    use_recipe(dead, "two")
    with Reader(state) as reader:
        assert [failure.stage for failure in failed_items(reader)] == [Stage.FETCH] * 3
        assert {stage for stage, _, _ in failure_classes(reader)} == {Stage.FETCH}
    assert dead.retry_failed(FailureFilter()) == {Stage.FETCH: 3, Stage.CAPTION: 0}
    assert dead._connection.rows("SELECT status FROM captions WHERE id = 1") == [("dead",)]
