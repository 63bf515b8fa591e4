"""Rehearse the first user's job: the real manifest against stand-ins for its two hosts.

    python -m benchmarks.run.archive_rehearsal MANIFEST [--small] [--limit 300] [--state DIR] [--json]

Runs the real program in processes of its own: ingest, a run in which a fixed share of the files fails, then,
with the hosts healed, retry-failed and a second run.  Checks after each step what must hold, and that every
caption is the sentence that belongs to its picture.  With ``--small``, all of the manifest is fetched instead, as
small pictures (`benchmarks.run.small_rehearsal`).
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.run import small_rehearsal
from benchmarks.run.archive_server import ArchiveServer, behaviour_of, scene_of

PDF_RECORD = 13_987
"""Place of a record in the archive's manifest whose image is a PDF."""


@dataclass
class Step:
    """One command as it ran."""

    command: str
    code: int
    seconds: float
    output: str


class Rehearsal:
    """The program on one state directory, with the stand-in as its proxy."""

    def __init__(self, state: Path, server: ArchiveServer) -> None:
        self._environment = os.environ | {
            "ETL_STATE": str(state), "ETL_MODEL": "demo", "ETL_BACKOFF": "0.3", "ETL_BACKOFF_CAP": "3",
            "ETL_MAX_ATTEMPTS": "3", "ETL_PER_HOST": "8", "HTTP_PROXY": server.base, "http_proxy": server.base,
            "NO_PROXY": "", "no_proxy": "",
        }  # fmt: skip
        self.steps: list[Step] = []

    def etl(self, *arguments: str, code: int = 0) -> str:
        """Run one command; exit when it does not end with ``code``."""
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "etl.cli.app", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        step = Step(" ".join(("etl", *arguments)), done.returncode, time.monotonic() - begun, done.stdout)
        self.steps.append(step)
        if done.returncode != code:
            sys.exit(f"{step.command}: exit code {done.returncode}, not {code}\n{done.stderr}")
        return done.stdout

    def status(self) -> dict[str, Any]:
        """Return the status object."""
        return dict(json.loads(self.etl("status", "--json")))


def rehearse(manifest: Path, limit: int, state: Path) -> dict[str, Any]:
    """Run everything; return the figures.  Exits with a message when something does not hold."""
    opener = gzip.open if manifest.suffix == ".gz" else open
    with opener(manifest, "rb") as lines:
        records = [json.loads(line) for line in lines]
    sizes = {record["external_url"]: record["image_size_bytes"] for record in records}
    with ArchiveServer(sizes) as server:
        job = Rehearsal(state, server)
        job.etl("ingest", str(manifest))
        whole = job.status()
        begun = time.monotonic()
        job.etl("run", "--limit", str(limit), code=3)
        first_run_s = time.monotonic() - begun
        first = job.status()
        expect(first["records"]["pending"] == 0, "every selected record is captioned or failed")
        classes = Counter(json.loads(line)["error_class"] for line in job.etl("failures", "--json").splitlines())
        server.heal()
        job.etl("retry-failed")
        job.etl("run", "--output", str(state / "out.jsonl"))
        second = job.status()
        expect(second["records"]["captioned"] == second["records"]["selected"], "the second run brings failures to 0")
        expect(max(server.answered.values()) == 1, "no file was downloaded twice")
        right, wrong = grade(state / "out.jsonl")
        if len(records) > PDF_RECORD:
            job.etl("run", "--offset", str(PDF_RECORD), "--limit", "1")
        job.etl("verify")
        return {
            "records": whole["records"]["total"], "selected": whole["records"]["selected"],
            "sources": sum(whole["sources"].values()), "window": first["records"]["selected"],
            "first_run": outcome_of(first), "first_run_seconds": round(first_run_s, 1),
            "failures": dict(classes), "second_run": outcome_of(second),
            "behaviours": Counter(behaviour_of(url) for url in server.requests), "requests": server.requests.total(),
            "downloaded_bytes": server.bytes_sent, "captions_right": right, "captions_wrong": wrong,
            "steps": [(step.command, step.code, round(step.seconds, 2)) for step in job.steps],
        }  # fmt: skip


def outcome_of(status: dict[str, Any]) -> dict[str, int]:
    """Return what became of the selected records."""
    return {name: status["records"][name] for name in ("captioned", "failed", "pending")}


def grade(exported: Path) -> tuple[int, int]:
    """Count captions that are, word for word, the sentence of their picture, and those that are not."""
    right = wrong = 0
    for line in exported.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record.get("vlm_caption") is not None:
            good = record["vlm_caption"] == scene_of(record["external_url"]).caption
            right, wrong = right + good, wrong + (not good)
    return right, wrong


def expect(holds: bool, what: str) -> None:
    """Exit when a promise is broken."""
    if not holds:
        sys.exit(f"broken: {what}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--limit", type=int, help="records; 300 of them, or all with --small")
    parser.add_argument("--small", action="store_true", help="fetch all of it, as small pictures; no captions")
    parser.add_argument("--state", type=Path, help="keep the state here")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        state = options.state or Path(scratch) / "state"
        if options.small:
            figures = small_rehearsal.rehearse(options.manifest, options.limit, state)
        else:
            figures = rehearse(options.manifest, options.limit or 300, state)
    if options.json:
        print(json.dumps(figures))
        return
    for command, code, seconds in figures.pop("steps", ()):
        print(f"{seconds:8.2f} s  exit {code}  {command}")
    for name, value in figures.items():
        print(f"{name:18} {dict(value) if isinstance(value, dict) else value}")


if __name__ == "__main__":
    main()
