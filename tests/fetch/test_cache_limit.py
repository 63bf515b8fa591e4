"""The limit of the image cache: what is evicted, in which order, and what never is."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cached import ORIGINAL, WORKING, CachedState

from etl.domain.statuses import Stage
from etl.fetch.cache_limit import CacheLimit, survey
from etl.images.cache import ImageCache
from etl.maintenance.verify import verify
from etl.net.resume import take_note
from etl.state.read.reader import Reader

KEYS = [str(number) for number in range(10)]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[CachedState]:
    """Ten pictures with their originals, 15,000 bytes in all; 0 to 3 are captioned."""
    with CachedState(tmp_path) as made:
        made.ingest(*KEYS)
        made.fetch(originals=True)
        made.caption("0", "1", "2", "3")
        yield made


def limit_of(state: CachedState, limit: int) -> CacheLimit:
    """Return a limit for which no time passes: no call leaves work to the next because the machine is slow."""
    return CacheLimit(state.store, state.cache, limit, clock=lambda: 0.0)


def kept(state: CachedState, kind: str) -> list[str]:
    """Return the keys whose working copy or original is there."""
    path_of = state.working_path if kind == "working" else state.original_path
    return [key for key in KEYS if path_of(key).exists()]


def bytes_of(state: CachedState) -> int:
    return sum(path.stat().st_size for path in state.files())


def resumable(cache: ImageCache, name: str, size: int) -> Path:
    """Put an unfinished file with its note among the parts."""
    part = cache.part_of(name)
    part.write_bytes(bytes(size))
    take_note(part, {"etag": '"1"', "content-length": "1000000"})
    return part


def assert_no_row_without_its_file(state: CachedState) -> None:
    found = verify(state.store)
    assert (found.missing, found.missing_originals, found.orphans, found.problems) == (0, 0, 0, ())


def test_below_the_limit_nothing_goes(state: CachedState) -> None:
    """What there is is counted, and left alone for as long as there is room."""
    limit = limit_of(state, 15_000)
    assert (limit.used, limit.is_full) == (15_000, False)
    assert limit.make_room()
    assert bytes_of(state) == 15_000


def test_without_a_limit_nothing_is_counted(state: CachedState) -> None:
    """0 means no limit."""
    limit = limit_of(state, 0)
    assert limit.make_room(thorough=True)
    assert (limit.used, limit.is_full, bytes_of(state)) == (0, False, 15_000)


def test_orphans_and_stale_parts_go_first(state: CachedState) -> None:
    """Files that nobody owns and parts that nobody can resume make room before anything of worth; others stay."""
    orphan = state.cache.working_path(state.cache.put_working(b"nobody's".ljust(WORKING)))
    stray = state.cache.root / "working" / "notes.txt"
    stray.write_bytes(bytes(100))
    stale = state.cache.new_part()
    stale.write_bytes(bytes(2000))
    part = resumable(state.cache, "http://a.example/part", 500)
    limit = limit_of(state, 18_000)
    assert limit.make_room()
    assert not orphan.exists() and not stray.exists() and not stale.exists()
    assert part.exists()
    assert kept(state, "original") == KEYS


def test_what_somebody_has_found_a_use_for_is_no_orphan_any_more(state: CachedState) -> None:
    """A file that was an orphan at the start and belongs to an image by now stays; so does a part that grows."""
    with state.store.run((Stage.FETCH,)) as run:
        state.ingest(*KEYS, "10")
        queue = state.store.sources(run)
        (item,) = queue.claim("a.example", 9)
        fetched = state.put(item, {}, {})
        part = state.cache.part_of("http://a.example/11")
        part.write_bytes(bytes(300))
        os.utime(part, ns=(0, 0))
        limit = limit_of(state, 15_000)
        queue.commit([fetched])
        part.write_bytes(bytes(400))
        limit.make_room()
    assert state.working_path("10").exists()
    assert part.exists()


def test_originals_go_next_oldest_first_down_to_nine_tenths(state: CachedState) -> None:
    """Of what is worth something originals go first, no more of them than needed."""
    limit = limit_of(state, 14_900)
    assert limit.make_room()
    assert kept(state, "original") == KEYS[4:]
    assert kept(state, "working") == KEYS
    assert limit.used == bytes_of(state) == 15_000 - 4 * ORIGINAL
    assert_no_row_without_its_file(state)


def test_then_working_copies_that_no_record_needs_then_captioned_ones(state: CachedState) -> None:
    """Unneeded working copies go before captioned ones; both before nothing else."""
    state.ingest(*KEYS[:8])
    assert limit_of(state, 9_500).make_room()
    assert kept(state, "original") == []
    assert kept(state, "working") == KEYS[:8]
    assert limit_of(state, 7_500).make_room()
    assert kept(state, "working") == KEYS[2:8]
    assert state.ready() == set()
    assert_no_row_without_its_file(state)


def test_a_working_copy_that_is_still_to_be_captioned_never_goes(state: CachedState) -> None:
    """Under a limit that cannot be kept all that may go goes, and the answer is no."""
    limit = limit_of(state, 100)
    assert not limit.make_room(thorough=True)
    assert kept(state, "working") == KEYS[4:]
    assert limit.used == bytes_of(state) == 6 * WORKING
    assert_no_row_without_its_file(state)


def test_captioned_pictures_wait_until_the_recipe_is_known(state: CachedState) -> None:
    """Asked so, it leaves alone what an earlier recipe has captioned."""
    limit = limit_of(state, 8_000)
    assert not limit.make_room(captioned=False, thorough=True)
    assert kept(state, "working") == KEYS
    assert limit.make_room(thorough=True)
    assert kept(state, "working") == KEYS[3:]


def test_room_comes_with_captions(state: CachedState) -> None:
    """A cache that was full of work is below its limit when the work is done; what is added counts."""
    limit = limit_of(state, 7_000)
    assert limit.make_room()
    state.ingest(*KEYS, "10", "11")
    with state.store.run((Stage.FETCH,)) as run:
        queue = state.store.sources(run)
        images = [state.put(item, {}, {}) for item in queue.claim("a.example", 9)]
        queue.commit(images)
        limit.added(images)
    assert limit.used == bytes_of(state) == 8 * WORKING
    assert not limit.make_room(thorough=True)
    state.caption()
    assert limit.make_room(thorough=True)
    assert limit.used == bytes_of(state) == 6 * WORKING


def test_what_may_go_is_found_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that look at a few images each come round to all of them, also to those before where they began."""
    monkeypatch.setattr("etl.fetch.cache_limit.PAGE", 2)
    monkeypatch.setattr("etl.fetch.cache_limit.PAGES", 2)
    monkeypatch.setattr("etl.fetch.cache_limit.PATIENCE_S", 0.0)
    with CachedState(tmp_path) as state:
        state.ingest(*KEYS)
        state.fetch()
        state.caption("9")
        limit = limit_of(state, 9_500)
        answers = [limit.make_room() for _ in range(3)]
        assert (answers, kept(state, "working")) == ([False, False, True], KEYS[:9])
        state.caption("0")
        limit = limit_of(state, 8_500)
        limit._after = dict.fromkeys(limit._after, 5)
        assert limit.make_room(thorough=True)
        assert kept(state, "working") == KEYS[1:9]


