"""What a long run is judged by: looks at its processes, gathered into tenths of the work."""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from etl.state.database import CACHE_KIB

SLOWER = 0.10
"""Share by which the last tenth may be slower than the first."""

MEMORY_SHARE, MEMORY_BYTES = 0.05, 16 << 20
"""Growth of a process's memory that counts as none; a leak of 200 bytes an item would be 18 MB over nine tenths of
100,000."""

CACHE_BYTES = CACHE_KIB << 10
"""What the writer's process may gain besides: SQLite's page cache fills up as the database grows, and then stays."""

WAL_BYTES = 64 << 20
"""Largest write-ahead log that counts as emptied all along: 1,000 pages of 16 KiB are 16 MB, and a batch may add."""


@dataclass(frozen=True)
class Look:
    """One look at the processes of a stage.

    Attributes:
        at: seconds since its start.
        done: items done.
        cpu_s: CPU seconds of all its processes so far.
        main_bytes: proportional set size of the main process.
        child_bytes: the same of its largest child.
        descriptors, child_descriptors: open file descriptors of the main process, and the most that a child has.
        threads: of the main process.
        wal_bytes: size of the write-ahead log.
    """

    at: float
    done: int
    cpu_s: float
    main_bytes: int
    child_bytes: int
    descriptors: int
    child_descriptors: int
    threads: int
    wal_bytes: int


@dataclass(frozen=True)
class Stretch:
    """A tenth of the work: medians of its looks, but for the log, of which it is the largest."""

    number: int
    per_s: float
    per_cpu_s: float
    main_bytes: int
    child_bytes: int
    descriptors: int
    child_descriptors: int
    threads: int
    wal_bytes: int

    @staticmethod
    def head() -> str:
        """Return the heading of a table."""
        return (
            f"{'tenth':>6}{'items/s':>9}{'/CPU s':>8}{'main MiB':>10}{'child MiB':>11}{'fds':>5}{'child fds':>11}"
            f"{'threads':>9}{'WAL MiB':>9}"
        )

    def line(self) -> str:
        """Return its line of the table."""
        return (
            f"{self.number:>6}{self.per_s:>9.0f}{self.per_cpu_s:>8.0f}{self.main_bytes / 2**20:>10.1f}"
            f"{self.child_bytes / 2**20:>11.1f}{self.descriptors:>5}{self.child_descriptors:>11}{self.threads:>9}"
            f"{self.wal_bytes / 2**20:>9.1f}"
        )


@dataclass(frozen=True)
class Claim:
    """One thing that must hold, and whether it does."""

    text: str
    holds: bool


def tenths(looks: Sequence[Look], items: int) -> list[Stretch]:
    """Gather the looks of a stage with so many items; tenths without two looks are left out.

    Once all is done a process only closes what it has open, which is no work.
    """
    at_work = [look for look in looks if look.done < items]
    grouped = itertools.groupby(at_work, key=lambda look: look.done * 10 // items)
    found = []
    for number, group in grouped:
        some = list(group)
        first, last = some[0], some[-1]
        if last.done == first.done:
            continue
        found.append(
            Stretch(
                number + 1,
                (last.done - first.done) / (last.at - first.at),
                (last.done - first.done) / (last.cpu_s - first.cpu_s),
                _median(some, "main_bytes"),
                _median(some, "child_bytes"),
                _median(some, "descriptors"),
                _median(some, "child_descriptors"),
                _median(some, "threads"),
                max(look.wal_bytes for look in some),
            )
        )
    return found


def claims(stretches: Sequence[Stretch]) -> Iterator[Claim]:
    """Yield what must hold between the first tenth and the last."""
    if len(stretches) < 2:
        yield Claim("too short to be judged", False)
        return
    first, last = stretches[0], stretches[-1]
    for name, kind in (("per_s", "items/s"), ("per_cpu_s", "items per CPU second")):
        before, after = getattr(first, name), getattr(last, name)
        text = f"{kind}: {after:.0f} in the last tenth, {before:.0f} in the first ({after / before - 1:+.1%})"
        yield Claim(text, after >= before * (1 - SLOWER))
    for name, whose in (("main_bytes", "the main process"), ("child_bytes", "its largest child")):
        before, after = getattr(first, name), getattr(last, name)
        text = f"memory of {whose}: {before / 2**20:.1f} -> {after / 2**20:.1f} MiB"
        cache = CACHE_BYTES if name == "main_bytes" else 0
        yield Claim(text, after <= before * (1 + MEMORY_SHARE) + MEMORY_BYTES + cache)
    for name, what in (
        ("descriptors", "file descriptors"),
        ("child_descriptors", "those of a child"),
        ("threads", "threads"),
    ):
        before, after = getattr(first, name), getattr(last, name)
        yield Claim(f"{what}: {before} -> {after}", after <= before + 2)
    largest = max(one.wal_bytes for one in stretches)
    yield Claim(f"largest write-ahead log: {largest / 2**20:.1f} MiB", largest <= WAL_BYTES)


def _median(looks: Sequence[Look], name: str) -> int:
    return int(statistics.median(getattr(look, name) for look in looks))
