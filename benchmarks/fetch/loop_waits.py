"""How long the event loop of a fetch is held up beside a large picture that is downloaded and decoded.

    python -m benchmarks.fetch.loop_waits [--megabytes 123] [--pictures 300]

A task in the loop sleeps for 5 ms, again and again, and notes by how much it came too late.  Prints the longest delays,
and how much of each the loop's own thread worked: on a busy machine the rest is waiting for a core.  Ends with exit
code 1 beyond 50 ms, or where a picture is missing.
"""

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from benchmarks.fetch.server import own_server
from benchmarks.fetch.small_pictures import drawn, picture
from etl.domain.statuses import Stage
from etl.domain.views import StageSummary
from etl.fetch.loop import FetchLoop
from etl.fetch.stage import fetch
from etl.ingest.manifest import Manifest
from etl.ingest.options import IngestOptions
from etl.ingest.stage import ingest
from etl.run_control import RunControl
from etl.settings import Settings
from etl.state.store import Store

SLEEP_S = 0.005
LIMIT_MS = 50.0
SHOWN = 5


class Watchdog:
    """Notes the delays of an event loop, and the CPU time of its thread meanwhile, in milliseconds."""

    def __init__(self) -> None:
        self.delays: list[tuple[float, float]] = []

    async def watch(self) -> None:
        """Sleep until cancelled."""
        while True:
            begun, worked = time.perf_counter(), time.thread_time()
            await asyncio.sleep(SLEEP_S)
            late_s = time.perf_counter() - begun - SLEEP_S
            self.delays.append((1000 * late_s, 1000 * (time.thread_time() - worked)))

    def stand_beside(self) -> None:
        """Watch every fetch from now on."""
        run = FetchLoop.run

        async def watched(loop: FetchLoop) -> StageSummary:
            task = asyncio.create_task(self.watch())
            try:
                return await run(loop)
            finally:
                task.cancel()

        FetchLoop.run = watched  # type: ignore[method-assign]


def make_files(directory: Path, megabytes: int, pictures: int) -> list[str]:
    """Write a TIFF of so many megabytes and small pictures; return their names."""
    side = math.isqrt(megabytes * 10**6 // 3)
    noise = Image.effect_noise((side // 8, side // 8), 60).resize((side, side))
    Image.merge("RGB", (noise, noise, noise)).save(directory / "large.tif")
    scenes = drawn()
    for number in range(pictures):
        (directory / f"{number}.jpg").write_bytes(picture(scenes, b"%d" % number))
    return ["large.tif", *(f"{number}.jpg" for number in range(pictures))]


def measure(work: Path, megabytes: int, pictures: int) -> tuple[int, list[tuple[float, float]]]:
    """Return how many pictures were fetched, and the delays, the longest first."""
    (work / "files").mkdir()
    names = make_files(work / "files", megabytes, pictures)
    watchdog = Watchdog()
    watchdog.stand_beside()
    # The small ones come slowly, so that they last as long as the large one.
    settings = Settings(state=work / "state", allow_host=("127.0.0.1",), concurrency=4)
    with own_server(work / "files", latency_s=0.03) as server:
        lines = (json.dumps({"id": name, "url": f"{server.url}/{name}"}) + "\n" for name in names)
        (work / "m.jsonl").write_text("".join(lines))
        with Store.open(settings) as store, store.run((Stage.INGEST,)):
            ingest(store, Manifest(str(work / "m.jsonl")), IngestOptions())
        with Store.open(settings) as store, store.run((Stage.FETCH,)) as run:
            done = fetch(store, run, settings, RunControl()).done
    return done, sorted(watchdog.delays, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=123)
    parser.add_argument("--pictures", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done, delays = measure(Path(folder), arguments.megabytes, arguments.pictures)
    longest = ", ".join(f"{delay:.1f} ({work:.1f})" for delay, work in delays[:SHOWN])
    most = max(work for _, work in delays)
    print(f"{done} pictures, {len(delays)} looks; the longest delays, in ms: {longest}; most work at once: {most:.1f}")
    sys.exit(done != arguments.pictures + 1 or delays[0][0] > LIMIT_MS)


if __name__ == "__main__":
    main()
