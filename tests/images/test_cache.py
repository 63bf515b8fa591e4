"""The image cache on a real file system."""

import errno
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from etl.errors import DiskFullError, NotPlainError, StateError
from etl.images.cache import ImageCache, disk_errors, read_working

DATA = b"picture" * 1000
SHA = hashlib.sha256(DATA).hexdigest()


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture(params=["bare", "made", "without O_TMPFILE"])
def cache(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ImageCache:
    """A cache without directories, with those for `DATA`, and on a kernel that has no files without a name."""
    if request.param == "bare":
        return ImageCache(tmp_path / "images")
    if request.param != "made":
        # What kernels before 3.11 make of the flag: a directory, which nobody can write to.
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    for name in ("parts", f"working/{SHA[:2]}", f"original/{SHA[:2]}"):
        (tmp_path / "images" / name).mkdir(parents=True)
    return ImageCache(tmp_path / "images", made=True)


def test_a_working_copy_lies_under_its_own_hash(cache: ImageCache) -> None:
    """The name is the content's hash in a shard of its first two digits, and nothing else is left behind."""
    assert cache.put_working(DATA) == SHA
    assert files(cache.root) == [f"working/{SHA[:2]}/{SHA}.jpg"]
    assert cache.working_path(SHA).read_bytes() == DATA
    assert cache.working_path(SHA).stat().st_mode & 0o777 == 0o600


def test_what_is_there_is_not_written_again_but_a_short_file_is_mended(cache: ImageCache) -> None:
    """A second put of the same content leaves the file alone; one of another size is replaced."""
    path = cache.working_path(cache.put_working(DATA))
    before = path.stat()
    cache.put_working(DATA)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    path.write_bytes(DATA[:-1])
    cache.put_working(DATA)
    assert path.read_bytes() == DATA
    assert files(cache.root) == [f"working/{SHA[:2]}/{SHA}.jpg"]


def test_puts_of_the_same_content_at_once_agree(cache: ImageCache) -> None:
    """Writers do not disturb each other, and no part is left."""
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(cache.put_working, [DATA] * 40)) == {SHA}
    assert files(cache.root) == [f"working/{SHA[:2]}/{SHA}.jpg"]


@pytest.mark.parametrize("in_memory", [False, True])
def test_an_original_moves_from_its_part_to_its_hash(cache: ImageCache, in_memory: bool) -> None:
    """Originals have no extension; a second part with the same content just goes; small ones come from memory."""
    for _ in range(2):
        part = cache.new_part()
        part.write_bytes(DATA)
        assert cache.keep_original(DATA if in_memory else part, SHA) == cache.original_path(SHA)
        part.unlink(missing_ok=True)
        assert files(cache.root) == [f"original/{SHA[:2]}/{SHA}"]


def test_parts_are_unique_and_swept(tmp_path: Path) -> None:
    """Unfinished files of a crashed run are removed, finished ones are not."""
    cache = ImageCache(tmp_path / "images")
    assert cache.sweep_parts() == 0
    cache.put_working(DATA)
    parts = {cache.new_part() for _ in range(5)}
    assert len(parts) == 5
    for part in parts:
        part.write_bytes(b"half")
    assert cache.sweep_parts() == 5
    assert files(cache.root) == [f"working/{SHA[:2]}/{SHA}.jpg"]


def test_shards_hold_what_is_where_it_ought_to_be(tmp_path: Path) -> None:
    """A walk finds each finished file in its shard, with its size; the wrong shard or name makes a stray."""
    cache = ImageCache(tmp_path)
    cache.put_working(DATA)
    part = cache.new_part()
    part.write_bytes(b"half")
    kept = cache.new_part()
    kept.write_bytes(DATA)
    cache.keep_original(kept, SHA)
    wrong = tmp_path / "working" / ("00" if SHA[:2] != "00" else "01") / f"{SHA}.jpg"
    strays = [cache.working_path(SHA).with_suffix(""), wrong, tmp_path / "working" / "x.jpg", tmp_path / "a" / "b"]
    for stray in strays:
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(b"stray")
    shards = list(cache.working_shards())
    assert [shard.name for shard in shards] == [f"{n:02x}" for n in range(256)]
    found = {sha256: file for shard in shards for sha256, file in shard.files.items()}
    assert {sha256: (file.path, file.size) for sha256, file in found.items()} == {
        SHA: (cache.working_path(SHA), len(DATA))
    }
    assert [sha256 for shard in cache.original_shards() for sha256 in shard.files] == [SHA]
    assert [file.path for file in cache.parts()] == [part]
    outside = [file for shard in shards for file in shard.strays] + list(cache.strays())
    assert {file.path for file in outside} == set(strays)


