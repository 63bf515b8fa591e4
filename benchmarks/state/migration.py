"""What the last migrations cost in a large state, and whether they bear being killed.

    python -m benchmarks.state.migration --records 200000 --kills 10

Makes a state (`benchmarks.state.growth`), half of it captioned, puts its rows into the schema as it was before image
flags, and opens that: once to the end, then ever again with SIGKILL at a random moment, and after that to the end.
Ends with an error where an end differs.
"""

import argparse
import hashlib
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from sqlite_utils import Database

from benchmarks.state import growth
from etl.state.database import DATABASE_NAME, PAGE_SIZE, SCHEMA_VERSION
from etl.state.migrations import migrations

BEFORE = "0008_image_flags"
OPEN = """
import pathlib, sys
from etl.settings import Settings
from etl.state.store import Store
Store.open(Settings(state=pathlib.Path(sys.argv[1]))).close()
"""
SHOWN = ("records", "sources", "captions", "images", "counters")


def earlier(today: Path, state: Path) -> None:
    """Write the rows of a database as the program before image flags would have."""
    old = Database(sqlite3.connect(state / DATABASE_NAME, isolation_level=None))
    with closing(old.conn):
        old.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        old.execute("PRAGMA journal_mode = WAL")
        migrations.apply(old, stop_before=BEFORE)
        old.execute("ATTACH ? AS today", (str(today / DATABASE_NAME),))
        old.execute("BEGIN")
        for table in ("runs", "manifests", "prompts", "recipes", "images", "sources", "captions", "records",
                      "record_lines", "hosts"):  # fmt: skip
            names = ", ".join(column.name for column in old[table].columns)
            old.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM today.{table}")
        old.execute("COMMIT")
        old.execute("PRAGMA user_version = 7")


def digest(state: Path) -> str:
    """Return a hash of everything that matters, of a database that must be sound and of today's version."""
    seen = hashlib.sha256()
    with closing(sqlite3.connect(state / DATABASE_NAME)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        for table in SHOWN:
            for row in db.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3"):
                seen.update(repr(row).encode())
    return seen.hexdigest()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        growth.make(Path(folder), options.records)
        growth.work(Path(folder) / "state", options.records // 2)
        state, tried = Path(folder) / "earlier", Path(folder) / "tried"
        state.mkdir()
        earlier(Path(folder) / "state", state)
        command = [sys.executable, "-c", OPEN, str(tried)]
        shutil.copytree(state, tried)
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True)
        took, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        size = (state / DATABASE_NAME).stat().st_size
        print(f"| {options.records:,} records, {size / 1e6:.0f} MB | {took:.1f} s, {cpu:.1f} s of CPU |", flush=True)
        whole, within = digest(tried), 0
        for _ in range(options.kills):
            shutil.rmtree(tried)
            shutil.copytree(state, tried)
            child = subprocess.Popen(command)
            time.sleep(random.uniform(0.1, 1) * took)
            within += child.poll() is None
            child.kill()
            child.wait()
            subprocess.run(command, check=True)
            if digest(tried) != whole:
                sys.exit("a migration that was killed does not end as one that was not")
        print(f"| killed at random moments, then opened again | {options.kills}, {within} within it, none differs |")


if __name__ == "__main__":
    main()
