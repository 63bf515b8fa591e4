"""How fast a manifest becomes records, and how much memory that takes.

    python -m benchmarks.ingest --records 1000000

Writes a manifest of made-up records, shaped and sized like those of a photograph archive (about 1.3 kB each, some
pictures with two records, mostly shelf marks for titles, a hundred dates), into a temporary directory and ingests it
twice: the first time everything is new, the second time nothing has changed.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ingest.manifests import write_manifest
from benchmarks.process_tree import peak_rss
from etl.ingest.manifest import Manifest
from etl.ingest.options import IngestOptions
from etl.ingest.stage import ingest
from etl.settings import Settings
from etl.state.store import Store

MARKS = (0.1, 0.5, 1.0)
"""Shares of the manifest after which the peak memory is noted: flat memory gives three like figures."""


def measure(directory: Path, records: int) -> dict[str, Any]:
    """Ingest a manifest of ``records`` lines twice; return the figures."""
    manifest = directory / "manifest.jsonl"
    write_manifest(manifest, records)
    peaks: dict[str, int] = {}

    def note(done: int) -> None:
        for mark in MARKS:
            if done >= mark * records:
                peaks.setdefault(f"{mark:.0%}", peak_rss())

    with Store.open(Settings(state=directory / "state")) as store:
        seconds, cpu = [], []
        for _ in range(2):
            began, cpu_began = time.perf_counter(), time.process_time()
            summary = ingest(store, Manifest(str(manifest)), IngestOptions(), on_batch=note)
            seconds.append(time.perf_counter() - began)
            cpu.append(time.process_time() - cpu_began)
        assert summary.records == records
    return {
        "records": records,
        "manifest_bytes": manifest.stat().st_size,
        "database_bytes": (directory / "state" / "state.db").stat().st_size,
        "seconds": round(seconds[0], 2),
        "records_per_s": round(records / seconds[0]),
        "records_per_cpu_s": round(records / cpu[0]),
        "unchanged_seconds": round(seconds[1], 2),
        "peak_rss": peaks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure `etl ingest` on made-up records of about 1.3 kB.")
    parser.add_argument("--records", type=int, default=1_000_000, help="records in the manifest (default: 1000000)")
    parser.add_argument("--directory", type=Path, help="where the temporary files go (default: the system's place)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ingest-", dir=arguments.directory) as directory:
        figures = measure(Path(directory), arguments.records)
    if arguments.json:
        json.dump(figures, sys.stdout)
        print()
        return
    peaks = ", ".join(f"{size / 2**20:.0f} MiB at {mark}" for mark, size in figures["peak_rss"].items())
    print(f"{figures['records']:,} records, {figures['manifest_bytes'] / 1e6:,.0f} MB of JSON Lines")
    print(
        f"ingested in {figures['seconds']:.1f} s: {figures['records_per_s']:,} records/s, "
        f"{figures['records_per_cpu_s']:,} for each second of CPU"
    )
    print(f"the same file again: {figures['unchanged_seconds']:.1f} s")
    print(f"database: {figures['database_bytes'] / 1e6:,.0f} MB; peak memory: {peaks}")


if __name__ == "__main__":
    main()
