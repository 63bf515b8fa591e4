"""The fetch queue and what both queues share: claims, fences, waits, limits, crashes, recovery."""

import threading
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
    settings_for,
    use_recipe,
)

from etl.clock import now_ms
from etl.domain.statuses import Stage
from etl.state import work_queue
from etl.state.sources import SourceQueue
from etl.state.store import Store
from etl.state.work_queue import RetryPolicy, recover

URL = "http://a.example/1.jpg"
HOUR_MS = 3_600_000


@pytest.fixture
def run(store: Store) -> int:
    return store.begin_run([Stage.FETCH])


@pytest.fixture
def queue(store: Store, run: int) -> SourceQueue:
    """The fetch queue of a run, with one source in it."""
    put_sources(store, URL)
    return store.sources(run)


def make_due(store: Store) -> None:
    """Let waiting sources be tried at once."""
    with store._connection.transaction() as db:
        db.conn.execute("UPDATE sources SET not_before = 0")


def _source(store: Store, columns: str = "status, attempts, crashes, error_class") -> tuple[object, ...]:
    return store._connection.rows(f"SELECT {columns} FROM sources ORDER BY id")[0]


def test_claim_leases_each_item_once(store: Store, run: int) -> None:
    """Items are claimed oldest first, one host at a time, and none twice."""
    put_sources(store, *(f"http://{host}.example/{n}.jpg" for n in range(3) for host in "ab"))
    queue = store.sources(run)
    first, second = queue.claim("a.example", 2), queue.claim("a.example", 2)
    assert [item.url[-5] for item in first + second] == ["0", "1", "2"]
    assert queue.claim("a.example", 2) == []
    assert {item.host for item in first} == {"a.example"}
    assert queue.ready_hosts() == ["b.example"]


def test_one_claim_takes_from_several_hosts(store: Store, run: int) -> None:
    """Up to so many of each, in one transaction."""
    put_sources(store, *(f"http://{host}.example/{n}.jpg" for n in range(3) for host in "abc"))
    queue = store.sources(run)
    items = queue.claim_of({"b.example": 2, "a.example": 9, "gone.example": 1})
    assert [item.url[7::10] for item in items] == ["b0", "b1", "a0", "a1", "a2"]
    assert queue.ready_hosts() == ["b.example", "c.example"]


def test_claims_from_two_threads_do_not_overlap(store: Store, run: int) -> None:
    """Threads that claim at once share the items out among them."""
    put_sources(store, *(f"http://a.example/{n}.jpg" for n in range(200)))
    queue, claims = store.sources(run), list[int]()

    def claim() -> None:
        while items := queue.claim("a.example", 3):
            claims.extend(item.id for item in items)

    threads = [threading.Thread(target=claim) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claims) == list(range(1, 201))


def test_ready_hosts_go_round(store: Store, run: int) -> None:
    """Hosts come in order behind the given one, at most so many, and only those with work that is due."""
    put_sources(store, *(f"http://h{n}.example/1.jpg" for n in range(5)), "/local/picture.jpg")
    queue = store.sources(run)
    assert queue.ready_hosts() == ["", *(f"h{n}.example" for n in range(5))]
    assert queue.ready_hosts(after="h1.example", limit=2) == ["h2.example", "h3.example"]
    (item,) = queue.claim("h2.example", 1)
    queue.fail([failed(item.id, retry_after_s=60)])
    assert queue.ready_hosts(after="h1.example", limit=2) == ["h3.example", "h4.example"]


def test_commit_finishes_a_source(store: Store, state: Path, queue: SourceQueue) -> None:
    """A committed source is done, points at its image, and keeps what the server said."""
    (item,) = queue.claim("a.example", 1)
    assert queue.commit([fetched(item)]) == 1
    assert _source(store, "status, attempts, http_status, etag, image, lease_run") == ("done", 1, 200, "tag", 1, None)
    assert store._connection.rows("SELECT error_class, n FROM attempts") == [(None, 1)]
    assert_sound(state)


def test_identical_bytes_become_one_image(store: Store, state: Path) -> None:
    """Two URLs with the same bytes share one image row, counted once."""
    put_sources(store, "http://a.example/1.jpg", "http://b.example/2.jpg")
    fetch_all(store, ["same", "same"])
    assert store._connection.rows("SELECT count(*), sum(bytes) FROM images") == [(1, 100)]
    assert store._connection.rows("SELECT DISTINCT image FROM sources") == [(1,)]
    assert_sound(state)


@pytest.mark.parametrize("late", ["commit", "fail", "release", "release_all"])
def test_late_result_of_a_lost_lease_changes_nothing(store: Store, state: Path, queue: SourceQueue, late: str) -> None:
    """What a run reports after it has lost its lease is ignored whole, its image and history included."""
    (item,) = queue.claim("a.example", 1)
    recover(store._connection, backoff_cap_s=600)
    other = store.sources(store.begin_run([Stage.FETCH]))
    assert [again.id for again in other.claim("a.example", 1)] == [item.id]
    before = list(store._connection.db.conn.iterdump())
    match late:
        case "commit":
            assert queue.commit([fetched(item)]) == 0
        case "fail":
            assert queue.fail([failed(item.id, "http_404", retryable=False, http_status=404)]) == [False]
        case "release":
            queue.release([item.id])
        case "release_all":
            assert queue.release_all() == 0
    assert list(store._connection.db.conn.iterdump()) == before
    assert other.commit([fetched(item)]) == 1
    assert_sound(state)


