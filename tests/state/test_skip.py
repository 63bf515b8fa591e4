"""Captions that are skipped for a flag of their picture: an outcome of its own, which a later run may take back."""

import dataclasses
from pathlib import Path

import pytest
from support.states import assert_sound, captioned, fetched, put_records, settings_for, use_recipe

from etl.clock import now_ms
from etl.domain.statuses import Stage
from etl.state.checks import deep_problems
from etl.state.images import PLACEHOLDER_URLS, EvictionReason
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.state.read.sources import has_picture
from etl.state.store import Store

FLAGS = {"a": ("blank",), "b": ("tiny",), "c": ("blank", "tiny"), "d": ()}
"""What the decoder says of each record's picture."""


class Bench:
    """One state, of which each run may skip other flags."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        with self.open() as store:
            put_records(store, [{"id": key, "url": f"http://a.example/{key}.jpg"} for key in FLAGS])

    def open(self, *skip: str) -> Store:
        return Store.open(settings_for(self.state, skip_flag=skip))

    def fetch(self, *skip: str, ahead: bool = False, flags: dict[str, tuple[str, ...]] = FLAGS) -> None:
        """Fetch all that is due; ``ahead`` of the model, so that no recipe is known yet."""
        with self.open(*skip) as store, store.run((Stage.FETCH,)) as run:
            recipe = None if ahead else use_recipe(store)
            queue = store.sources(run)
            for item in queue.claim("a.example", 100):
                image = fetched(item)
                said = dataclasses.replace(image.decoded, flags=flags[item.url[-5]])
                assert queue.commit([dataclasses.replace(image, decoded=said)], recipe) == 1

    def caption(self, *skip: str) -> str:
        """Caption all that is queued; return the keys of the records whose pictures were looked at."""
        with self.open(*skip) as store, store.run((Stage.CAPTION,)) as run:
            queue = store.captions(run, use_recipe(store))
            queue.enqueue_possible()
            assert not queue.enqueue_possible(), "asked again and again, it would never be finished"
            items = queue.claim(100)
            made = self.keys(f"c.id IN ({', '.join(str(item.id) for item in items) or 'NULL'})", store)
            queue.commit([captioned(item) for item in items], now_ms())
            return made

    def keys(self, which: str, store: Store | None = None) -> str:
        sql = (
            "SELECT group_concat(r.key, '') FROM (SELECT * FROM records ORDER BY key) r "
            "JOIN sources s ON s.id = r.source LEFT JOIN captions c ON c.image = s.image"
        )
        if store is not None:
            return str(store._connection.rows(f"{sql} WHERE {which}")[0][0] or "")
        with Reader(self.state) as reader:
            return str(reader.rows(f"{sql} WHERE {which}")[0][0] or "")

    def sound(self) -> dict[str, int]:
        """Assert that counters, outcomes and all else agree; return the outcomes."""
        assert_sound(self.state)
        with Reader(self.state) as reader:
            assert [line for line in deep_problems(reader) if "success" not in line] == []
            return {outcome: n for outcome, n in read_progress(reader).outcomes.items() if n}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


TABLE: dict[tuple[str, ...], tuple[str, dict[str, int]]] = {
    (): ("abcd", {"captioned": 4}),
    ("blank",): ("bd", {"captioned": 2, "skipped": 2}),
    ("tiny",): ("ad", {"captioned": 2, "skipped": 2}),
    ("blank", "tiny"): ("d", {"captioned": 1, "skipped": 3}),
    ("placeholder", "truncated"): ("abcd", {"captioned": 4}),
}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("skip", TABLE)
def test_what_is_skipped(skip: tuple[str, ...], ahead: bool, bench: Bench) -> None:
    """Pictures with such a flag never come to the model, whether it was there before them or after."""
    made, outcomes = TABLE[skip]
    bench.fetch(*skip, ahead=ahead)
    assert bench.caption(*skip) == made
    assert bench.sound() == outcomes
    with Reader(bench.state) as reader:
        assert not has_picture(reader, pending_only=True, skip=skip), "a model would be loaded for nothing"
        assert has_picture(reader, pending_only=True) == ("skipped" in outcomes)


CHANGES: list[tuple[tuple[str, ...], tuple[str, ...], str, dict[str, int]]] = [
    (("blank",), (), "ac", {"captioned": 4}),
    (("blank", "tiny"), ("blank",), "b", {"captioned": 2, "skipped": 2}),
    (("blank",), ("tiny",), "a", {"captioned": 3, "skipped": 1}),
    ((), ("blank", "tiny"), "", {"captioned": 4}),
]


@pytest.mark.parametrize("evicted", [False, True])
@pytest.mark.parametrize(("before", "after", "made", "outcomes"), CHANGES)
def test_another_choice_in_a_later_run(
    before: tuple[str, ...], after: tuple[str, ...], made: str, outcomes: dict[str, int], evicted: bool, bench: Bench
) -> None:
    """What is no longer skipped is captioned, fetched again where it has left the cache; no caption is given up."""
    bench.fetch(*before)
    bench.caption(*before)
    if evicted:
        with bench.open(*before) as store:
            images = store.images()
            candidates = images.candidates(EvictionReason.CAPTIONED, 0, 10)
            images.evict(EvictionReason.CAPTIONED, [one.image for one in candidates])
            assert all(one.may_go for one in candidates), "what is skipped takes room in the cache for nothing"
        bench.sound()
        assert bench.caption(*after) == ""
        bench.fetch(*after)
    assert bench.caption(*after) == made
    assert bench.sound() == outcomes


@pytest.mark.parametrize(
    ("skip", "outcomes"), [(("blank", "tiny"), {"captioned": 1, "skipped": 3}), ((), {"captioned": 1, "pending": 3})]
)
def test_nothing_is_left_to_a_model_that_is_not_loaded(
    skip: tuple[str, ...], outcomes: dict[str, int], bench: Bench
) -> None:
    """Where all that is left is skipped, it is so without a model; and pending again when that is taken back."""
    bench.fetch("blank", "tiny", ahead=True)
    assert bench.caption("blank", "tiny") == "d"
    for chosen in ((), skip):
        with bench.open(*chosen) as store, store.run((Stage.CAPTION,)) as run:
            store.settle_skipped(run)
    assert bench.sound() == outcomes


def test_a_picture_that_turns_out_to_be_a_placeholder(tmp_path: Path) -> None:
    """What was queued of it before its many URLs were seen is taken out of the queue with the one that shows it."""
    bench = Bench(tmp_path)
    with bench.open("placeholder") as store:
        urls = [f"http://b.example/{n}.jpg" for n in range(PLACEHOLDER_URLS)]
        put_records(store, [{"id": f"{n}", "url": url, "title": f"{n}"} for n, url in enumerate(urls)])
        with store.run((Stage.FETCH, Stage.CAPTION)) as run:
            recipe = use_recipe(store)
            sources, captions = store.sources(run), store.captions(run, recipe)
            items = sources.claim("b.example", 10)
            sources.commit([fetched(item, "gone.jpg") for item in items[:-1]], recipe)
            queued = captions.claim(1)
            captions.release([item.id for item in queued])
            sources.commit([fetched(items[-1], "gone.jpg")], recipe)
            assert queued
            assert captions.claim(10) == []
    assert bench.sound() == {"skipped": PLACEHOLDER_URLS}
