"""The archive's largest file on its worst day, beside others: resumed to the byte, and nobody kept waiting."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from support.large_server import large_server
from support.workbench import Workbench, encoded

from etl.net.part import BUFFER

BREAKS = 20

EDGE = 6404
"""Pixels; three bytes each make 123 MB."""

BEAT_S = 0.01


class Heart:
    """Beats in an event loop and knows how late it was."""

    def __init__(self) -> None:
        self.late: list[float] = []

    async def beat(self) -> None:
        """Beat until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + BEAT_S
            await asyncio.sleep(BEAT_S)
            self.late.append(loop.time() - due)

    async def beside(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Beat while the work is done."""
        beating = asyncio.create_task(self.beat())
        try:
            return await work
        finally:
            beating.cancel()


@contextlib.contextmanager
def watched_children(aside: psutil.Process) -> Iterator[dict[int, int]]:
    """Yield the largest resident size of each child process so far, in bytes; all but one are watched."""
    peaks: dict[int, int] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.pid != aside.pid:
                        peaks[child.pid] = max(peaks.get(child.pid, 0), child.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        over.set()
        watcher.join()


@pytest.mark.soak
def test_a_large_file_that_breaks_twenty_times_is_resumed_and_stalls_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """123 MB beside 16 JPEGs: each byte comes about once, and the event loop stays awake through all of it.

    How late the loop was is printed; only a stall that no busy machine explains fails the test.
    """
    band = Image.effect_noise((EDGE, EDGE), 60)
    large = tmp_path / "large.tif"
    Image.merge("RGB", (band, band.rotate(90), band.rotate(180))).save(large)
    size = large.stat().st_size
    photograph = encoded(Image.effect_noise((3000, 2000), 40).convert("RGB"))
    small = [tmp_path / f"{n}.jpg" for n in range(16)]
    for n, path in enumerate(small):
        path.write_bytes(photograph + bytes([n]))
    heart, run = Heart(), asyncio.run
    monkeypatch.setattr(asyncio, "run", lambda work: run(heart.beside(work)))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    bench = Workbench(tmp_path, decoders=2, longest_edge=1024)
    with large_server(large, small, BREAKS) as server, watched_children(server.process) as children:
        bench.ingest(*server.urls)
        assert bench.fetch().done == 17
        pieces = server.pieces()
    sent = sum(end - start for start, end in pieces)
    late_ms = sorted(1000 * late for late in heart.late)
    with capsys.disabled():
        print(
            f"\n  {size / 1e6:.1f} MB in {len(pieces)} requests, {sent - size} bytes twice"
            f"\n  the loop was at most {late_ms[-1]:.0f} ms late; 99.9 % of {len(late_ms)} beats below "
            f"{late_ms[-1 - len(late_ms) // 1000]:.0f} ms, half below {late_ms[len(late_ms) // 2]:.1f} ms"
            f"\n  largest child process {max(children.values()) / 1e6:.0f} MB"
        )
    assert len(pieces) == BREAKS + 1
    assert sent <= size + BREAKS * BUFFER
    assert bench.rows("SELECT DISTINCT status, attempts FROM sources") == [("done", 1)]
    assert late_ms[-1] < 1000
