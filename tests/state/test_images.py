"""Evicting images that nothing needs, and bringing them back when something does."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cached import CachedState
from support.states import assert_sound, failed

from etl.domain.statuses import Stage
from etl.ingest.options import Selection
from etl.ingest.stage import reselect
from etl.state.images import EvictionReason


@pytest.fixture
def state(tmp_path: Path) -> Iterator[CachedState]:
    """Records 1 to 4; the pictures of 1, 2 and 3 are here, 1 and 2 are captioned."""
    with CachedState(tmp_path) as made:
        made.ingest("1", "2", "3")
        made.fetch()
        made.caption("1", "2")
        yield made
        assert_sound(made.store.directory)


def evict(state: CachedState, grounds: EvictionReason = EvictionReason.CAPTIONED) -> list[str]:
    """Evict all that may go on these grounds; return the keys."""
    images = state.store.images()
    chosen = [one.image for one in images.candidates(grounds, 0, 100) if one.may_go]
    images.evict(grounds, chosen)
    return [key for key, now in state.states().items() if now == "evicted"]


def outcomes(state: CachedState) -> dict[str, str]:
    return dict(state.rows("SELECT key, outcome FROM records WHERE state = 'active' ORDER BY key"))


def test_captioned_pictures_may_go_and_their_records_stay_captioned(state: CachedState) -> None:
    """A picture whose caption is done is evicted without a trace in the outcomes or the queue."""
    assert evict(state) == ["1", "2"]
    assert outcomes(state) == {"1": "captioned", "2": "captioned", "3": "pending"}
    assert state.ready() == set()


@pytest.mark.parametrize("status", ["none", "ready", "retry", "running", "dead"])
def test_a_picture_still_to_be_captioned_stays(state: CachedState, status: str) -> None:
    """Whatever else has become of its caption, a picture without one is not evicted."""
    if status == "none":
        state.ingest("1", "2", "3", "4")
        state.fetch()
    elif status != "ready":
        with state.store.run((Stage.CAPTION,)) as run:
            queue = state.store.captions(run, state.recipe)
            (item,) = queue.claim(9)
            if status == "running":
                assert evict(state) == ["1", "2"]
                return
            queue.fail([failed(item.id, retryable=status == "retry")])
    assert evict(state) == ["1", "2"]


def test_a_picture_that_is_being_captioned_stays(state: CachedState) -> None:
    """Also when the caption in work is another recipe's, or no record needs it any more."""
    state.use_recipe("two")
    with state.store.run((Stage.CAPTION,)) as run:
        queue = state.store.captions(run, state.recipe)
        queue.enqueue_possible()
        queue.release([item.id for item in queue.claim(9)[1:]])
        state.use_recipe("one")
        assert evict(state) == ["2"]
        state.ingest("2", "3")
        assert evict(state, EvictionReason.UNNEEDED) == ["2"]


def test_every_record_of_a_picture_counts(tmp_path: Path) -> None:
    """A picture that came under two URLs stays until the records of both have their captions."""
    with CachedState(tmp_path) as state:
        state.ingest("1", "2", prompt="Describe {{ record.id }}.")
        state.fetch({"2": "1"})
        state.caption("1")
        assert evict(state) == []
        state.caption("2")
        assert evict(state) == ["1", "2"]


def test_a_caption_of_another_recipe_does_not_count(state: CachedState) -> None:
    """Only the current recipe decides: what another one has captioned is still to be captioned."""
    state.use_recipe("two")
    assert evict(state) == []
    state.caption("3")
    assert evict(state) == ["3"]


def test_a_picture_that_no_record_needs_may_go(state: CachedState) -> None:
    """When its records have left the manifest, a picture is evicted, captioned or not."""
    state.ingest("2")
    assert evict(state, EvictionReason.UNNEEDED) == ["1", "3"]


def test_the_grounds_are_asked_again_at_the_eviction(state: CachedState) -> None:
    """Between choosing and evicting another recipe may have become the current one; then nothing is evicted."""
    images = state.store.images()
    chosen = [one.image for one in images.candidates(EvictionReason.CAPTIONED, 0, 100) if one.may_go]
    state.use_recipe("two")
    assert len(chosen) == 2
    assert images.evict(EvictionReason.CAPTIONED, chosen) == []
    assert "evicted" not in state.states().values()


def test_a_shared_working_copy_stays_until_its_last_image_goes(tmp_path: Path) -> None:
    """The file of two images is named for removal only with the second of them."""
    with CachedState(tmp_path) as state:
        state.ingest("1", "2")
        state.fetch(copies={"2": "1"})
        state.caption("1")
        images = state.store.images()
        assert state.working_path("1") == state.working_path("2")
        assert images.shared() == {state.working_path("1").stem: 2}
        assert images.evict(EvictionReason.CAPTIONED, [1, 2]) == []
        assert state.states() == {"1": "evicted", "2": "present"}
        state.caption("2")
        assert images.evict(EvictionReason.CAPTIONED, [1, 2]) == [state.working_path("1").stem]


