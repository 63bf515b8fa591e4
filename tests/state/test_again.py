"""Captions made again with changed decoding: which, how, and what readers get meanwhile and afterwards."""

import dataclasses
from pathlib import Path

import pytest
from sqlite_utils import Database
from support.states import (
    assert_sound,
    captioned,
    failed,
    fetch_all,
    fetched,
    put_records,
    put_sources,
    settings_for,
    use_recipe,
)

from etl.clock import now_ms
from etl.domain.items import CaptionItem
from etl.domain.statuses import QualityFlag, Stage
from etl.domain.views import FailureFilter
from etl.state.captions import CaptionQueue
from etl.state.database import DATABASE_NAME
from etl.state.images import EvictionReason
from etl.state.migrations import migrations
from etl.state.read.export_rows import ExportRow, export_rows
from etl.state.read.failures import failed_items
from etl.state.read.progress import ProgressReader, flag_counts, read_progress
from etl.state.read.reader import Reader
from etl.state.read.story import record_story
from etl.state.requeue import Recaption
from etl.state.store import Store
from etl.state.work_queue import recover

LOOPS = FailureFilter(flag=QualityFlag.REPETITION)
FLAGS = (("repetition",), ("repetition", "truncated"), ("truncated",), ())
"""Of the captions of records 0 to 3; records 0 and 2 are of host a, 1 and 3 of host b."""


class Captions:
    """A state with four captions, and ways to go on."""

    def __init__(self, store: Store) -> None:
        self.store = store
        put_sources(store, *(f"http://{host}.example/{n}.jpg" for n, host in enumerate("abab")))
        fetch_all(store)
        self.queue: CaptionQueue = store.captions(store.begin_run([Stage.CAPTION]), use_recipe(store))
        self.queue.enqueue_possible()
        items = sorted(self.queue.claim(9), key=self.key)
        results = [captioned(item, f"old {n}") for n, item in enumerate(items)]
        flagged = [dataclasses.replace(one, flags=flags) for one, flags in zip(results, FLAGS, strict=True)]
        flagged[0] = dataclasses.replace(flagged[0], thinking="It floats.")
        self.queue.commit(flagged, now_ms())

    def key(self, item: CaptionItem) -> str:
        """Return the key of the record that a caption is of."""
        sql = (
            "SELECT r.key FROM captions c JOIN sources s ON s.image = c.image JOIN records r ON r.source = s.id "
            "WHERE c.id = ?"
        )
        return str(self.store._connection.rows(sql, (item.id,))[0][0])

    def claim(self) -> dict[str, float | None]:
        """Claim everything; return the penalties by key."""
        self.claimed = {self.key(item): item for item in self.queue.claim(9)}
        return {key: item.repetition_penalty for key, item in self.claimed.items()}

    def make(self, *keys: str, flags: tuple[str, ...] = ("repetition",)) -> None:
        """Commit a new caption for claimed records."""
        results = [captioned(self.claimed[key], f"new {key}") for key in keys]
        self.queue.commit([dataclasses.replace(result, flags=flags) for result in results], now_ms())

    def rows(self) -> dict[str, ExportRow]:
        """Return what an export says, by key."""
        with Reader(self.store.directory) as reader:
            return {row.key: row for row in export_rows(reader, 1, self.queue.recipe)}

    def texts(self) -> dict[str, str | None]:
        """Return the captions of an export; ``None`` for a record that counts as not captioned."""
        return {key: row.text if row.outcome == "captioned" else None for key, row in self.rows().items()}

    def status(self, key: str) -> str:
        """Return where a record's caption stands."""
        sql = (
            "SELECT c.status FROM captions c JOIN sources s ON s.image = c.image JOIN records r ON r.source = s.id "
            "WHERE r.key = ?"
        )
        return str(self.store._connection.rows(sql, (key,))[0][0])


@pytest.fixture
def captions(store: Store) -> Captions:
    return Captions(store)


OLD = {str(n): f"old {n}" for n in range(4)}


