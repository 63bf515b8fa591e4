"""Run a program and measure all of its processes: time, CPU and peak memory.  Linux only, it reads ``/proc``."""

import os
import resource
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.1
"""Seconds between two looks at the memory."""

SAMPLE_SHARE = 0.03
"""Share of one core that sampling may take: looking at a large process costs milliseconds of its own time too."""

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What a program and everything that it started took.

    Attributes:
        seconds: from start to end.
        cpu_s: user and system time of all processes.
        peak_pss: largest sum of the processes' proportional set sizes, in bytes; shared pages count once.
        machine_cpu_s: CPU time of the whole machine meanwhile, other guests of its host included.
        code: exit code, negative for a signal.
    """

    seconds: float
    cpu_s: float
    peak_pss: int
    machine_cpu_s: float
    code: int


def run_measured(
    command: Sequence[str], *, output: Path, environment: Mapping[str, str] | None = None, timeout_s: float = 900
) -> Usage:
    """Run the command in a session of its own, its output going to a file, and return what it took.

    After ``timeout_s`` all of its processes are killed.
    """
    with output.open("wb") as log:
        begun, busy_s = time.perf_counter(), _machine_cpu_s()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=None if environment is None else dict(environment),
        )
        sampler = _Sampler(process.pid)
        killer = threading.Timer(timeout_s, _kill, (process.pid,))
        sampler.start()
        killer.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds, busy_s = time.perf_counter() - begun, _machine_cpu_s() - busy_s
        killer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = sampler.finish()
    # The kernel adds a process's time to its parent's only when the parent waits for it; an orphan's was only sampled.
    cpu_s = max(usage.ru_utime + usage.ru_stime, sampler.cpu_s)
    return Usage(seconds, cpu_s, peak, busy_s, process.returncode)


@dataclass(frozen=True)
class Member:
    """One living process of a session, as it was at a look.

    Attributes:
        cpu_s: its own user and system time so far, without its children's.
        pss: proportional set size, in bytes.
        descriptors, threads: how many it has open.
    """

    pid: int
    cpu_s: float
    pss: int
    descriptors: int
    threads: int


def members(session: int) -> Iterator[Member]:
    """Yield the living processes of a session; one that ends meanwhile is left out."""
    for pid, cpu_s in _session(session, children=False):
        here = Path(f"/proc/{pid}")
        try:
            counts = [sum(1 for _ in (here / kind).iterdir()) for kind in ("fd", "task")]
        except OSError:
            continue
        yield Member(pid, cpu_s, _pss(pid), *counts)


def session_cpu_s(session: int) -> float:
    """Return the user and system time of a session's living processes and of the children that they waited for."""
    return sum(cpu_s for _, cpu_s in _session(session))


def _machine_cpu_s() -> float:
    """Return the seconds that the machine's cores were not idle; fields as in proc(5)."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _kill(session: int) -> None:
    for pid, _ in _session(session):
        os.kill(pid, 9)


class _Sampler(threading.Thread):
    """Looks at a session's processes until told to finish."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.cpu_s = 0.0
        self._own_cpu: dict[int, float] = {}
        self._session = session
        self._peak = 0
        self._ended = threading.Event()

    def run(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            begun = time.thread_time()
            processes = list(_session(self._session, children=False))
            self._own_cpu.update(processes)
            self._peak = max(self._peak, sum(_pss(pid) for pid, _ in processes))
            pause = max(SAMPLE_S, (time.thread_time() - begun) / SAMPLE_SHARE)

    def finish(self) -> int:
        """Stop and return the peak."""
        self._ended.set()
        self.join()
        self.cpu_s = sum(self._own_cpu.values())
        return self._peak


def _session(session: int, *, children: bool = True) -> Iterator[tuple[int, float]]:
    """Yield ``(pid, CPU seconds)`` of the session's processes; fields as in proc(5), counted behind the name."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # It has ended since.
        if int(fields[3]) == session:
            yield int(entry.name), sum(map(int, fields[11 : 15 if children else 13])) / _TICKS


def _pss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)


def peak_rss() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