def test_a_walk_over_a_cache_that_does_not_exist_finds_nothing(tmp_path: Path) -> None:
    """No directory need have been made."""
    cache = ImageCache(tmp_path / "images")
    assert not any(shard.files or shard.strays for shard in (*cache.working_shards(), *cache.original_shards()))
    assert (cache.parts(), list(cache.strays())) == ([], [])


def test_removing_tells_what_it_freed(tmp_path: Path) -> None:
    """The bytes of the file, and nothing for one that is not there; what cannot be removed is a `StateError`."""
    cache = ImageCache(tmp_path)
    path = cache.working_path(cache.put_working(DATA))
    assert cache.remove(path) == len(DATA)
    assert cache.remove(path) is None
    with pytest.raises(StateError, match="working"):
        cache.remove(path.parent)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", SHA[:-1], SHA.upper(), SHA + "\n", "g" * 64])
def test_only_hashes_become_file_names(tmp_path: Path, name: str) -> None:
    """Nothing but 64 lower-case hex digits is accepted where a hash is asked for."""
    cache = ImageCache(tmp_path)
    for method in (cache.working_path, cache.original_path, lambda sha: cache.keep_original(tmp_path, sha)):
        with pytest.raises(ValueError, match="SHA-256"):
            method(name)


def test_free_bytes_work_before_the_cache_exists(tmp_path: Path) -> None:
    """The disk is asked even when no directory was made yet."""
    stat = os.statvfs(tmp_path)
    assert ImageCache(tmp_path / "a" / "b").free_bytes() == pytest.approx(stat.f_bavail * stat.f_frsize, rel=0.05)


def test_a_full_disk_is_told_with_what_to_do() -> None:
    """ENOSPC, here from the kernel's own full device, becomes `DiskFullError` with path and advice."""
    device = Path("/dev/full")
    with pytest.raises(DiskFullError, match=r"/dev/full.*free some space"), disk_errors(device):
        device.write_bytes(b"x")


def test_a_mount_inside_the_cache_is_told_with_what_to_do() -> None:
    """Files cannot be renamed across a mount; the cure is to mount it at the whole of images/."""
    said = r"mounted inside the image cache.*at the directory images/ of the state"
    with pytest.raises(StateError, match=said), disk_errors(Path("images/working")):
        raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_a_failed_put_leaves_nothing(tmp_path: Path) -> None:
    """Where a limit stops the write midway, the error is `DiskFullError` and the part is gone."""
    code = (
        "import pathlib, resource, sys\n"
        "from etl.errors import DiskFullError\n"
        "from etl.images.cache import ImageCache\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: ImageCache(pathlib.Path(sys.argv[1])).put_working(bytes(5000))\n"
        "except DiskFullError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "no room to write" in done.stdout
    assert files(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_a_state_error(tmp_path: Path) -> None:
    """Other faults of the disk are `StateError` with the path."""
    (tmp_path / "images").write_text("a file where the directory should be")
    with pytest.raises(StateError, match="images"):
        ImageCache(tmp_path / "images").put_working(DATA)


def test_only_a_working_copy_of_its_name_is_given_away(tmp_path: Path) -> None:
    """What is exported, sent or shown elsewhere has the content that its name promises, and is a plain file."""
    cache = ImageCache(tmp_path / "images")
    path = cache.working_path(cache.put_working(DATA))
    assert read_working(path) == DATA
    path.write_bytes(DATA[:-1] + b"x")
    with pytest.raises(ValueError, match="not what its name says"):
        read_working(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_working(path)
    (tmp_path / "private").write_bytes(DATA)
    path.symlink_to(tmp_path / "private")
    with pytest.raises(NotPlainError, match="is a link"):
        read_working(path)


def test_a_working_copy_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    """A stranger's file of terabytes costs neither time nor memory."""
    cache = ImageCache(tmp_path / "images")
    path = cache.working_path(cache.put_working(DATA))
    os.truncate(path, 1 << 40)
    code = (
        "import pathlib, resource, sys\n"
        "from etl.images.cache import read_working\n"
        "resource.setrlimit(resource.RLIMIT_AS, (300_000_000, 300_000_000))\n"
        "try: read_working(pathlib.Path(sys.argv[1]))\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "not what its name says" in done.stdout


@pytest.mark.parametrize("which", [".", "working"])
@pytest.mark.parametrize("told", [False, True])
def test_no_cache_is_made_in_the_place_of_one_that_was_taken_away(tmp_path: Path, which: str, told: bool) -> None:
    """Once its directories are made, a missing one is an error, in decoders too, which are told that they are."""
    cache = ImageCache(tmp_path / "images")
    cache.prepare()
    taken = (cache.root / which).resolve()
    taken.rename(tmp_path / "away")
    writer = ImageCache(cache.root, made=True) if told else cache
    with pytest.raises(StateError, match="No such file"):
        writer.put_working(b"picture")
    assert writer.part_of("http://a.example/1").parent == cache.root / "parts"
    assert not taken.exists()
