"""Measure `etl fetch` beside img2dataset: the same files, server, cores and size of the pictures that come out.

    python3 -m venv peer && peer/bin/pip install img2dataset==1.47.0
    python -m benchmarks.fetch --peer-python peer/bin/python --runs 3

Both programs run as their users run them, in processes of their own, against a static server on the loopback.  We
hash, fsync and commit to the database; the peer hashes, keeps whole files in memory and writes without fsync.  In the
same run two limits are measured: downloading to disk without decoding, and decoding without downloading.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fetch.files import KINDS, make_files
from benchmarks.fetch.report import print_table
from benchmarks.fetch.server import ADDRESSES, Server, make_certificate, nginx, own_server
from benchmarks.fetch.sides import (
    CONNECTIONS,
    CORES,
    MOST_PER_HOST,
    PEER_THREADS,
    Result,
    decode_limit,
    download_limit,
    run_ours,
    run_peer,
)

DECODED_FOR_LIMIT = 40
"""Files that the decode limit is measured on, at most."""


@dataclass(frozen=True)
class Workload:
    """Files of one kind behind a server of some quality.

    Attributes:
        kind: of the files.
        latency_s: seconds that the server waits before each answer.
        fault_percent: share of the files whose first request is answered with 503.
        connections: ours; the peer's are always the same.
    """

    name: str
    kind: str
    latency_s: float = 0.0
    fault_percent: float = 0.0
    connections: int = CONNECTIONS

    def bound(self, files: int, connections: int) -> float | None:
        """Return the files/s that so many connections allow, if latency limits them; the last may have few to fetch."""
        if not self.latency_s:
            return None
        return files / (math.ceil(files / connections) * self.latency_s) / (1 + self.fault_percent / 100)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("jpeg", "jpeg"),
        Workload("tiff", "tiff"),
        Workload("small", "small"),
        Workload("latency", "small", latency_s=0.2),
        Workload("latency-128", "small", latency_s=1.0, connections=128),
        Workload("faults", "small", latency_s=0.2, fault_percent=2),
    )
}


Program = Callable[[list[str], Workload], Result]


@dataclass
class Figures:
    """The samples of one program, one per run.

    ``others`` is how many cores the rest of the machine took meanwhile, this benchmark's own sampling included: a
    sample is worth something when it is near 0.  ``failed`` counts files without a working copy.
    """

    files: int
    seconds: list[float] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    server_cpu_s: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    peak_pss: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)

    def add(self, whole: Result, one: Result, server_cpu_s: float) -> None:
        """Note a run over all files, and one over a single small file, which is all start-up."""
        self.seconds.append(whole.usage.seconds)
        self.start_s.append(one.usage.seconds)
        self.cpu_s.append(whole.usage.cpu_s)
        self.server_cpu_s.append(server_cpu_s)
        self.others.append((whole.usage.machine_cpu_s - whole.usage.cpu_s - server_cpu_s) / whole.usage.seconds)
        self.peak_pss.append(whole.usage.peak_pss)
        self.failed.append(self.files - whole.copies)

    def summary(self) -> dict[str, Any]:
        """Return per figure ``[median, min, max]``; ``None`` where the files were too few to tell."""
        return {
            "files_per_s": _spread([self.files / s for s in self.seconds]),
            "files_per_s_after_start": self._after_start(),
            "start_s": _spread(self.start_s),
            "cpu_ms_per_file": _spread([1000 * s / self.files for s in self.cpu_s]),
            "server_cpu_ms_per_file": _spread([1000 * s / self.files for s in self.server_cpu_s]),
            "cores_taken_by_others": _spread(self.others),
            "peak_pss_mb": _spread([size / 1e6 for size in self.peak_pss]),
            "failed": _spread(self.failed),
        }

    def _after_start(self) -> list[float] | None:
        pairs = list(zip(self.seconds, self.start_s, strict=True))
        if any(seconds < 2 * start_s for seconds, start_s in pairs):
            return None
        return _spread([self.files / (seconds - start_s) for seconds, start_s in pairs])


def _spread(values: list[Any]) -> list[float]:
    return [round(float(value), 3) for value in (statistics.median(values), min(values), max(values))]


class Benchmark:
    """All workloads, once per run; the figures gather in `result`."""

    def __init__(self, work: Path, arguments: argparse.Namespace) -> None:
        self._work = work
        self._files = work / "files"
        self._arguments = arguments
        self._names: list[str] = arguments.workload or list(WORKLOADS)
        self._figures: dict[str, dict[str, Figures]] = {name: {} for name in self._names}
        self._limits: dict[str, dict[str, list[float]]] = {name: {} for name in self._names}
        self._programs: dict[str, Program] = {"ours": self._ours}
        if arguments.peer_python:
            self._programs["peer"] = self._peer
        self._certificate = make_certificate(work) if arguments.tls else None
        if self._certificate:
            # Both sides, and the limits, inherit it.
            os.environ["SSL_CERT_FILE"] = str(self._certificate)

    def run(self) -> dict[str, Any]:
        for number in range(self._arguments.runs):
            # Every second run the other way round, so that neither always has the warmer machine.
            programs = dict(sorted(self._programs.items(), reverse=number % 2 == 1))
            started = {side: self._one_file(program) for side, program in programs.items()}
            for name in self._names:
                for side, program in programs.items():
                    self._measure(WORKLOADS[name], side, program, started[side])
                self._measure_limits(WORKLOADS[name])
        return {
            "runs": self._arguments.runs, "cores": CORES,
            "server": f"nginx{' with TLS' * self._arguments.tls}" if self._arguments.nginx else "own asyncio server",
            "connections": {"ours": CONNECTIONS, "peer": PEER_THREADS * CORES},
            "workloads": {name: self._summary(WORKLOADS[name]) for name in self._names},
        }  # fmt: skip

    def _one_file(self, program: Program) -> Result:
        with self._server(WORKLOADS["small"]) as server:
            return program(self._urls(server, self._paths("small")[:1], WORKLOADS["small"]), WORKLOADS["small"])

    def _measure(self, workload: Workload, side: str, program: Program, one: Result) -> None:
        paths = self._paths(workload.kind)
        for path in paths:
            path.read_bytes()  # From the page cache, then, for everybody.
        figures = self._figures[workload.name].setdefault(side, Figures(len(paths)))
        with self._server(workload) as server:
            whole = program(self._urls(server, paths, workload), workload)
            figures.add(whole, one, server.cpu_s())
        print(f"{workload.name}, {side}: {len(paths) / whole.usage.seconds:.1f} files/s", file=sys.stderr, flush=True)

    def _measure_limits(self, workload: Workload) -> None:
        if workload.latency_s:
            return
        paths = self._paths(workload.kind)
        with self._server(workload) as server:
            self._note(workload, "download", download_limit(self._urls(server, paths, workload), self._work / "limit"))
        self._note(workload, "decode_per_core", decode_limit(paths[:DECODED_FOR_LIMIT]))

    def _paths(self, name: str) -> list[Path]:
        kind = KINDS[name]
        return make_files(kind, self._files, kind.small_count if self._arguments.small else kind.count)

    def _note(self, workload: Workload, name: str, limit: dict[str, float]) -> None:
        for figure in ("files_per_s", "cpu_ms_per_file"):
            self._limits[workload.name].setdefault(f"{name}_{figure}", []).append(limit[figure])

    def _server(self, workload: Workload) -> AbstractContextManager[Server]:
        if workload.latency_s or not self._arguments.nginx:
            return own_server(self._files, latency_s=workload.latency_s, fault_percent=workload.fault_percent)
        return nginx(self._arguments.nginx, self._files, self._work / "nginx", self._certificate)

    def _urls(self, server: Server, paths: list[Path], workload: Workload) -> list[str]:
        hosts = ADDRESSES[: -(-workload.connections // MOST_PER_HOST)]
        turn = itertools.cycle(server.url.replace(ADDRESSES[0], host) for host in hosts)
        return [f"{url}/{path.relative_to(self._files)}" for url, path in zip(turn, paths, strict=False)]

    def _ours(self, urls: list[str], workload: Workload) -> Result:
        return run_ours(urls, self._work / "ours", workload.connections)

    def _peer(self, urls: list[str], workload: Workload) -> Result:
        # Without retries, its default, it would leave out what failed once.
        retries = 2 if workload.fault_percent else 0
        return run_peer(self._arguments.peer_python, urls, self._work / "peer", retries=retries)

    def _summary(self, workload: Workload) -> dict[str, Any]:
        sides = self._figures[workload.name]
        summary: dict[str, Any] = {side: figures.summary() for side, figures in sides.items()}
        summary["files"] = sides["ours"].files
        summary["description"] = KINDS[workload.kind].description
        summary["limits"] = {name: _spread(values) for name, values in self._limits[workload.name].items()}
        if workload.latency_s:
            connections = {"ours": workload.connections, "peer": PEER_THREADS * CORES}
            summary["bound"] = {side: workload.bound(summary["files"], n) for side, n in connections.items()}
        if "peer" in sides:
            summary["ours_to_peer"] = {
                name: _ratio(summary["ours"][name], summary["peer"][name])
                for name in ("files_per_s", "files_per_s_after_start", "cpu_ms_per_file", "peak_pss_mb")
            }
        return summary


def _ratio(ours: list[float] | None, peer: list[float] | None) -> float | None:
    return round(ours[0] / peer[0], 3) if ours and peer else None


@contextmanager
def _work_directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="fetch-") as directory:
        yield Path(directory)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure `etl fetch` beside img2dataset, on 2 cores, over the loopback.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="img2dataset in an environment of its own:\n"
        "  python3 -m venv peer && peer/bin/pip install img2dataset==1.47.0\n  ... --peer-python peer/bin/python",
    )
    parser.add_argument("--peer-python", help="Python that has img2dataset 1.47; without it only our side is measured")
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="only this one; may be repeated")
    parser.add_argument("--runs", type=int, default=1, help="how often everything is measured (default: 1)")
    parser.add_argument("--work", type=Path, help="directory for the files, kept for the next time (default: none)")
    parser.add_argument("--nginx", default=shutil.which("nginx"), help="its program (default: the one in PATH)")
    parser.add_argument("--tls", action="store_true", help="nginx with a certificate of its own, over https")
    parser.add_argument("--small", action="store_true", help="few files: a smoke test")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    # The programs inherit it; the server shares the cores, as it would for nobody in real life.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with _work_directory(arguments.work) as work:
        result = Benchmark(work, arguments).run()
    if arguments.json:
        print(json.dumps(result))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