def test_second_result_of_the_same_item_changes_nothing(store: Store, queue: SourceQueue) -> None:
    """A duplicate result, as a distributed engine may deliver it, is not counted and not stored."""
    (item,) = queue.claim("a.example", 1)
    assert queue.commit([fetched(item), fetched(item, "other bytes")]) == 1
    assert store._connection.rows("SELECT count(*) FROM images") == [(1,)]
    assert queue.fail([failed(item.id, retryable=False)]) == [False]
    assert _source(store)[0] == "done"


def test_wait_doubles_within_its_bounds(store: Store, run: int) -> None:
    """The n-th wait is between half of and the whole backoff * 2^(n-1), and never beyond the cap."""
    put_sources(store, URL)
    queue = SourceQueue(store._connection, run, RetryPolicy(max_attempts=100, backoff_s=2.0, cap_s=20.0))
    for ceiling in (2.0, 4.0, 8.0, 16.0, 20.0, 20.0):
        (item,) = queue.claim("a.example", 1)
        before = now_ms()
        assert queue.fail([failed(item.id)]) == [False]
        wait = (queue.next_due_ms() or 0) - before
        assert 500 * ceiling - 1 <= wait <= 1000 * ceiling + 500
        assert queue.claim("a.example", 1) == []
        make_due(store)


@pytest.mark.parametrize(("asked", "least", "most"), [(0.0, 0.5, 1.0), (90.0, 90.0, 90.0), (9e8, 86_400, 86_400)])
def test_server_is_never_asked_before_it_said(store: Store, run: int, asked: float, least: float, most: float) -> None:
    """``Retry-After`` beats our own, shorter wait, up to one day; a wait of zero does not shorten ours."""
    put_sources(store, URL)
    queue = SourceQueue(store._connection, run, RetryPolicy(max_attempts=100, backoff_s=1.0, cap_s=20.0))
    (item,) = queue.claim("a.example", 1)
    before = now_ms()
    queue.fail([failed(item.id, "http_429", retry_after_s=asked, http_status=429)])
    wait = (queue.next_due_ms() or 0) - before
    assert 1000 * least <= wait <= 1000 * most + 500


def test_retryable_failure_is_dead_after_the_limit(store: Store, state: Path, queue: SourceQueue) -> None:
    """With three attempts allowed the third failure is final; every one is in the history."""
    for last in (False, False, True):
        (item,) = queue.claim("a.example", 1)
        assert queue.fail([failed(item.id, http_status=503)]) == [last]
    assert _source(store) == ("dead", 3, 0, "timeout")
    assert store._connection.rows("SELECT n FROM attempts ORDER BY id") == [(1,), (2,), (3,)]
    assert store._connection.rows("SELECT outcome FROM records") == [("failed",)]
    assert queue.ready_hosts() == []
    assert_sound(state)


def test_permanent_failure_is_dead_at_once(store: Store, queue: SourceQueue) -> None:
    """A failure that no repetition cures is final the first time."""
    (item,) = queue.claim("a.example", 1)
    assert queue.fail([failed(item.id, "http_404", retryable=False, http_status=404)]) == [True]
    assert _source(store, "status, attempts, http_status") == ("dead", 1, 404)


def test_dead_decoder_is_held_against_the_picture_the_third_time(store: Store, queue: SourceQueue) -> None:
    """A picture whose decoder died is tried again twice, however many attempts are allowed; then it is dead."""
    for last in (False, False, True):
        (item,) = queue.claim("a.example", 1)
        assert queue.fail([failed(item.id, "decoder_crashed", retryable=False, crashed=True)]) == [last]
        make_due(store)
    assert _source(store) == ("dead", 3, 3, "decoder_crashed")


def test_release_charges_nothing(store: Store, state: Path, queue: SourceQueue) -> None:
    """An item that is given back keeps its attempts, its place in the queue, and no trace in the history."""
    (item,) = queue.claim("a.example", 1)
    queue.release([item.id])
    assert _source(store) == ("ready", 0, 0, None)
    (item,) = queue.claim("a.example", 1)
    queue.fail([failed(item.id)])
    (item,) = queue.claim("a.example", 1)
    assert queue.release_all() == 1
    assert _source(store) == ("retry", 1, 0, "timeout")
    assert store._connection.rows("SELECT count(*) FROM attempts") == [(1,)]
    assert_sound(state)