@pytest.mark.parametrize(
    ("chosen", "keys"),
    [
        (LOOPS, {"0", "1"}),
        (FailureFilter(flag=QualityFlag.TRUNCATED), {"1", "2"}),
        (FailureFilter(flag=QualityFlag.ECHO), set()),
        (FailureFilter(flag=QualityFlag.TRUNCATED, host="a.example"), {"2"}),
        (FailureFilter(flag=QualityFlag.REPETITION, key="1"), {"1"}),
        (FailureFilter(flag=QualityFlag.REPETITION, key="2"), set()),
    ],
)
def test_flag_host_and_key_choose(captions: Captions, state: Path, chosen: FailureFilter, keys: set[str]) -> None:
    """Exactly the captions with the flag are claimed again; counting them first changes nothing."""
    before = list(captions.store._connection.db.conn.iterdump())
    counted = captions.store.recaption(chosen, dry_run=True)
    assert list(captions.store._connection.db.conn.iterdump()) == before
    assert captions.store.recaption(chosen) == counted
    assert counted == Recaption(len(keys), 0, 0, {1.2: len(keys)} if keys else {})
    assert captions.claim() == dict.fromkeys(keys, 1.2)
    assert_sound(state)


def test_the_old_caption_counts_until_the_new_one_is_there(captions: Captions, state: Path) -> None:
    """Waiting, in work, put back and after a crash the record keeps its caption and flags; then it has the new."""
    before = captions.rows()
    captions.store.recaption(LOOPS)
    assert captions.rows() == before
    captions.claim()
    assert captions.rows() == before
    captions.queue.release_all()
    assert captions.rows() == before
    captions.claim()
    captions.make("0", flags=())
    assert captions.texts() == OLD | {"0": "new 0"}
    row = captions.rows()["0"]
    assert (row.flags, row.repetition_penalty, row.outcome) == ("", 1.2, "captioned")
    assert captions.rows()["1"] == before["1"]
    assert_sound(state)


@pytest.mark.parametrize("end", ["dead", "no record needs it", "crashes"])
def test_an_attempt_that_is_given_up_costs_no_caption(captions: Captions, state: Path, end: str) -> None:
    """However the attempt ends, the earlier caption is exported, with its flags, and its record is not failed."""
    store = captions.store
    before = captions.rows()
    store.recaption(LOOPS)
    captions.claim()
    if end == "dead":
        assert captions.queue.fail([failed(captions.claimed["0"].id, "generation", retryable=False)]) == [True]
        with Reader(state) as reader:
            assert [failure.error_class for failure in failed_items(reader)] == ["generation"]
    elif end == "no record needs it":
        captions.queue.release_all()
        records = [{"id": str(n), "url": f"http://{h}.example/{n}.jpg"} for n, h in enumerate("abab")]
        put_records(store, records[1:])
        captions.queue.enqueue_possible()
        assert store._connection.rows("SELECT status FROM captions WHERE id = 1") == [("cancelled",)]
        put_records(store, records)
    else:
        with store._connection.transaction() as db:
            db.conn.execute("UPDATE captions SET crashes = 4 WHERE id = 1")
        recover(store._connection, backoff_cap_s=1.0)
        assert captions.status("0") == "dead"
    assert {key: row.text for key, row in captions.rows().items()} == OLD
    assert (captions.rows()["0"].flags, captions.rows()["0"].repetition_penalty) == ("repetition", None)
    assert captions.rows()["1"] == before["1"]
    with Reader(state) as reader:
        assert read_progress(reader).outcomes == {"captioned": 4, "failed": 0, "skipped": 0, "pending": 0}
    assert_sound(state)


def test_a_dead_attempt_gets_another_chance_with_the_same_penalty(captions: Captions, state: Path) -> None:
    """`retry-failed` without a flag takes up what the attempt was."""
    captions.store.recaption(FailureFilter(flag=QualityFlag.REPETITION, repetition_penalty=1.5))
    captions.claim()
    captions.queue.fail([failed(item.id, "generation", retryable=False) for item in captions.claimed.values()])
    assert captions.store.recaption(LOOPS).caption == 0
    assert captions.store.retry_failed(FailureFilter())[Stage.CAPTION] == 2
    assert captions.claim() == {"0": 1.5, "1": 1.5}
    assert_sound(state)


