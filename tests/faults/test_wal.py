"""The write-ahead log of a killed run, cut short or garbled: what opens is always a state that was once committed."""

import hashlib
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.fault_server import FaultServer
from support.places import Place, World
from support.tally import Tally
from support.zygote import Zygote

HEADER, FRAME_HEADER = 32, 24
"""Bytes before the first frame, and before the page of each frame (https://www.sqlite.org/fileformat.html#walformat)"""

TABLES = ("runs", "manifests", "records", "record_lines", "sources", "images", "captions", "attempts", "counters")


@dataclass(frozen=True)
class Killed:
    """A state as a SIGKILL has left it, and every state that its log has committed.

    Attributes:
        place: the state; its files are only copied.
        wal: the log.
        frame: bytes of one frame.
        prefixes: a hash of what each table held, by number of commits: the first is the database without its log.
    """

    place: Place
    wal: bytes
    frame: int
    prefixes: list[tuple[str, ...]]

    @property
    def frames(self) -> list[bytes]:
        """The frames of the log."""
        body = self.wal[HEADER:]
        return [body[place : place + self.frame] for place in range(0, len(body) - self.frame + 1, self.frame)]

    def with_frames(self, frames: list[bytes]) -> bytes:
        """Return a log of these frames."""
        return self.wal[:HEADER] + b"".join(frames)


