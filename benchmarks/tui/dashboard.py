"""What the dashboard costs beside a run on a state of a million records with 200,000 failures.

    python -m benchmarks.tui.dashboard

Makes the state through the product's own ingest and queues (some minutes; ``--directory`` keeps it for another time),
then starts the real dashboard in a pseudo-terminal of 80x24 and measures: seconds from its start to its first figures,
CPU at one look a second beside a run that commits, resident memory, and how much slower a run that commits as fast as
it can becomes beside it: slices of time in which the dashboard works, and in which it is stopped, take turns.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pty
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ingest.manifests import write_manifest
from etl.clock import now_ms
from etl.domain.items import CaptionResult, DecodedImage, FetchedImage, ItemFailure, SourceItem, WorkingCopy
from etl.domain.statuses import FinishReason, RunState, Stage
from etl.domain.views import HostInfo
from etl.ingest.manifest import Manifest
from etl.ingest.options import IngestOptions
from etl.ingest.stage import ingest
from etl.settings import Settings
from etl.state.read.reader import Reader
from etl.state.read.recipes import all_recipes
from etl.state.store import Store

BATCH = 2000
"""Items of a commit while the state is made."""

RUN_BATCH = 16
"""Items of a commit of the run that is measured: what a GPU gives back at once."""

SLICE_S = 3.0
"""A slice holds three looks of the dashboard, or none: it is stopped for the others."""

CLASSES = ("http_404", "http_404", "http_404", "timeout", "http_5xx", "reset", "not_an_image", "corrupt_image")


def fetched(source: SourceItem) -> FetchedImage:
    """Return what a download would give, without one."""
    name = f"{source.id:064x}"
    decoded = DecodedImage("image/jpeg", 1600, 1200, WorkingCopy(name, 90_000, 1024, 768, 1024))
    return FetchedImage(
        source=source,
        sha256=name,
        size=400_000,
        decoded=decoded,
        original_kept=False,
        started_at=now_ms(),
        http_status=200,
    )


def claimed(store: Store, run: int, count: int) -> list[SourceItem]:
    """Claim so many sources of the hosts in turn."""
    queue = store.sources(run)
    hosts = queue.ready_hosts()
    return [item for host in hosts for item in queue.claim(host, max(1, count // len(hosts)))]


def caption_some(store: Store, run: int, recipe: int, count: int) -> int:
    """Claim captions and commit them; return how many."""
    queue = store.captions(run, recipe)
    text = "A street with a tramway, a crowd in winter clothes and shop windows behind it. Snow lies on the pavement."
    results = [CaptionResult(item.id, text, 28, FinishReason.STOP) for item in queue.claim(count)]
    return queue.commit(results, now_ms())


def make_state(directory: Path, records: int, failures: int) -> Settings:
    """Make the state: so many records, so many dead sources, a quarter of the rest fetched and captioned."""
    settings = Settings(state=directory / "state")
    if (settings.state / "state.db").exists():
        return settings
    write_manifest(directory / "manifest.jsonl", records)
    with Store.open(settings) as store:
        with store.run((Stage.INGEST,)):
            ingest(store, Manifest(str(directory / "manifest.jsonl")), IngestOptions())
        with store.run((Stage.FETCH, Stage.CAPTION)) as run:
            recipe = store.use_recipe(sha256="ab" * 32, model="some/llava", revision="1", spec="{}")
            dead = 0
            while dead < failures:
                items = claimed(store, run, min(BATCH, failures - dead))
                store.sources(run).fail([_failure(item) for item in items])
                dead += len(items)
            sources = records * 2 // 3 - failures
            done = 0
            while done < sources // 4:
                done += store.sources(run).commit([fetched(item) for item in claimed(store, run, BATCH)], recipe)
                caption_some(store, run, recipe, BATCH * 9 // 10)
    return settings


def _failure(item: SourceItem) -> ItemFailure:
    slug = CLASSES[item.id % len(CLASSES)]
    return ItemFailure(id=item.id, slug=slug, message=f"{slug} of {item.url}", retryable=False, started_at=now_ms())


class Terminal:
    """A process in a pseudo-terminal, whose output is read all the time, as a terminal does."""

    def __init__(self, command: list[str], columns: int = 80, lines: int = 24) -> None:
        controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k != "COLORTERM"} | {"TERM": "xterm-256color"}
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
        )
        os.close(terminal)
        self._controller = controller
        self.bytes = 0
        self._seen = b""
        self._awaited: tuple[bytes, threading.Event] | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._controller)
        self._thread.join()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._controller, 65536):
                self.bytes += len(data)
                self._seen = (self._seen + data)[-1_000_000:]

    def seconds_until(self, words: bytes, patience_s: float = 60.0) -> float:
        """Return the seconds from the start of the process until it has written these words."""
        while words not in self._seen:
            if time.monotonic() - self.began > patience_s:
                raise TimeoutError(f"{words!r} did not appear")
            time.sleep(0.002)
        return time.monotonic() - self.began


def dashboard(state: Path) -> list[str]:
    """Return the command that starts the dashboard."""
    return [sys.executable, "-m", "tui", "--state", str(state)]


@contextlib.contextmanager
def steady_run(settings: Settings, per_s: int) -> Iterator[None]:
    """Fetch and caption so many items a second, with heartbeats, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.tui.dashboard", "--steady", str(per_s), "--directory"]
    process = subprocess.Popen([*command, str(settings.state.parent)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def be_steady(settings: Settings, per_s: int) -> None:
    """Be that process; ends when it is killed."""
    with Store.open(settings) as store:
        run, recipe = store.begin_run((Stage.FETCH, Stage.CAPTION)), _recipe(settings)
        print("ready", flush=True)
        while True:
            began = time.monotonic()
            store.sources(run).commit([fetched(item) for item in claimed(store, run, per_s)], recipe)
            caption_some(store, run, recipe, per_s)
            store.hosts(run).record([HostInfo(host="archive-0.example.org", allowed=4, in_flight=3, done=per_s)])
            store.heartbeat(run, RunState.RUNNING)
            time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))


