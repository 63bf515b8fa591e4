"""The decoder pool with real processes, killed, stopped and starved from outside."""

import asyncio
import contextlib
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support.watching import children, exists, wait_for

from etl.domain.items import DecodedImage
from etl.errors import (
    CorruptImageError,
    DecoderCrashedError,
    DecoderLimitError,
    EtlError,
    ImageTooLargeError,
    LocalFileError,
    NotAnImageError,
    StateError,
)
from etl.images.cache import ImageCache
from etl.images.decoder_pool import PORTION, Decoded, DecoderPool, _Decoder

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")

MiB = 1024**2


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (300, 200), (200, 30, 30)).save(path)
    return path


@contextlib.contextmanager
def make_pool(
    tmp_path: Path, processes: int = 1, memory: int = 1024 * MiB, timeout_s: float = 30.0
) -> Iterator[DecoderPool]:
    with DecoderPool(
        tmp_path / "images",
        processes=processes,
        memory_bytes=memory,
        longest_edge=100,
        max_pixels=500_000_000,
        timeout_s=timeout_s,
    ) as pool:
        yield pool


def stop_in_work(pid: int) -> None:
    """Stop a process in the middle of decoding the picture of `make_slow`, told by its memory."""

    def resident() -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    wait_for(lambda: resident() > 100 * MiB, pause_s=0.002)
    os.kill(pid, signal.SIGSTOP)


def make_black(path: Path, side: int) -> Path:
    """A valid black square of one bit per pixel, written without ever holding its pixels in memory."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(1)
    row = bytes(1 + (side + 7) // 8)
    pixels = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return path


def make_slow(tmp_path: Path) -> Path:
    """A picture that takes half a second and 225 MB."""
    return make_black(tmp_path / "slow.png", 15_000)


def make_endless(tmp_path: Path) -> Path:
    """A PDF whose forms draw each other ten times, nine levels deep: a kilobyte that takes minutes and all memory."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R/Resources<</XObject<</F 5 0 R>>>>>>",
        b"<</Length 5>>stream\n/F Do\nendstream",
    ]
    for number in range(6, 15):
        body = b"/F Do " * 10 if number < 14 else b"0 0 m 9 9 l S"
        form = b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</F %d 0 R>>>>/Length %d>>"
        objects.append(form % (number, len(body)) + b"stream\n" + body + b"\nendstream")
    numbered = b"".join(b"%d 0 obj\n%s\nendobj\n" % pair for pair in enumerate(objects, 1))
    (tmp_path / "endless.pdf").write_bytes(b"%PDF-1.7\n" + numbered + b"trailer<</Root 1 0 R>>\n%%EOF\n")
    return tmp_path / "endless.pdf"


def test_decoded_pictures_lie_in_the_cache_and_processes_are_reused(tmp_path: Path, picture: Path) -> None:
    """One process decodes one picture after the other into the cache; closing leaves no process."""
    before = children(os.getpid())
    with make_pool(tmp_path, processes=2) as pool:
        assert children(os.getpid()) == before
        decoded = asyncio.run(pool.decode(picture))
        started = children(os.getpid()) - before
        assert asyncio.run(pool.decode(picture)) == decoded
        assert asyncio.run(pool.decode(picture.read_bytes())) == decoded, "from memory"
        copy = ImageCache(tmp_path / "images").working_path(decoded.working.sha256)
        assert asyncio.run(pool.working_copy(picture)) == (decoded, copy.read_bytes())
        assert children(os.getpid()) - before == started
    assert len(started) == 1
    assert (decoded.mime, decoded.width, decoded.height, decoded.working.width) == ("image/png", 300, 200, 100)
    assert ImageCache(tmp_path / "images").working_path(decoded.working.sha256).exists()
    assert children(os.getpid()) == before


def small_pictures(count: int) -> list[bytes]:
    """Return so many pictures of a few hundred bytes, of different sizes."""
    buffers = [io.BytesIO() for _ in range(count)]
    for number, buffer in enumerate(buffers):
        Image.new("RGB", (20 + number, 10), (200, 30, 30)).save(buffer, "PNG")
    return [buffer.getvalue() for buffer in buffers]