def held_by(directory: Path) -> tuple[str, ...]:
    """Open the database of a directory as the first process after a crash does, and return a hash of each table."""
    with closing(sqlite3.connect(directory / "state.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        for table, recipe in (("sources", "0"), ("captions", "recipe")):
            counted = database.execute(f"SELECT {recipe}, status, count(*) FROM {table} GROUP BY 1, 2").fetchall()
            sql = "SELECT recipe, status, n FROM counters WHERE stage = ? AND n <> 0"
            assert sorted(database.execute(sql, (table,)).fetchall()) == sorted(counted)
        return tuple(_hash(database.execute(f"SELECT * FROM {table}").fetchall()) for table in TABLES)


def _hash(rows: list[tuple[object, ...]]) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def put(killed: Killed, wal: bytes, directory: Path, *, stale_index: bool) -> None:
    """Make a directory with the database and this log; with its index as it was, or none."""
    directory.mkdir(exist_ok=True)
    shutil.copy(killed.place.state / "state.db", directory)
    (directory / "state.db-wal").write_bytes(wal)
    (directory / "state.db-shm").unlink(missing_ok=True)
    if stale_index:
        shutil.copy(killed.place.state / "state.db-shm", directory)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Iterator[Killed]:
    """A state whose run was killed in the middle of its captions, with fetching and captioning in its log."""
    directory = tmp_path_factory.mktemp("wal")
    with FaultServer() as server:
        place = World.made(directory, server, zygote, records=13, pictures=12).place("state", "ingested")
        order = "caption.commit.committed=kill@10"
        with place.start("run", "-q", failpoints=order, batch_size=1) as run:
            assert run.wait(120).code == 137
        place.ledger.look()
        wal = (place.state / "state.db-wal").read_bytes()
        [page] = struct.unpack(">I", wal[8:12])
        killed = Killed(place, wal, FRAME_HEADER + page, [])
        ends = [n for n, frame in enumerate(killed.frames, 1) if struct.unpack(">I", frame[4:8])[0]]
        for end in (0, *ends):
            put(killed, killed.with_frames(killed.frames[:end]), directory / "prefix", stale_index=False)
            killed.prefixes.append(held_by(directory / "prefix"))
        assert len(set(killed.prefixes)) > 25, f"only {len(set(killed.prefixes))} commits to cut between"
        yield killed


# Ways to damage a log.


def truncated(killed: Killed, rng: random.Random) -> bytes:
    return killed.wal[: rng.randrange(len(killed.wal))]


def flipped(killed: Killed, rng: random.Random) -> bytes:
    place = rng.randrange(len(killed.wal))
    return killed.wal[:place] + bytes([killed.wal[place] ^ (1 << rng.randrange(8))]) + killed.wal[place + 1 :]


def header_flipped(killed: Killed, rng: random.Random) -> bytes:
    place = rng.randrange(HEADER)
    return killed.wal[:place] + bytes([killed.wal[place] ^ (1 << rng.randrange(8))]) + killed.wal[place + 1 :]


def zeroed(killed: Killed, rng: random.Random) -> bytes:
    """Zero one page of a frame, as a disk does that has lost a write."""
    frames = killed.frames
    number = rng.randrange(len(frames))
    frames[number] = frames[number][:FRAME_HEADER] + bytes(killed.frame - FRAME_HEADER)
    return killed.with_frames(frames)


def random_tail(killed: Killed, rng: random.Random) -> bytes:
    place = rng.randrange(len(killed.wal))
    return killed.wal[:place] + rng.randbytes(len(killed.wal) - place)


def longer(killed: Killed, rng: random.Random) -> bytes:
    return killed.wal + rng.randbytes(rng.randrange(1, 3 * killed.frame))


def frame_twice(killed: Killed, rng: random.Random) -> bytes:
    frames = killed.frames
    number = rng.randrange(len(frames))
    frames.insert(number, frames[number])
    return killed.with_frames(frames)


def frames_swapped(killed: Killed, rng: random.Random) -> bytes:
    frames = killed.frames
    one, other = rng.sample(range(len(frames)), 2)
    frames[one], frames[other] = frames[other], frames[one]
    return killed.with_frames(frames)


DAMAGES: tuple[Callable[[Killed, random.Random], bytes], ...] = (
    truncated, truncated, flipped, header_flipped, zeroed, random_tail, longer, frame_twice, frames_swapped,
)  # fmt: skip


@pytest.mark.parametrize(
    ("cuts", "completed"), [(25, 1), pytest.param(1000, 10, marks=pytest.mark.soak)], ids=["25-cuts", "1000-cuts"]
)
def test_a_damaged_log_gives_a_state_that_was_once_committed(
    killed: Killed, tmp_path: Path, tally: Tally, cuts: int, completed: int
) -> None:
    """Neither half a transaction nor a row without its file: and from there a run completes as from any other."""
    rng = random.Random(cuts)
    soak = cuts >= 1000
    seen = set()
    for number in range(cuts):
        damage = DAMAGES[number % len(DAMAGES)]
        wal, stale = damage(killed, rng), rng.random() < 0.5
        name = damage.__name__.replace("_", " ")
        if soak:
            tally.add("damaged WALs", name, tried=1)
        put(killed, wal, tmp_path / "cut", stale_index=stale)
        held = held_by(tmp_path / "cut")
        assert held in killed.prefixes, f"cut {number}, {name}: this state was never committed"
        seen.add(killed.prefixes.index(held))
        _check_files(tmp_path / "cut", killed.place.state)
        if number % (cuts // completed) == 0:
            _complete(killed, wal, stale, f"completed {cuts} {number}", tally if soak else None)
        if soak:
            tally.add("damaged WALs", name, survived=1)
    assert len(seen) > min(cuts // 5, len(killed.prefixes) // 3), "the cuts fell on too few commits"


def _check_files(directory: Path, state: Path) -> None:
    """What the database counts on was made to last before the commit, so it is there whatever the log has lost."""
    with closing(sqlite3.connect(directory / "state.db")) as database:
        for working, original, kept in database.execute(
            "SELECT working_sha256, sha256, original_kept FROM images WHERE state = 'present'"
        ):
            assert (state / "images" / "working" / working[:2] / f"{working}.jpg").is_file()
            assert not kept or (state / "images" / "original" / original[:2] / original).is_file()


def _complete(killed: Killed, wal: bytes, stale: bool, name: str, tally: Tally | None) -> None:
    """Run a damaged state to its end and check the whole.

    What the log has lost is asked for once more; what it has kept is not.
    """
    place = Place(killed.place.world, killed.place.directory.parent / name)
    shutil.copytree(killed.place.state / "images", place.state / "images")
    put(killed, wal, place.state, stale_index=stale)
    place.ledger.look()
    place.complete(count=tally.take if tally else lambda _: None)
