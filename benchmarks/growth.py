"""How long splitting a state and merging its parts takes, how much memory, and how both grow.

    python -m benchmarks.split_merge --records 10000 100000 1000000 --parts 3

Makes a state of made-up records of about 1.3 kB (`benchmarks.ingest`), a tenth of it fetched and captioned, splits
it, lets each part do the rest (rows alone, no picture is drawn or captioned), merges the parts, and merges them again.
Each step runs in a process of its own, so that its peak of memory is its own.
"""

import argparse
import hashlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.ingest import peak_rss, write_manifest
from etl.clock import now_ms
from etl.config import Settings
from etl.models import (
    CaptionResult,
    DecodedImage,
    FetchedImage,
    FinishReason,
    SourceItem,
    Stage,
    WorkingCopy,
)
from etl.stages.ingest import ingest
from etl.stages.ingest_options import IngestOptions
from etl.stages.manifest import Manifest
from etl.stages.merge import merge
from etl.stages.split import split
from etl.state.queries import Reader
from etl.state.store import Store

BATCH = 5_000


def make(directory: Path, records: int) -> None:
    """Make the state that is to be split."""
    manifest = directory / "manifest.jsonl"
    write_manifest(manifest, records)
    with Store.open(Settings(state=directory / "state")) as store, store.run((Stage.INGEST,)):
        ingest(store, Manifest(str(manifest)), IngestOptions())
    manifest.unlink()
    work(directory / "state", records // 10)


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
    return FetchedImage(item, sha256, 9000, DecodedImage("image/jpeg", 1280, 960, copy), False, now_ms(), 200)


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


def timed(function: Callable[..., None], *arguments: Any) -> tuple[float, int]:
    """Run a step in a process of its own; return its seconds and its peak of memory, in bytes."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        seconds, peak = pool.apply(_measured, (function, arguments))
    return round(seconds, 1), peak


def _measured(function: Callable[..., None], arguments: tuple[Any, ...]) -> tuple[float, int]:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began, peak_rss()


def measure(directory: Path, records: int, parts: int) -> dict[str, Any]:
    """Make, split, work and merge; return the figures."""
    make(directory, records)
    evict(directory / "state")
    figures: dict[str, Any] = {"records": records, "parts": parts}
    figures["split_s"], figures["split_peak"] = timed(divide, directory, parts)
    for number in range(1, parts + 1):
        part = directory / "parts" / f"part-{number}"
        work(part, records)
        evict(part)
    figures["merge_s"], figures["merge_peak"] = timed(unite, directory, parts)
    figures["merge_again_s"], _ = timed(unite, directory, parts)
    with Reader(directory / "state") as reader:
        progress = reader.progress()
    assert progress.outcomes["captioned"] == progress.records["active"], progress
    figures["database_bytes"] = (directory / "state" / "state.db").stat().st_size
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure `etl split` and `etl merge` on made-up states.")
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where the temporary files go (default: the system's place)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each size")
    arguments = parser.parse_args()
    for records in arguments.records:
        with tempfile.TemporaryDirectory(prefix="split-", dir=arguments.directory) as directory:
            figures = measure(Path(directory), records, arguments.parts)
        if arguments.json:
            print(json.dumps(figures), flush=True)
            continue
        rates = {step: f"{figures[f'{step}_s']:,} s" for step in ("split", "merge", "merge_again")}
        print(
            f"{records:>11,} records, {figures['parts']} parts: split {rates['split']} "
            f"({figures['split_peak'] / 2**20:,.0f} MiB), merge {rates['merge']} "
            f"({figures['merge_peak'] / 2**20:,.0f} MiB), merged again {rates['merge_again']}; "
            f"database {figures['database_bytes'] / 1e6:,.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