def test_small_pictures_in_memory_are_decoded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as make a portion are one order, the rest another; each is told what became of it, errors included."""
    orders: list[int] = []
    accepts = _Decoder.accepts

    def counted(self: _Decoder, ordered: bytes, timeout_s: float) -> bool:
        orders.append(len(ordered))
        return accepts(self, ordered, timeout_s)

    monkeypatch.setattr(_Decoder, "accepts", counted)
    pictures = [*small_pictures(PORTION + 1), b"<html>gone</html>"]

    async def decode_all(pool: DecoderPool) -> list[DecodedImage | BaseException]:
        tasks = [asyncio.create_task(pool.decode(picture)) for picture in pictures]
        await asyncio.sleep(0)
        assert pool.in_memory == len(pictures)
        return await asyncio.gather(*tasks, return_exceptions=True)

    with make_pool(tmp_path) as pool:
        *decoded, page = asyncio.run(decode_all(pool))
        assert pool.in_memory == 0
    assert [each.width for each in decoded if isinstance(each, DecodedImage)] == list(range(20, 21 + PORTION))
    assert isinstance(page, NotAnImageError)
    assert len(orders) == 2


def test_neighbours_of_a_deadly_picture_are_decoded(tmp_path: Path) -> None:
    """Of pictures that were decoded together, the one that takes all time or memory fails, and no other."""
    deadly = make_endless(tmp_path).read_bytes()

    async def decode_all(pool: DecoderPool) -> list[DecodedImage | BaseException]:
        pictures = small_pictures(3)
        return await asyncio.gather(*map(pool.decode, [pictures[0], deadly, *pictures[1:]]), return_exceptions=True)

    with make_pool(tmp_path, memory=512 * MiB, timeout_s=1.5) as pool:
        first, failed, *others = asyncio.run(decode_all(pool))
    assert isinstance(failed, DecoderLimitError)
    assert [each.width for each in (first, *others) if isinstance(each, DecodedImage)] == [20, 21, 22]


def test_neighbours_of_a_decoder_that_was_stopped_are_decoded(tmp_path: Path) -> None:
    """More than a socket holds, sent to a process that takes nothing, goes to another one; nobody waits for ever."""
    pictures = [picture + bytes(60_000) for picture in small_pictures(PORTION)]
    before = children(os.getpid())

    async def scenario(pool: DecoderPool) -> list[DecodedImage]:
        await pool.decode(pictures[0])
        (pid,) = children(os.getpid()) - before
        os.kill(pid, signal.SIGSTOP)
        return await asyncio.gather(*map(pool.decode, pictures))

    with make_pool(tmp_path, timeout_s=1.0) as pool:
        assert [each.width for each in asyncio.run(scenario(pool))] == list(range(20, 20 + PORTION))


def test_a_picture_without_memory_among_others_is_tried_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others in its portion left too little memory for is decoded when it has all of it."""
    answers = _Decoder.answers

    def short(self: _Decoder, pictures: int, timeout_s: float) -> list[Decoded]:
        told = answers(self, pictures, timeout_s)
        return told if pictures == 1 else [*told[:-1], DecoderLimitError("memory")]

    monkeypatch.setattr(_Decoder, "answers", short)

    async def decode_all(pool: DecoderPool) -> list[DecodedImage]:
        return await asyncio.gather(*map(pool.decode, small_pictures(3)))

    with make_pool(tmp_path) as pool:
        assert [each.width for each in asyncio.run(decode_all(pool))] == [20, 21, 22]


