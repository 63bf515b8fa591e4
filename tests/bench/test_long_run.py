"""The judge of long runs sees what grows and what slows down, and nothing else."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks.run.long_claims import CACHE_BYTES, MEMORY_BYTES, Look, claims, tenths
from benchmarks.run.long_run import LongRun

ITEMS = 1000
MIB = 1 << 20


def steady(**changed: float) -> list[Look]:
    """Return looks at a run that does ten items a second; what is ``changed`` grows by that much an item."""
    looks = []
    for done in range(10, ITEMS + 1, 10):
        look = Look(done / 10, done, done / 20, 300 * MIB, 40 * MIB, 20, 5, 6, 16 * MIB)
        grown = {name: getattr(look, name) + round(rate * done) for name, rate in changed.items()}
        looks.append(dataclasses.replace(look, **grown))
    return looks


def failing(looks: list[Look]) -> list[str]:
    """Return the claims that do not hold, up to their figures."""
    return [claim.text.split(":")[0] for claim in claims(tenths(looks, ITEMS)) if not claim.holds]


def test_a_steady_run_holds_every_claim() -> None:
    """Ten stretches of equal speed and size."""
    stretches = tenths(steady(), ITEMS)
    assert [round(one.per_s) for one in stretches] == [10] * 10
    assert [round(one.per_cpu_s) for one in stretches] == [20] * 10
    assert failing(steady()) == []


@pytest.mark.parametrize(
    ("name", "rate", "claim"),
    [
        ("main_bytes", 3 * (MEMORY_BYTES + CACHE_BYTES) / ITEMS, "memory of the main process"),
        ("child_bytes", 2 * MEMORY_BYTES / ITEMS, "memory of its largest child"),
        ("descriptors", 0.01, "file descriptors"),
        ("child_descriptors", 0.01, "those of a child"),
        ("threads", 0.01, "threads"),
        ("wal_bytes", 0.1 * MIB, "largest write-ahead log"),
    ],
)
def test_growth_fails_its_claim_alone(name: str, rate: float, claim: str) -> None:
    """Whatever grows by a little with each item is named."""
    assert failing(steady(**{name: rate})) == [claim]


def test_slowing_down_fails() -> None:
    """A last tenth that takes a quarter longer is named, by the clock and by CPU time."""
    slow = [
        dataclasses.replace(look, at=look.at + max(0, look.done - 900) / 40, cpu_s=look.cpu_s + look.done**2 / 1e5)
        for look in steady()
    ]
    assert failing(slow) == ["items/s", "items per CPU second"]


def test_a_run_that_is_over_at_once_proves_nothing() -> None:
    """One look is no stretch; nothing is claimed of it."""
    assert failing(steady()[:1]) == ["too short to be judged"]


@pytest.mark.soak
def test_the_whole_job_is_watched(tmp_path: Path) -> None:
    """A short run of the real program gives a row for each stage with figures of living processes, and ends whole."""
    bench = LongRun(tmp_path, 2000)
    bench.run()
    for stage in ("fetch", "caption"):
        stretches = bench.stretches[stage]
        assert len(stretches) >= 4
        assert all(one.main_bytes > 20 * MIB and one.descriptors > 5 and one.per_cpu_s > 0 for one in stretches)
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 2000