def test_source_in_flight_counts_no_crash(state: Path) -> None:
    """When the process dies, a source that was being fetched is ready again as if nothing had been."""
    with Store.open(settings_for(state)) as store:
        put_sources(store, URL)
    for _ in range(work_queue.DEAD_AFTER_CRASHES + 1):
        store = Store.open(settings_for(state))
        assert store.sources(store.begin_run([Stage.FETCH])).claim("a.example", 1)
        store.close()  # without an end of the run, as after a SIGKILL
    with Store.open(settings_for(state)) as store:
        assert _source(store) == ("ready", 0, 0, None)
        assert store._connection.rows("SELECT DISTINCT state FROM runs") == [("crashed",)]
    assert_sound(state)


def test_caption_in_flight_counts_crashes(state: Path) -> None:
    """A caption that was in flight at three deaths is tried alone, and after five it is dead; its neighbour is not."""
    with Store.open(settings_for(state)) as store:
        put_sources(store, URL, "http://a.example/2.jpg")
        fetch_all(store)
        recipe = use_recipe(store)
        store.captions(0, recipe).enqueue_possible()
    seen = []
    for _ in range(6):
        store = Store.open(settings_for(state))
        queue = store.captions(store.begin_run([Stage.CAPTION]), recipe)
        batch = queue.claim(10)
        queue.commit([captioned(item) for item in batch if item.id == 2], now_ms())
        suspect = queue.claim_suspect()
        seen.append(([item.id for item in batch], suspect and (suspect.id, suspect.crashes)))
        store.close()
    assert seen == [([1, 2], None), ([1], None), ([1], None), ([], (1, 3)), ([], (1, 4)), ([], None)]
    with Store.open(settings_for(state)) as store:
        assert store._connection.rows("SELECT status, crashes, error_class FROM captions ORDER BY id") == [
            ("dead", 5, "crashed"), ("done", 0, None),
        ]  # fmt: skip
    assert_sound(state)


def test_clock_that_jumped_back_leaves_no_wait_behind(store: Store, run: int) -> None:
    """A wait set under a clock that ran ahead is cut to the longest back-off when the state is opened again."""
    put_sources(store, URL)
    fetch_all(store)
    put_sources(store, URL, "http://a.example/2.jpg")
    store.captions(run, use_recipe(store)).enqueue_possible()
    far = now_ms() + 24 * HOUR_MS
    with store._connection.transaction() as db:
        for table in ("sources", "captions"):
            db.conn.execute(f"UPDATE {table} SET status = 'retry', not_before = ? WHERE status = 'ready'", (far,))
    recover(store._connection, backoff_cap_s=600)
    for table in ("sources", "captions"):
        (((wait),),) = store._connection.rows(f"SELECT not_before FROM {table} WHERE status = 'retry'")
        assert 599_000 <= wait - now_ms() <= 600_000


def test_restart_does_not_ask_a_server_early(store: Store, run: int) -> None:
    """A wait that a server asked for survives a restart, although it is longer than our own longest back-off."""
    put_sources(store, URL)
    queue = store.sources(run)
    (item,) = queue.claim("a.example", 1)
    queue.fail([failed(item.id, "http_429", retry_after_s=3600, http_status=429)])
    due = queue.next_due_ms()
    recover(store._connection, backoff_cap_s=600)
    assert queue.next_due_ms() == due


def test_unneeded_sources_are_cancelled_and_woken(store: Store, state: Path) -> None:
    """A source that the manifest no longer needs is not fetched, not even a dead one; when it is needed again it is."""
    put_sources(store, URL, "http://a.example/2.jpg")
    with store.run((Stage.FETCH,)) as run:
        queue = store.sources(run)
        (first, _) = queue.claim("a.example", 2)
        queue.fail([failed(first.id, "http_404", retryable=False)])
    put_records(store, [{"id": "9", "url": "http://a.example/9.jpg"}])
    statuses = "SELECT url, status, attempts, error_class FROM sources ORDER BY id"
    assert [row[1] for row in store._connection.rows(statuses)] == ["cancelled", "cancelled", "ready"]
    put_sources(store, URL, "http://a.example/2.jpg")
    assert store._connection.rows(statuses) == [
        (URL, "ready", 0, None),
        ("http://a.example/2.jpg", "ready", 0, None),
        ("http://a.example/9.jpg", "cancelled", 0, None),
    ]
    assert_sound(state)


def test_missing_picture_is_fetched_again_only_when_needed(store: Store, state: Path) -> None:
    """A lost working copy puts its source back into the queue; an unneeded one waits until a record needs it."""
    put_sources(store, URL, "http://a.example/2.jpg")
    fetch_all(store)
    put_sources(store, URL)
    assert store.images().requeue_missing([1, 2]) == 1
    status = "SELECT status FROM sources ORDER BY id"
    assert store._connection.rows(status) == [("ready",), ("cancelled",)]
    put_sources(store, URL, "http://a.example/2.jpg")
    assert store._connection.rows(status) == [("ready",), ("ready",)]
    fetch_all(store)
    assert store._connection.rows("SELECT DISTINCT state FROM images") == [("present",)]
    put_sources(store, URL)
    put_sources(store, URL, "http://a.example/2.jpg")
    assert store._connection.rows(status) == [("done",), ("done",)]
    assert_sound(state)