def test_the_penalty_grows_with_each_time(captions: Captions, state: Path) -> None:
    """Each time adds what the penalty exceeds 1 by, up to the highest; what has had that is left as it is."""
    seen: list[object] = []
    for _ in range(5):
        captions.store.recaption(FailureFilter(flag=QualityFlag.REPETITION, key="0"))
        seen.append(captions.claim()["0"])
        captions.make("0")
    assert seen == [1.2, 1.4, 1.6, 1.8, 2.0]
    assert captions.store.recaption(LOOPS, dry_run=True) == Recaption(1, 0, 1, {1.2: 1})
    assert captions.store.recaption(dataclasses.replace(LOOPS, repetition_penalty=1.9)).penalties == {1.9: 1}
    assert captions.claim() == {"1": 1.9}
    captions.make("1")
    assert captions.store.recaption(LOOPS).penalties == {2.0: 1}, "the last step is shorter"
    assert len(captions.store._connection.rows("SELECT 1 FROM earlier_captions WHERE caption = 1")) == 5
    assert_sound(state)


def test_the_story_tells_all_that_were(captions: Captions, state: Path) -> None:
    """Earlier captions are told oldest first, each with how it was made."""
    for text in ("first", "second"):
        captions.store.recaption(FailureFilter(flag=QualityFlag.REPETITION, key="0"))
        captions.claim()
        result = dataclasses.replace(captioned(captions.claimed["0"], text), flags=("repetition",))
        captions.queue.commit([result], now_ms())
    with Reader(state) as reader:
        story = record_story(reader, "0")
    assert story is not None
    (caption,) = story["captions"]
    assert (caption["text"], caption["repetition_penalty"]) == ("second", 1.4)
    told = [(one["text"], one["repetition_penalty"], one["flags"], one["tokens"]) for one in caption["earlier"]]
    assert told == [("old 0", None, "repetition", 3), ("first", 1.2, "repetition", 3)]
    assert all(one["run"] and one["done_at"] for one in caption["earlier"])
    assert [one["thinking"] for one in (*caption["earlier"], caption)] == ["It floats.", None, None]


@pytest.mark.parametrize("how", ["evicted", "missing"])
def test_a_picture_that_is_not_here_is_fetched_first(captions: Captions, state: Path, how: str) -> None:
    """The caption is not claimed before its picture has come back; where it cannot, the old caption still counts."""
    store = captions.store
    images = [1, 2, 3, 4]
    if how == "evicted":
        store.images().evict(EvictionReason.CAPTIONED, images)
    else:
        store.images().requeue_missing(images)
    assert store.recaption(LOOPS) == Recaption(2, 2, 0, {1.2: 2})
    assert captions.claim() == {}
    assert_sound(state)
    with store.run((Stage.FETCH,)) as run:
        sources = store.sources(run)
        first = {item.url: item for host in ("a.example", "b.example") for item in sources.claim(host, 9)}
        assert {"http://a.example/0.jpg", "http://b.example/1.jpg"} <= first.keys()
        assert len(first) == (2 if how == "evicted" else 4)
        sources.commit([fetched(first["http://a.example/0.jpg"])], captions.queue.recipe)
        sources.fail([failed(first["http://b.example/1.jpg"].id, "http_404", retryable=False)])
    captions.queue.enqueue_possible()
    assert captions.claim() == {"0": 1.2}
    captions.make("0")
    assert captions.texts() == OLD | {"0": "new 0"}
    with Reader(state) as reader:
        assert read_progress(reader).outcomes["failed"] == 0
    assert_sound(state)


def test_a_caption_of_another_recipe_or_of_no_record_is_left_alone(captions: Captions, state: Path) -> None:
    """Nobody would work on it, or get it."""
    put_records(captions.store, [{"id": "1", "url": "http://b.example/1.jpg"}])
    assert captions.store.recaption(LOOPS).caption == 1
    use_recipe(captions.store, "two")
    assert captions.store.recaption(FailureFilter(flag=QualityFlag.TRUNCATED)) == Recaption(0, 0, 0, {})
    assert_sound(state)


def test_another_recipe_and_back_keeps_what_was(captions: Captions, state: Path) -> None:
    """While a caption is to be made again, outcomes follow the recipe in both directions."""
    captions.store.recaption(LOOPS)
    use_recipe(captions.store, "two")
    with Reader(state) as reader:
        assert read_progress(reader).outcomes["captioned"] == 0
        use_recipe(captions.store)
        assert read_progress(reader).outcomes["captioned"] == 4
    assert_sound(state)