def items_per_slice(settings: Settings, toggle: Callable[[bool], None], slices: int) -> dict[bool, list[int]]:
    """Fetch and caption as fast as the state takes it; return the items of each slice of `SLICE_S` seconds.

    ``toggle`` is told before each slice whether the dashboard is to be at work in it.
    """
    recipe, counts = _recipe(settings), {True: list[int](), False: list[int]()}
    with Store.open(settings) as store, store.run((Stage.FETCH, Stage.CAPTION)) as run:
        # Two with it between two without it, and the other way round: a machine that slows down meanwhile cancels out.
        for number in range(-2, slices):
            watched = number % 4 in (1, 2)
            toggle(watched)
            store.heartbeat(run, RunState.RUNNING)
            items, end = 0, time.monotonic() + SLICE_S
            while time.monotonic() < end and (batch := claimed(store, run, RUN_BATCH)):
                items += store.sources(run).commit([fetched(item) for item in batch], recipe)
                caption_some(store, run, recipe, RUN_BATCH)
            if time.monotonic() < end:
                # A fast machine has done all there was: this slice is none, and neither is what lacks its counterpart.
                break
            if number >= 0:
                counts[watched].append(items)
    whole = min(map(len, counts.values())) // 2 * 2
    if not whole:
        raise SystemExit("nothing is left to fetch in this state; make a new one in another --directory")
    return {watched: items[:whole] for watched, items in counts.items()}


def _recipe(settings: Settings) -> int:
    with Reader(settings.state) as reader:
        return all_recipes(reader)[-1].id


def measure(settings: Settings, *, watch_s: float, slices: int) -> dict[str, Any]:
    """Return all figures."""
    return {
        "first_paint_s": _first_paint(settings, 7),
        **_watched(settings, watch_s),
        "writer": _slowdown(settings, slices),
    }


def _first_paint(settings: Settings, times: int) -> list[float]:
    seconds = []
    for _ in range(times):
        with Terminal(dashboard(settings.state)) as terminal:
            seconds.append(round(terminal.seconds_until(b"1.00M"), 3))
    return sorted(seconds)


def _watched(settings: Settings, watch_s: float) -> dict[str, Any]:
    with steady_run(settings, 20), Terminal(dashboard(settings.state)) as terminal:
        terminal.seconds_until(b"1.00M")
        time.sleep(5.0)
        process = psutil.Process(terminal.process.pid)
        before, written, began = process.cpu_times(), terminal.bytes, time.monotonic()
        time.sleep(watch_s)
        after, took = process.cpu_times(), time.monotonic() - began
        used = after.user + after.system - before.user - before.system
        return {
            "cpu_percent": round(100 * used / took, 2),
            "rss_mib": round(process.memory_info().rss / 2**20, 1),
            "bytes_per_s": round((terminal.bytes - written) / took),
        }


def _slowdown(settings: Settings, slices: int) -> dict[str, Any]:
    with Terminal(dashboard(settings.state)) as terminal:
        terminal.seconds_until(b"1.00M")

        def toggle(watched: bool) -> None:
            terminal.process.send_signal(signal.SIGCONT if watched else signal.SIGSTOP)

        counts = items_per_slice(settings, toggle, slices)
    slower = [100 * (1 - beside / alone) for alone, beside in zip(counts[False], counts[True], strict=True)]
    return {
        "items_alone": counts[False],
        "items_beside": counts[True],
        "median_slower_percent": round(statistics.median(slower), 1),
        "slower_in_sum_percent": round(100 * (1 - sum(counts[True]) / sum(counts[False])), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the dashboard on a large state, beside a run.")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--failures", type=int, default=200_000)
    parser.add_argument("--directory", type=Path, help="keep the state here (default: a temporary directory)")
    parser.add_argument("--watch-s", type=float, default=30.0, help="seconds over which CPU is measured")
    parser.add_argument("--slices", type=int, default=40, help="slices of time alone and beside it, a multiple of four")
    parser.add_argument("--steady", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.steady:
        be_steady(Settings(state=arguments.directory / "state"), arguments.steady)
    with tempfile.TemporaryDirectory(prefix="dashboard-") as temporary:
        directory = arguments.directory or Path(temporary)
        began = time.monotonic()
        settings = make_state(directory, arguments.records, arguments.failures)
        print(f"the state is ready after {time.monotonic() - began:.0f} s", flush=True)
        # The plots and rates must not count what was made a moment ago as the work of this minute.
        time.sleep(61 if time.monotonic() - began > 1 else 0)
        figures = measure(settings, watch_s=arguments.watch_s, slices=arguments.slices)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
