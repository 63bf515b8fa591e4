"""A run as long as they come: does anything grow, does anything become slower?

    python -m benchmarks.run.long_run                    # 100,000 small pictures; or: make long-run
    python -m benchmarks.run.long_run --items 5000       # minutes less, and only a look

The real program in processes of its own ingests, fetches over loopback HTTP, captions with the tiny model and exports.
While fetch and caption work, every process of theirs is looked at twice a second; the table has one row for each tenth
of the work.  Ends with 1 where something grew or slowed down (`benchmarks.run.long_claims`).
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.process_tree import Member, members
from benchmarks.run.long_claims import Look, Stretch, claims, tenths
from etl.domain.statuses import QueueStatus
from etl.errors import EtlError
from etl.state.read.reader import Reader

LOOK_S = 0.5
"""Seconds between two looks."""

SETTINGS = {
    "allow_host": "127.0.0.1", "per_host": 16, "decoders": 1, "min_free": 0, "longest_edge": 224, "model": "demo",
    "device": "cpu", "max_new_tokens": 2, "feeders": 1,
}  # fmt: skip
"""Two tokens a caption: the pipeline is measured, not the model."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--directory", type=Path, help="where to work and to leave the state [a temporary one]")
    parser.add_argument("--fetch-only", action="store_true", help="leave captions out")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    chosen = parser.parse_args()
    with contextlib.ExitStack() as resources:
        directory = chosen.directory or Path(resources.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        bench = LongRun(directory, chosen.items)
        held = bench.run(fetch_only=chosen.fetch_only)
    if chosen.json:
        chosen.json.write_text(json.dumps(bench.figures(), indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if held else 1)


class LongRun:
    """One state, from its manifest to its export."""

    def __init__(self, directory: Path, items: int) -> None:
        self._directory, self._items = directory, items
        self._state = directory / "state"
        settings = {**SETTINGS, "state": self._state}
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        self._environment = kept | {"OMP_NUM_THREADS": "1"} | {f"ETL_{n.upper()}": str(v) for n, v in settings.items()}
        self.stretches: dict[str, list[Stretch]] = {}

    def run(self, *, fetch_only: bool = False) -> bool:
        """Do everything and print what was seen; return whether every claim held."""
        with picture_server() as url:
            self._write_manifest(url)
            self._etl("ingest", str(self._directory / "manifest.jsonl"))
            self._watch("fetch", "sources")
            if not fetch_only:
                self._watch("caption", "captions")
        self._etl("verify")
        held = fetch_only or self._export()
        for stage, stretches in self.stretches.items():
            for claim in claims(stretches):
                print(f"{'holds' if claim.holds else 'FAILS':<6} {stage:<8} {claim.text}")
                held &= claim.holds
        return held

    def _export(self) -> bool:
        """Export, and tell whether every record has its caption."""
        output = self._directory / "out.jsonl"
        self._etl("export", str(output))
        with output.open("rb") as lines:
            captioned = sum(b'"vlm_caption":"' in line for line in lines)
        print(f"\nexported with a caption: {captioned:,} of {self._items:,}; the state is sound")
        return captioned == self._items

    def figures(self) -> dict[str, object]:
        """Return all that was seen, for a file."""
        rows = {stage: [vars(one) for one in stretches] for stage, stretches in self.stretches.items()}
        return {"items": self._items, **rows}

    def _write_manifest(self, url: str) -> None:
        with (self._directory / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
            for n in range(self._items):
                manifest.write(json.dumps({"id": f"r{n}", "url": f"{url}/{n}.jpg", "title": "A street"}) + "\n")

    def _etl(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "etl.cli.app", *arguments, "-q"]
        subprocess.run(command, env=self._environment, check=True)

    def _watch(self, command: str, table: str) -> None:
        """Run one stage to its end and keep a look at it twice a second."""
        begun, looks = time.monotonic(), list[Look]()
        process = subprocess.Popen(
            [sys.executable, "-m", "etl.cli.app", command, "-q"], env=self._environment, start_new_session=True
        )
        done, ended = 0, False
        while not ended:
            ended = process.poll() is not None
            seen = list(members(process.pid))
            # A stage that is starting has done nothing yet, and its memory says nothing.
            if not ended and seen and (done := self._done(table)):
                looks.append(self._look(time.monotonic() - begun, done, seen, process.pid))
            time.sleep(LOOK_S)
        if process.returncode:
            sys.exit(f"etl {command} ended with {process.returncode}")
        self.stretches[command] = tenths(looks, self._items)
        print(f"\n{command}: {self._items:,} items in {time.monotonic() - begun:.0f} s", flush=True)
        print(Stretch.head())
        for stretch in self.stretches[command]:
            print(stretch.line(), flush=True)

    def _look(self, at: float, done: int, seen: list[Member], pid: int) -> Look:
        wal = self._state / "state.db-wal"
        others = [one for one in seen if one.pid != pid]
        main = next((one for one in seen if one.pid == pid), seen[0])
        return Look(
            at=at,
            done=done,
            cpu_s=sum(one.cpu_s for one in seen),
            main_bytes=main.pss,
            child_bytes=max((one.pss for one in others), default=0),
            descriptors=main.descriptors,
            child_descriptors=max((one.descriptors for one in others), default=0),
            threads=main.threads,
            wal_bytes=wal.stat().st_size if wal.exists() else 0,
        )

    def _done(self, table: str) -> int:
        try:
            with Reader(self._state) as reader:
                rows = reader.rows(
                    "SELECT sum(n) FROM counters WHERE stage = ? AND status = ?", (table, QueueStatus.DONE)
                )
        except EtlError:
            return 0
        return int(rows[0][0] or 0)


@contextlib.contextmanager
def picture_server() -> Iterator[str]:
    """Serve small pictures, each unlike the others, from a process of its own; yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.fetch.small_pictures", str(port)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main()