@pytest.mark.parametrize(
    "answers",
    [
        b"",
        b"\0" * 7,
        b"\0" * 16,
        *(bytes(7) + bytes([len(said)]) + said for said in (b"?", b"[]", b"{}", b'{"error": 1}')),
    ],
)
def test_a_decoder_that_talks_nonsense_has_died(
    tmp_path: Path, answers: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer answers than pictures, more, one cut short or unheard of, are as good as a crash: it was taken over."""
    with make_pool(tmp_path) as pool:
        decoder = pool._new_decoder()
        monkeypatch.setattr(decoder, "poll", lambda _: True)
        monkeypatch.setattr(decoder, "recv", lambda: answers)
        with pytest.raises(DecoderCrashedError, match="gave no answer"):
            decoder.answers(1, 1.0)


def test_small_pictures_given_to_a_closed_pool_wait_for_nothing(tmp_path: Path) -> None:
    """Those that were gathered when it closed, and those that come later, end with an error, all of them."""

    async def scenario(pool: DecoderPool) -> list[DecodedImage | BaseException]:
        pictures = small_pictures(PORTION + 1)
        tasks = [asyncio.create_task(pool.decode(pictures[0]))]
        await asyncio.sleep(0)
        await asyncio.to_thread(pool.close)
        tasks += [asyncio.create_task(pool.decode(picture)) for picture in pictures[1:]]
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)

    with make_pool(tmp_path) as pool:
        assert {type(each) for each in asyncio.run(scenario(pool))} == {RuntimeError}


def test_pictures_wait_for_processes_that_are_starting(tmp_path: Path, picture: Path) -> None:
    """Pictures that come before the processes are ready start no more of them than may decode at once."""

    async def decode_all(pool: DecoderPool) -> None:
        await asyncio.gather(*(pool.decode(picture) for _ in range(3)))

    before = children(os.getpid())
    with make_pool(tmp_path) as pool:
        pool.start(1)
        asyncio.run(decode_all(pool))
        assert len(children(os.getpid()) - before) == 1


def test_errors_keep_their_class_and_message(tmp_path: Path, picture: Path) -> None:
    """What the child raises arrives as the same class, and costs no process."""
    (tmp_path / "page.jpg").write_bytes(b"<html>gone</html>")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:-60])
    make_black(tmp_path / "bomb.png", 25_000)
    wanted = {
        "page.jpg": NotAnImageError, "cut.png": CorruptImageError, "bomb.png": ImageTooLargeError,
        "missing \udcff.png": LocalFileError,
    }  # fmt: skip
    with make_pool(tmp_path) as pool:
        asyncio.run(pool.decode(picture))
        before = children(os.getpid())
        for name, cls in wanted.items():
            with pytest.raises(cls):
                asyncio.run(pool.decode(tmp_path / name))
        assert children(os.getpid()) == before


def test_a_cache_that_cannot_be_written_stops_the_run_not_the_item(tmp_path: Path, picture: Path) -> None:
    """Faults of our own disk come back as fatal errors."""
    (tmp_path / "images").write_text("in the way")
    with make_pool(tmp_path) as pool, pytest.raises(StateError, match="images"):
        asyncio.run(pool.decode(picture))


def test_a_child_killed_in_the_middle_fails_only_its_own_picture(tmp_path: Path, picture: Path) -> None:
    """The killed process's picture fails with the signal's name, its neighbour and its successors are decoded."""
    slow = make_slow(tmp_path)
    before = children(os.getpid())

    async def scenario(pool: DecoderPool) -> None:
        await pool.decode(picture)
        (first,) = children(os.getpid()) - before
        doomed = asyncio.create_task(pool.decode(slow))
        await asyncio.to_thread(stop_in_work, first)
        assert (await pool.decode(picture)).width == 300
        assert not doomed.done()
        os.kill(first, signal.SIGKILL)
        with pytest.raises(DecoderCrashedError, match="SIGKILL"):
            await doomed
        assert [(await pool.decode(picture)).width for _ in range(3)] == [300] * 3

    with make_pool(tmp_path, processes=2) as pool:
        asyncio.run(scenario(pool))


def test_an_idle_child_that_dies_is_replaced_unnoticed(tmp_path: Path, picture: Path) -> None:
    """A process that the kernel took while it had nothing to do costs no picture."""
    before = children(os.getpid())
    with make_pool(tmp_path) as pool:
        asyncio.run(pool.decode(picture))
        (pid,) = children(os.getpid()) - before
        os.kill(pid, signal.SIGKILL)
        assert asyncio.run(pool.decode(picture)).width == 300
        (second,) = children(os.getpid()) - before
        os.kill(second, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (second, signal.SIGKILL)).start()
        assert asyncio.run(pool.decode(picture)).width == 300


def test_time_is_counted_from_when_a_process_takes_the_picture(tmp_path: Path, picture: Path) -> None:
    """A hanging process is killed at the limit; what queued for longer than that is decoded."""
    before = children(os.getpid())
    slow = make_slow(tmp_path)

    async def scenario(pool: DecoderPool) -> None:
        await pool.decode(picture)
        (pid,) = children(os.getpid()) - before
        started = time.monotonic()
        hanging, *queued = [asyncio.create_task(pool.decode(path)) for path in (slow, picture, picture)]
        await asyncio.to_thread(stop_in_work, pid)
        with pytest.raises(DecoderLimitError, match=r"longer than 1\.5 s") as caught:
            await hanging
        assert not isinstance(caught.value, DecoderCrashedError)
        assert 1.4 < time.monotonic() - started < 5
        assert not exists(pid)
        assert [(await task).width for task in queued] == [300, 300]

    with make_pool(tmp_path, timeout_s=1.5) as pool:
        asyncio.run(scenario(pool))


def test_a_decoder_that_aborts_or_never_ends_is_contained(tmp_path: Path, picture: Path) -> None:
    """A hostile PDF, which drives the renderer to abort for want of memory or past its time, fails alone."""
    with make_pool(tmp_path, memory=512 * MiB, timeout_s=5) as pool:
        with pytest.raises(DecoderLimitError, match=r"killed by|longer than"):
            asyncio.run(pool.decode(make_endless(tmp_path)))
        assert asyncio.run(pool.decode(picture)).width == 300


def test_a_picture_beyond_the_memory_limit_fails_alone(tmp_path: Path, picture: Path) -> None:
    """A small valid file that needs 400 MB fails under a limit of 256 MB, and the same process goes on."""
    make_black(tmp_path / "huge.png", 20_000)
    with make_pool(tmp_path, memory=256 * MiB) as pool:
        asyncio.run(pool.decode(picture))
        before = children(os.getpid())
        with pytest.raises(DecoderLimitError, match="memory"):
            asyncio.run(pool.decode(tmp_path / "huge.png"))
        assert asyncio.run(pool.decode(picture)).width == 300
        assert children(os.getpid()) == before


def test_a_limit_below_the_interpreter_still_decodes_small_pictures(tmp_path: Path, picture: Path) -> None:
    """The limit is raised to what the process needs to live."""
    with make_pool(tmp_path, memory=MiB) as pool:
        assert asyncio.run(pool.decode(picture)).width == 300


def test_children_are_confined_and_outlive_the_groups_signals(tmp_path: Path, picture: Path) -> None:
    """A child has its memory limit and a lower priority, and ignores the Ctrl-C and TERM meant for its parent."""
    before = children(os.getpid())
    with make_pool(tmp_path) as pool:
        asyncio.run(pool.decode(picture))
        (pid,) = children(os.getpid()) - before
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert f"Max address space {1024 * MiB}" in " ".join(limits.split())
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        assert asyncio.run(pool.decode(picture)).width == 300
        assert children(os.getpid()) - before == {pid}


def test_closing_ends_a_picture_in_work(tmp_path: Path, picture: Path) -> None:
    """Closing does not wait for a hanging process; its picture is neither decoded nor blamed."""
    slow = make_slow(tmp_path)
    before = children(os.getpid())

    async def scenario(pool: DecoderPool) -> None:
        await pool.decode(picture)
        (pid,) = children(os.getpid()) - before
        hanging = asyncio.create_task(pool.decode(slow))
        await asyncio.to_thread(stop_in_work, pid)
        started = time.monotonic()
        await asyncio.to_thread(pool.close)
        assert time.monotonic() - started < 5
        with pytest.raises(EtlError, match="closed") as caught:
            await hanging
        assert type(caught.value) is EtlError
        with pytest.raises((EtlError, RuntimeError)):
            await pool.decode(picture)

    with make_pool(tmp_path) as pool:
        asyncio.run(scenario(pool))
    assert children(os.getpid()) == before


_PARENT = """
import asyncio, os, signal, sys
from pathlib import Path
from etl.images.decoder_pool import DecoderPool

pool = DecoderPool(
    Path(sys.argv[2]), processes=2, memory_bytes=2**31, longest_edge=100, max_pixels=10**9, timeout_s=60
)

async def main():
    await asyncio.gather(*[pool.decode(Path(sys.argv[1])) for _ in range(2)])
    print("ready", flush=True)
    await pool.decode(Path(sys.argv[3]))

asyncio.run(main())
"""


def test_children_end_with_a_parent_that_was_killed(tmp_path: Path, picture: Path) -> None:
    """SIGKILL of the parent, with an endless picture in work and a process idle, leaves none behind."""
    endless = make_endless(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(picture), str(tmp_path / "images"), str(endless)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        time.sleep(0.5)
        pids = children(parent.pid)
        parent.kill()
        parent.wait()
    assert len(pids) == 2
    wait_for(lambda: not any(exists(pid) for pid in pids), timeout_s=5)


def test_a_decoder_process_does_not_load_the_heavy_libraries() -> None:
    """Starting a decoder imports neither torch nor transformers, httpx2, sqlite-utils or numpy."""
    code = "import etl.images.decode, etl.images.decoder_worker, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert not {"torch", "transformers", "httpx2", "sqlite_utils", "numpy", "pypdfium2"} & set(done.stdout.split())
    assert "PIL.PsdImagePlugin" not in done.stdout.split()


@pytest.mark.parametrize("deaths", [2, 3])
def test_processes_that_die_while_they_start_are_replaced(tmp_path: Path, picture: Path, deaths: int) -> None:
    """Two deaths are an accident, and the picture is decoded by the next; three in a row end the run in one line."""
    seen, done = children(os.getpid()), threading.Event()

    def kill_new_ones() -> None:
        killed = 0
        while killed < deaths and not done.is_set():
            for pid in children(os.getpid()) - seen:
                seen.add(pid)
                os.kill(pid, signal.SIGKILL)
                killed += 1

    killer = threading.Thread(target=kill_new_ones)
    with make_pool(tmp_path) as pool:
        killer.start()
        try:
            if deaths < 3:
                assert asyncio.run(pool.decode(picture)).width == 300
            else:
                with pytest.raises(EtlError, match="a decoder process cannot be started: killed by SIGKILL"):
                    asyncio.run(pool.decode(picture))
        finally:
            done.set()
            killer.join()
