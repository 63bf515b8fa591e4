"""Every source of an archive's manifest through the fetch stage, with small pictures and a tenth of the URLs faulty.

    python -m benchmarks.run.archive_rehearsal MANIFEST --small [--limit N]

Real `etl` processes against `SmallArchive`, reached as HTTP proxy; memory is the whole process tree's.
"""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.archive_claims import Claim, first_round, second_round
from support.small_archive import SmallArchive

from benchmarks.process_tree import Usage, run_measured

PER_HOST = 8

MEMORY = 600 * 10**6
"""Bytes that the process tree may take."""

SETTINGS = {
    "ETL_PER_HOST": str(PER_HOST), "ETL_CONCURRENCY": "16", "ETL_MAX_ATTEMPTS": "4", "ETL_BACKOFF": "0.2",
    "ETL_BACKOFF_CAP": "2", "ETL_CONNECT_TIMEOUT": "10", "ETL_READ_TIMEOUT": "2", "ETL_LONGEST_EDGE": "224",
}  # fmt: skip
"""Waits of seconds instead of minutes, as the stand-in asks for; everything else as the program is shipped."""


def rehearse(manifest: Path, limit: int | None, state: Path) -> dict[str, Any]:
    """Run everything, print one line per claim, and return the figures; exits when a claim does not hold."""
    opener = gzip.open if manifest.suffix == ".gz" else open
    with opener(manifest, "rb") as lines:
        urls = {json.loads(line)["external_url"] for _, line in zip(range(limit or sys.maxsize), lines, strict=False)}
    with SmallArchive() as archive:
        environment = os.environ | SETTINGS | {
            "ETL_STATE": str(state), "HTTP_PROXY": archive.base, "http_proxy": archive.base, "NO_PROXY": "",
            "no_proxy": "",
        }  # fmt: skip
        _etl(environment, "ingest", "--all", *(["--limit", str(limit)] if limit else []), str(manifest))
        state.mkdir(exist_ok=True)
        first = _measured(environment, state / "fetch.log", code=3)
        claims = first_round(archive.notes, urls, _failures(environment), per_host=PER_HOST)
        seen = len(archive.notes.visits)
        archive.heal()
        _etl(environment, "retry-failed")
        second = _measured(environment, state / "again.log", code=0)
        sources = json.loads(_etl(environment, "status", "--json"))["sources"]
        claims += second_round(archive.notes.visits[seen:], urls, sources)
        peak = max(first.peak_pss, second.peak_pss)
        claims.append(Claim(peak < MEMORY, f"peak memory of all processes {peak / 1e6:.0f} MB"))
        figures = {
            "sources": len(urls), "seconds": round(first.seconds, 1),
            "sources_per_s": round(len(urls) / first.seconds, 1), "cpu_s": round(first.cpu_s, 1),
            "peak_mb": round(peak / 1e6), "connections": archive.connections,
            "seconds_after_healing": round(second.seconds, 1),
        }  # fmt: skip
    for claim in claims:
        print(claim)
    if not all(claim.holds for claim in claims):
        sys.exit("broken: not every claim holds")
    return figures


def _etl(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "etl.cli.app", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"etl {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def _measured(environment: dict[str, str], log: Path, *, code: int) -> Usage:
    usage = run_measured([sys.executable, "-m", "etl.cli.app", "fetch"], output=log, environment=environment)
    if usage.code != code:
        sys.exit(f"etl fetch: exit code {usage.code}, not {code}\n{log.read_text()[-2000:]}")
    return usage


def _failures(environment: dict[str, str]) -> dict[str, str]:
    found = map(json.loads, _etl(environment, "failures", "--json").splitlines())
    return {failure["url"]: failure["error_class"] for failure in found}