def test_flags_are_counted(captions: Captions, state: Path) -> None:
    """Every flag of the finished captions of the current recipe is counted, the most frequent first."""
    with Reader(state) as reader:
        assert ProgressReader(reader).progress().flags == {"repetition": 2, "truncated": 2}
        captions.store.recaption(FailureFilter(flag=QualityFlag.REPETITION, key="0"))
        assert list(flag_counts(reader).items()) == [("truncated", 2), ("repetition", 1)]
        use_recipe(captions.store, "two")
        assert flag_counts(reader) == {}


def test_a_flag_means_no_failure(captions: Captions, state: Path) -> None:
    """What is dead carries no flag, so listing failures by flag gives none."""
    captions.store.recaption(LOOPS)
    captions.claim()
    captions.queue.fail([failed(item.id, "generation", retryable=False) for item in captions.claimed.values()])
    with Reader(state) as reader:
        assert len(list(failed_items(reader))) == 2
        assert list(failed_items(reader, LOOPS)) == []


def test_one_line_tells_what_was_put_back() -> None:
    """Penalties, pictures to be fetched and captions left alone are said where there are any."""
    assert Recaption(0, 0, 0, {}).line() == "caption: 0 will be made again"
    assert Recaption(2, 0, 0, {1.2: 2}).line() == "caption: 2 will be made again with a repetition penalty of 1.2"
    line = Recaption(5, 1, 3, {1.4: 1, 1.2: 4}).line(dry_run=True)
    assert line == (
        "caption: 5 would be made again with a repetition penalty of 1.2 (4), 1.4 (1); 1 of them when their pictures "
        "have been fetched again; 3 left as made, with the highest penalty, 2"
    )


def test_a_state_of_an_older_schema_is_read_and_migrated(state: Path) -> None:
    """A database from before captions were made again is exported and told as it is, and keeps all when migrated."""
    state.mkdir()
    old = Database(state / DATABASE_NAME)
    migrations.apply(old, stop_before="0003_captions_again_and_engine_samples")
    for statement in (
        "INSERT INTO manifests (path, spec, generation, complete) VALUES ('m', '{}', 1, 1)",
        "INSERT INTO runs (uid, stages, started_at, heartbeat_at, ended_at, host, pid, app_version, config) "
        "VALUES ('u', 'caption', 1, 1, 1, 'h', 1, '0', '{}')",
        "INSERT INTO prompts (sha256, text) VALUES ('p', 'Describe it.')",
        "INSERT INTO recipes (sha256, model, revision, spec, current, created_at) VALUES ('r', 'm', '1', '{}', 1, 1)",
        "INSERT INTO images (sha256, bytes, mime, width, height, working_sha256, working_bytes, working_width, "
        "working_height, longest_edge, original_kept) VALUES ('i', 1, 'image/jpeg', 1, 1, 'w', 1, 1, 1, 1, 0)",
        "INSERT INTO sources (url, host, status, image) VALUES ('http://a.example/1', 'a.example', 'done', 1)",
        "INSERT INTO captions (image, prompt, recipe, status, text, flags, run, done_at) "
        "VALUES (1, 1, 1, 'done', 'old', 'repetition', 1, 5)",
        "INSERT INTO records (key, manifest, position, generation, line_sha256, source, prompt, state) "
        "VALUES ('k', 1, 1, 1, x'00', 1, 1, 'active')",
        "INSERT INTO record_lines VALUES (1, x'7b7d')",
    ):
        old.execute(statement)
    old.execute("PRAGMA user_version = 2")
    old.conn.commit()
    old.close()

    def told() -> tuple[object, ...]:
        with Reader(state) as reader:
            (row,) = export_rows(reader, 1, 1)
            story = record_story(reader, "k")
            assert story is not None
            return row.text, row.outcome, row.flags, row.repetition_penalty, story["captions"][0]["earlier"]

    assert told() == ("old", "captioned", "repetition", None, [])
    with Store.open(settings_for(state)) as store:
        assert told() == ("old", "captioned", "repetition", None, [])
        assert store.recaption(LOOPS).caption == 1
        assert told()[:4] == ("old", "captioned", "repetition", None)
    assert_sound(state)