def test_a_shared_file_stays_while_an_image_needs_it(tmp_path: Path) -> None:
    """Of two images with the same working copy the captioned one is evicted, and the file stays."""
    with CachedState(tmp_path) as state:
        state.ingest("0", "1")
        state.fetch(copies={"1": "0"})
        state.caption("0")
        assert not limit_of(state, 500).make_room(thorough=True)
        assert state.states() == {"0": "evicted", "1": "present"}
        assert state.working_path("1").exists()
        state.caption("1")
        assert limit_of(state, 500).make_room(thorough=True)
        assert state.files() == set()


def test_a_file_that_was_evicted_under_a_second_copy_is_noticed(state: CachedState) -> None:
    """A picture that came again while its first image was being evicted is not whole, and must not be committed."""
    limit = limit_of(state, 100)
    state.ingest(*KEYS, "10")
    with state.store.run((Stage.FETCH,)) as run:
        queue = state.store.sources(run)
        (item,) = queue.claim("a.example", 9)
        image = state.put(item, {"10": "0"}, {}, originals=True)
        assert limit.is_whole(image)
        limit.make_room(thorough=True)
        with limit.hold():
            assert not limit.is_whole(image)
        assert limit.is_whole(state.put(item, {"10": "0"}, {}, originals=True))


KILLED = """
import os, pathlib, signal, sys
from support.states import settings_for
from etl.images.cache import ImageCache
from etl.fetch.cache_limit import CacheLimit
from etl.state.store import Store
store = Store.open(settings_for(pathlib.Path(sys.argv[1])))
ImageCache.remove = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
CacheLimit(store, ImageCache.of_state(store.directory), 100).make_room()
"""


def test_a_kill_between_commit_and_removal_leaves_an_orphan(tmp_path: Path) -> None:
    """Killed when about to remove the first file, a process leaves rows that say evicted, and files to be swept."""
    with CachedState(tmp_path) as state:
        state.ingest(*KEYS)
        state.fetch()
        state.caption()
        directory = state.store.directory
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(directory)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    with CachedState(tmp_path) as state:
        assert set(state.states().values()) == {"evicted"}
        with Reader(directory) as reader:
            assert len(survey(state.cache, reader).orphans) == len(KEYS)
        found = verify(state.store)
        assert (found.missing, found.orphans, found.evicted) == (0, len(KEYS), len(KEYS))
        assert limit_of(state, 100).make_room()
        assert state.files() == set()


def test_a_call_that_takes_long_leaves_the_rest_to_the_next(
    state: CachedState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network's loop is given back after a page that took too long; the next call goes on there."""
    monkeypatch.setattr("etl.fetch.cache_limit.PAGE", 1)
    moments = itertools.count(1)
    limit = CacheLimit(state.store, state.cache, 14_000, clock=lambda: next(moments))
    answers = [(limit.make_room(), len(kept(state, "original"))) for _ in range(3)]
    assert answers == [(False, 9), (True, 8), (True, 7)]
