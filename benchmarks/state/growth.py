"""How long ingest, split and merge take, how much memory, and how they grow with the number of records.

    python -m benchmarks.state.growth --records 10000 100000 1000000 10000000 --json growth.jsonl
    python -m benchmarks.state.growth_plot growth.jsonl benchmarks/state/growth.svg

Makes a state of made-up records of about 1.3 kB (`benchmarks.ingest`), a tenth of it fetched and captioned, splits
it, lets each part do the rest (rows alone, no picture is drawn or captioned), merges the parts, and merges them again.
Each step runs in a process of its own, so that its peak of memory is its own.  Ten million records need 60 GB of disk.
"""

import argparse
import hashlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.ingest.manifests import write_manifest
from benchmarks.process_tree import peak_rss
from etl.clock import now_ms
from etl.domain.items import CaptionResult, DecodedImage, FetchedImage, SourceItem, WorkingCopy
from etl.domain.statuses import FinishReason, Stage
from etl.ingest.manifest import Manifest
from etl.ingest.options import IngestOptions
from etl.ingest.stage import ingest
from etl.maintenance.merge import merge
from etl.maintenance.split import split
from etl.settings import Settings
from etl.state.database import DATABASE_NAME
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.state.store import Store

BATCH = 5_000

MANIFEST = "manifest.jsonl"


def make(directory: Path, records: int) -> None:
    """Make the state that is to be split."""
    write_manifest(directory / MANIFEST, records)
    load(directory)
    (directory / MANIFEST).unlink()
    work(directory / "state", records // 10)


def load(directory: Path) -> None:
    with Store.open(Settings(state=directory / "state")) as store, store.run((Stage.INGEST,)):
        ingest(store, Manifest(str(directory / MANIFEST)), IngestOptions())


def look(directory: Path) -> None:
    """Ask what `etl status` asks."""
    with Reader(directory / "state") as reader:
        read_progress(reader)


def work(state: Path, limit: int) -> None:
    """Fetch and caption up to so many sources, in rows alone."""
    with Store.open(Settings(state=state)) as store, store.run((Stage.FETCH, Stage.CAPTION)) as run:
        recipe = store.use_recipe(sha256="ab" * 32, model="some/llava", revision="0123abcd", spec="{}")
        sources, captions = store.sources(run), store.captions(run, recipe)
        while limit > 0 and (hosts := sources.ready_hosts()):
            items = sources.claim(hosts[0], min(BATCH, limit))
            sources.commit([picture(item) for item in items], recipe)
            limit -= len(items)
            while wanted := captions.claim(BATCH):
                made = [CaptionResult(item.id, f"A view {item.id}.", 60, FinishReason.STOP) for item in wanted]
                captions.commit(made, now_ms())


def picture(item: SourceItem) -> FetchedImage:
    """Return a fetched picture without a file; its working copy was evicted long ago."""
    sha256 = hashlib.sha256(item.url.encode()).hexdigest()
    copy = WorkingCopy(sha256, 5000, 640, 480, 1024)
    return FetchedImage(
        source=item,
        sha256=sha256,
        size=9000,
        decoded=DecodedImage("image/jpeg", 1280, 960, copy),
        original_kept=False,
        started_at=now_ms(),
        http_status=200,
    )


def evict(state: Path) -> None:
    """Say of every picture that its file is gone, because none was made."""
    with Store.open(Settings(state=state)) as store, store._connection.transaction() as db:
        db.conn.execute("UPDATE images SET state = 'evicted'")


def divide(directory: Path, parts: int) -> None:
    with Store.open(Settings(state=directory / "state")) as store:
        split(store, parts, directory / "parts")


def unite(directory: Path, parts: int) -> None:
    with Store.open(Settings(state=directory / "state")) as store:
        merge(store, [directory / "parts" / f"part-{number}" for number in range(1, parts + 1)])


class Cost(NamedTuple):
    """What a step took: seconds, seconds of the processor, peak of memory in bytes."""

    s: float
    cpu_s: float
    peak: int


def timed(function: Callable[..., None], *arguments: Any) -> Cost:
    """Run a step in a process of its own; return what it took."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (function, arguments))


def _measured(function: Callable[..., None], arguments: tuple[Any, ...]) -> Cost:
    began, cpu_began = time.perf_counter(), time.process_time()
    function(*arguments)
    return Cost(round(time.perf_counter() - began, 3), round(time.process_time() - cpu_began, 3), peak_rss())


def measure(directory: Path, records: int, parts: int) -> dict[str, Any]:
    """Ingest, split, work and merge; return the figures."""
    figures: dict[str, Any] = {"records": records, "parts": parts}

    def step(name: str, function: Callable[..., None], *arguments: Any) -> None:
        figures.update({f"{name}_{kind}": value for kind, value in timed(function, *arguments)._asdict().items()})
        print(
            f"{name:>14} {figures[f'{name}_s']:10,.2f} s, of the processor {figures[f'{name}_cpu_s']:10,.2f} s, "
            f"{figures[f'{name}_peak'] / 2**20:7,.0f} MiB",
            flush=True,
        )

    write_manifest(directory / MANIFEST, records)
    step("ingest", load, directory)
    step("ingest_again", load, directory)
    (directory / MANIFEST).unlink()
    figures["ingested_bytes"] = database_bytes(directory)
    step("work", work, directory / "state", records // 10)
    evict(directory / "state")
    step("split", divide, directory, parts)
    for number in range(1, parts + 1):
        part = directory / "parts" / f"part-{number}"
        step(f"work_{number}", work, part, records)
        evict(part)
    step("merge", unite, directory, parts)
    step("merge_again", unite, directory, parts)
    with Reader(directory / "state") as reader:
        progress = read_progress(reader)
    assert progress.outcomes["captioned"] == progress.records["active"], progress
    step("look", look, directory)
    figures["database_bytes"] = database_bytes(directory)
    return figures


def database_bytes(directory: Path) -> int:
    return (directory / "state" / DATABASE_NAME).stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how ingest, split and merge grow, on made-up states.")
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where the temporary files go (default: the system's place)")
    parser.add_argument("--json", type=Path, help="add one JSON object for each size to this file")
    arguments = parser.parse_args()
    for records in arguments.records:
        print(f"{records:,} records in {arguments.parts} parts", flush=True)
        with tempfile.TemporaryDirectory(prefix="growth-", dir=arguments.directory) as directory:
            figures = measure(Path(directory), records, arguments.parts)
        print(f"      database {figures['database_bytes'] / 1e6:10,.0f} MB", flush=True)
        if arguments.json:
            with arguments.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
