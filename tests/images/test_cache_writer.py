"""Working copies that are stored together, beside an event loop."""

import asyncio
import resource
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from etl import nameless_files
from etl.errors import DiskFullError, EtlError, StateError
from etl.failpoints import FAILPOINTS
from etl.images.cache import ImageCache
from etl.images.cache_writer import TOGETHER, CacheWriter


class SlowCache(ImageCache):
    """Notes what is stored together, and waits with the first of all until it is let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.portions: list[int] = []
        self.go = threading.Event()

    def put_all(self, copies: Sequence[bytes]) -> list[str | EtlError]:
        self.portions.append(len(copies))
        assert self.go.wait(30)
        return super().put_all(copies)


async def stored(writer: CacheWriter, copies: Sequence[bytes]) -> list[str | BaseException]:
    """Put them all at once."""
    return await asyncio.gather(*map(writer.put, copies), return_exceptions=True)


def test_what_comes_while_the_disk_is_busy_goes_there_together(tmp_path: Path) -> None:
    """The first goes alone, those after it together, no more than there may be; each is told its hash."""
    cache = SlowCache(tmp_path / "images")
    writer = CacheWriter(cache)

    async def scenario() -> list[str | BaseException]:
        first = asyncio.create_task(writer.put(b"first"))
        while not cache.portions:
            await asyncio.sleep(0.001)
        rest = asyncio.create_task(stored(writer, [b"%d" % n for n in range(TOGETHER + 3)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        cache.go.set()
        return [await first, *await rest]

    hashes = asyncio.run(scenario())
    writer.close()
    assert cache.portions == [1, TOGETHER, 3]
    assert [cache.working_path(str(sha256)).read_bytes() for sha256 in hashes[:3]] == [b"first", b"0", b"1"]
    assert len({str(sha256) for sha256 in hashes}) == TOGETHER + 4


def test_few_open_files_store_fewer_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only 64 files may be open, copies on their way take four of them, and leave the rest to the downloads."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    cache = SlowCache(tmp_path / "images")
    cache.go.set()
    writer = CacheWriter(cache)
    asyncio.run(stored(writer, [b"%d" % n for n in range(9)]))
    writer.close()
    assert max(cache.portions) == 2


def test_one_that_cannot_be_stored_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle of a portion is told to one picture; its neighbours are stored, and nothing half."""
    cache = ImageCache(tmp_path / "images")
    cache.prepare()
    passed = {name: 0 for name in FAILPOINTS}

    def full_at_the_second(name: str) -> None:
        passed[name] += 1
        if name == "cache.before_rename" and passed[name] == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(nameless_files, "failpoint", full_at_the_second)
    results = cache.put_all([b"one", b"two", b"three"])
    assert isinstance(results[1], DiskFullError)
    good = [str(results[0]), str(results[2])]
    assert [cache.working_path(sha256).read_bytes() for sha256 in good] == [b"one", b"three"]
    assert sorted(path.stem for path in cache.root.rglob("*") if path.is_file()) == sorted(good)


def test_all_are_written_before_one_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content of each is on the disk before any name is given, and the names before anybody is told."""
    cache = ImageCache(tmp_path / "images")
    cache.prepare()
    seen: list[str] = []
    monkeypatch.setattr(nameless_files, "failpoint", seen.append)
    cache.put_all([b"one", b"two"])
    steps = ["cache.before_fsync"] * 2 + ["cache.before_rename", "cache.renamed"] * 2 + ["cache.synced"] * 2
    assert seen == steps


def test_the_same_copy_twice_in_a_portion_is_one_file(tmp_path: Path) -> None:
    """Two pictures may have the same working copy; both are told its hash."""
    cache = ImageCache(tmp_path / "images")
    cache.prepare()
    assert len(set(map(str, cache.put_all([b"same", b"same", b"other"])))) == 2
    assert sum(path.is_file() for path in cache.root.rglob("*")) == 2


def test_faults_of_the_cache_reach_who_waits(tmp_path: Path) -> None:
    """Errors of the disk come back as such, and so does what nobody has thought of; the next copy is stored."""
    (tmp_path / "images").write_text("in the way")
    writer = CacheWriter(ImageCache(tmp_path / "images"))
    with pytest.raises(StateError, match="images"):
        asyncio.run(writer.put(b"copy"))
    (tmp_path / "images").unlink()

    async def odd_and_good() -> tuple[BaseException | str, str]:
        (odd,) = await asyncio.gather(writer.put(None), return_exceptions=True)  # type: ignore[arg-type]
        return odd, await writer.put(b"copy")

    odd, good = asyncio.run(odd_and_good())
    writer.close()
    assert isinstance(odd, TypeError)
    assert writer._cache.working_path(good).read_bytes() == b"copy"
