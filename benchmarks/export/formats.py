"""How long an export takes in each format, and how much memory, and how both grow.

    python -m benchmarks.export.formats --records 10000 100000

Makes a state of made-up records of about 1.3 kB with their captions, but without pictures, and exports it in each
format that needs none, in a process of its own; Parquet also as shards, and these again, when none is to be written.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.state.growth import make, timed, work
from etl.export.stage import ExportOptions
from etl.run.pipeline import export_manifest
from etl.settings import Settings

WAYS: dict[str, tuple[str, ExportOptions]] = {
    "jsonl": ("out.jsonl", ExportOptions()),
    "csv": ("out.csv", ExportOptions()),
    "parquet": ("out.parquet", ExportOptions()),
    "parquet shards": ("shards", ExportOptions(format="parquet", shard_size=10_000)),
    "the same again": ("shards", ExportOptions(format="parquet", shard_size=10_000)),
}


def write(directory: Path, way: str) -> None:
    """Export in one way."""
    target, options = WAYS[way]
    export_manifest(Settings(state=directory / "state"), str(directory / target), options)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure `etl export` in its formats on made-up states.")
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--directory", type=Path, help="where the temporary files go (default: the system's place)")
    arguments = parser.parse_args()
    for records in arguments.records:
        with tempfile.TemporaryDirectory(prefix="export-", dir=arguments.directory) as name:
            directory = Path(name)
            make(directory, records)
            work(directory / "state", records)
            for way in WAYS:
                seconds, _, peak = timed(write, directory, way)
                print(f"{records:>11,} records  {way:<15} {seconds:>7.1f} s  {peak / 2**20:>5,.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