def test_originals_are_forgotten_alone(tmp_path: Path) -> None:
    """Without its original an image is as present as before."""
    with CachedState(tmp_path) as state:
        state.ingest("1")
        state.fetch(originals=True)
        images = state.store.images()
        assert images.evict(EvictionReason.ORIGINAL, [1]) == [state.original_path("1").name]
        assert images.evict(EvictionReason.ORIGINAL, [1]) == []
        assert state.states() == {"1": "present"}


FOR_ONE = "{{ 'What is it?' if record.id == '2' else 'Describe it.' }}"

COMING_BACK: dict[str, tuple[Callable[[CachedState], object], set[str]]] = {
    "another recipe": (lambda s: s.use_recipe("two"), {"1", "2"}),
    "another prompt": (lambda s: s.ingest("1", "2", "3", prompt="What is it?"), {"1", "2"}),
    "another prompt for one": (lambda s: s.ingest("1", "2", prompt=FOR_ONE), {"2"}),
    "the same manifest": (lambda s: s.ingest("1", "2", "3"), set()),
    "fewer records": (lambda s: s.ingest("1"), set()),
}


@pytest.mark.parametrize("name", COMING_BACK)
def test_evicted_pictures_come_back_when_they_are_needed(state: CachedState, name: str) -> None:
    """What needs a new caption is fetched again, and captioned when it is here; nothing else is fetched."""
    change, needed = COMING_BACK[name]
    evict(state)
    change(state)
    assert state.ready() == needed
    assert not needed & set(state.caption()), "a caption was claimed for a picture that is not here"
    assert set(state.fetch()) == needed
    assert {key for key, now in state.states().items() if now == "present"} == {"3", *needed}
    state.caption()
    assert set(outcomes(state).values()) == {"captioned"}
    assert state.ready() == set()


def test_the_fetch_that_brings_a_picture_back_queues_its_caption(state: CachedState) -> None:
    """Beside captioning, the commit of the picture alone puts its caption into the queue."""
    evict(state)
    state.use_recipe("two")
    state.fetch(recipe=state.recipe)
    statuses = state.rows("SELECT status FROM captions WHERE recipe = ? ORDER BY image", state.recipe)
    assert statuses == [("ready",), ("ready",)]


def test_a_caption_that_is_given_another_chance_waits_for_its_picture(state: CachedState) -> None:
    """`retry-failed` on an evicted picture has it fetched again; until then the caption is not claimed."""
    state.use_recipe("two")
    state.caption("1", "2", dead={"1"})
    state.use_recipe("one")
    state.recipe = 1
    assert evict(state) == ["1", "2"]
    state.use_recipe("two")
    assert state.ready() == set(), "its caption has failed: nothing more is to be done"
    state.retry()
    assert state.ready() == {"1"}
    assert outcomes(state) == {"1": "pending", "2": "captioned", "3": "pending"}
    assert state.caption() == ["3"]
    assert state.fetch() == ["1"]
    assert state.caption() == ["1"]


def test_waiting_captions_of_an_older_recipe_are_not_claimed_without_their_picture(state: CachedState) -> None:
    """A caption that was queued before another recipe let its picture be evicted waits for the picture."""
    state.use_recipe("two")
    state.caption("3")
    state.use_recipe("one")
    assert evict(state) == ["1", "2"]
    state.use_recipe("two")
    assert state.caption() == []
    assert set(state.fetch()) == {"1", "2"}
    assert state.caption() == ["1", "2"]


def test_selecting_records_again_brings_their_pictures_back(state: CachedState) -> None:
    """A picture that was evicted while its record was not selected comes back with the selection."""
    reselect(state.store, Selection(limit=2))
    assert evict(state, EvictionReason.UNNEEDED) == ["3"]
    reselect(state.store, Selection())
    assert state.ready() == {"3"}


def test_identical_bytes_under_another_url_bring_a_picture_back(state: CachedState) -> None:
    """An evicted image becomes present when its bytes come from elsewhere."""
    evict(state)
    state.ingest("1", "2", "3", "4")
    assert state.fetch({"4": "1"}) == ["4"]
    assert state.states() == {"1": "present", "2": "evicted", "3": "present", "4": "present"}


def test_only_one_of_two_sources_is_needed(state: CachedState) -> None:
    """Where a picture has two sources, the one that no record needs is not asked."""
    state.ingest("1", "2", "3", "4")
    state.fetch({"4": "1"})
    evict(state)
    state.ingest("2", "3", "4")
    state.use_recipe("two")
    assert state.ready() == {"2", "4"}
