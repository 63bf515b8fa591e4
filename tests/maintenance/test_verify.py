"""Verify: what it finds wrong with real files, and what it does about it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cached import CachedState

from etl.maintenance.verify import VerifySummary, verify
from etl.state.images import EvictionReason


@pytest.fixture
def state(tmp_path: Path) -> Iterator[CachedState]:
    """Four captioned pictures with their originals."""
    with CachedState(tmp_path) as made:
        made.ingest(*"0123")
        made.fetch(originals=True)
        made.caption()
        yield made


def flip(path: Path) -> None:
    """Change a file without changing its size."""
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


SOUND = VerifySummary(
    images=4, missing=0, damaged=0, evicted=0, requeued=0, originals=4, missing_originals=0, damaged_originals=0,
    orphans=0, deleted=False, parts=0, quick=False, problems=(),
)  # fmt: skip


def test_a_sound_state(state: CachedState) -> None:
    """Nothing is found, and nothing is touched."""
    before = state.files()
    assert verify(state.store) == SOUND
    assert state.files() == before
    assert list(SOUND.lines())[-1] == "database  sound"


def test_lost_and_damaged_working_copies_are_fetched_again(state: CachedState) -> None:
    """A missing file, a shorter one and one with another content are lost; their sources are ready again."""
    state.working_path("0").unlink()
    state.working_path("1").write_bytes(b"short")
    flip(state.working_path("2"))
    found = verify(state.store)
    assert (found.missing, found.damaged, found.requeued, found.orphans) == (1, 2, 3, 0)
    assert state.ready() == {"0", "1", "2"}
    assert not state.working_path("1").exists() and not state.working_path("2").exists()
    assert sorted(state.fetch(originals=True)) == ["0", "1", "2"]
    assert verify(state.store) == SOUND


def test_quick_compares_sizes_alone(state: CachedState) -> None:
    """Another size is found, another content is not."""
    state.working_path("1").write_bytes(b"short")
    flip(state.working_path("2"))
    found = verify(state.store, quick=True)
    assert (found.damaged, found.quick) == (1, True)
    assert any("not read" in line for line in found.lines())
    assert state.ready() == {"1"}


def test_lost_originals_are_noted_and_nothing_is_fetched(state: CachedState) -> None:
    """A damaged original is removed; the working copies stay, and the database no longer counts on the originals."""
    state.original_path("0").unlink()
    flip(state.original_path("1"))
    found = verify(state.store)
    assert (found.originals, found.missing_originals, found.damaged_originals) == (4, 1, 1)
    assert (found.missing, found.damaged, found.requeued, found.orphans) == (0, 0, 0, 0)
    assert any("1 missing, 1 damaged" in line for line in found.lines())
    assert not state.original_path("1").exists()
    again = verify(state.store)
    assert (again.originals, again.missing_originals, again.damaged_originals) == (2, 0, 0)


def test_evicted_pictures_are_not_missing(state: CachedState) -> None:
    """An evicted image has no file to be missed; a file that is still there is an orphan."""
    kept = state.working_path("0").read_bytes()
    for sha256 in state.store.images().evict(EvictionReason.CAPTIONED, [1, 2]):
        state.cache.remove(state.cache.working_path(sha256))
    state.working_path("0").write_bytes(kept)
    found = verify(state.store)
    assert (found.images, found.missing, found.evicted, found.orphans, found.requeued) == (2, 0, 2, 1, 0)
    assert state.working_path("0").exists()
    assert verify(state.store, delete_orphans=True).deleted
    assert not state.working_path("0").exists()


def test_whatever_lies_where_it_should_not_is_an_orphan(state: CachedState, tmp_path: Path) -> None:
    """Files in the wrong shard, under other names, in other directories, and links; what links lead to is left."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    root = state.cache.root
    working = state.working_path("0")
    shard = root / "working" / ("00" if working.parent.name != "00" else "01")
    strays = [
        root / "notes.txt", root / "working" / "x", shard / working.name, working.with_suffix(".png"),
        root / "elsewhere" / "deep" / "file", root / "original" / "zz" / "file",
    ]  # fmt: skip
    for stray in strays:
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_bytes(b"x")
    strays += [root / "link", shard / "link"]
    for link in strays[-2:]:
        link.symlink_to(outside)
    part = state.cache.new_part()
    part.write_bytes(b"half")
    found = verify(state.store, delete_orphans=True)
    assert (found.orphans, found.parts, found.missing) == (len(strays), 1, 0)
    assert not any(stray.is_symlink() or stray.exists() for stray in strays)
    assert (outside / "precious").exists() and part.exists()


def test_a_damaged_file_that_two_images_share_is_lost_to_both(tmp_path: Path) -> None:
    """Both sources are fetched again."""
    with CachedState(tmp_path) as state:
        state.ingest("0", "1")
        state.fetch(copies={"1": "0"})
        flip(state.working_path("0"))
        found = verify(state.store)
        assert (found.images, found.damaged, found.requeued) == (2, 2, 2)
