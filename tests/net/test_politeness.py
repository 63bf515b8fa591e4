"""Limits per host and in total, and pauses."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from etl.net.politeness import HostGate


def _run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(bounded())


async def _hold(gate: HostGate, host: str, until: asyncio.Event, started: list[str]) -> None:
    async with gate.slot(host):
        started.append(host)
        await until.wait()


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_limits_hold_under_random_load_and_cancellation() -> None:
    """However requests come, end and are cancelled, no limit is passed and no slot is lost."""

    async def scenario() -> None:
        rng = random.Random(3)
        gate, active, most = HostGate(5, 2), Counter[str](), Counter[str]()

        async def work(host: str, seconds: float) -> None:
            async with gate.slot(host):
                active[host] += 1
                most[host] = max(most[host], active[host])
                most["all"] = max(most["all"], active.total())
                try:
                    await asyncio.sleep(seconds)
                finally:
                    active[host] -= 1

        jobs = [asyncio.create_task(work(f"h{rng.randrange(6)}", rng.random() / 200)) for _ in range(400)]
        for job in rng.sample(jobs, 150):
            await asyncio.sleep(rng.random() / 500)
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        assert most.pop("all") == 5
        assert set(most.values()) == {2}
        assert [gate.free(f"h{n}") for n in range(6)] == [2] * 6
        assert gate.free("") == 5

    _run(scenario)


def test_a_request_cancelled_as_its_slot_comes_gives_it_on() -> None:
    """A waiter that is cancelled in the moment between grant and start does not take the slot with it."""

    async def scenario() -> None:
        gate, done, started = HostGate(1, 1), asyncio.Event(), list[str]()
        done.set()
        async with gate.slot("a"):
            cancelled = asyncio.create_task(_hold(gate, "a", done, started))
            following = asyncio.create_task(_hold(gate, "a", done, started))
            await _settle()
        # Leaving the block granted the slot; the waiter has not run since.
        cancelled.cancel()
        await following
        assert started == ["a"]
        assert cancelled.cancelled()
        assert gate.free("a") == 1

    _run(scenario)


def test_a_busy_host_does_not_hold_up_the_others() -> None:
    """Requests that wait for their host take nothing from the total."""

    async def scenario() -> None:
        gate, done, started = HostGate(3, 1), asyncio.Event(), list[str]()
        async with asyncio.TaskGroup() as group:
            for host in ("busy", "busy", "busy", "busy", "other", "third"):
                group.create_task(_hold(gate, host, done, started))
            await _settle()
            assert started == ["busy", "other", "third"]
            done.set()
        assert Counter(started) == {"busy": 4, "other": 1, "third": 1}

    _run(scenario)


def test_free_says_what_could_start_now() -> None:
    """It is bounded by the host, by the total and, for local files, by the total alone."""

    async def scenario() -> None:
        gate, done = HostGate(3, 2), asyncio.Event()
        assert (gate.free("a"), gate.free("")) == (2, 3)
        async with asyncio.TaskGroup() as group:
            group.create_task(_hold(gate, "a", done, []))
            group.create_task(_hold(gate, "b", done, []))
            await _settle()
            assert (gate.free("a"), gate.free("b"), gate.free("c"), gate.free("")) == (1, 1, 1, 1)
            done.set()

    _run(scenario)


def test_a_pause_holds_its_host_only_and_ends_by_itself() -> None:
    """Requests to the paused host wait it out, also those that were waiting already; others start at once."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        gate, done, started = HostGate(4, 1), asyncio.Event(), list[str]()
        began = loop.time()
        gate.pause("slow", 0.1)
        assert gate.free("slow") == 0
        async with asyncio.TaskGroup() as group:
            group.create_task(_hold(gate, "slow", done, started))
            await _settle()
            gate.pause("slow", 0.25)
            gate.pause("slow", 0.01)
            group.create_task(_hold(gate, "quick", done, started))
            await asyncio.sleep(0.15)
            assert started == ["quick"]
            done.set()
        assert loop.time() - began >= 0.25
        assert started == ["quick", "slow"]
        assert gate.paused_until("slow") is None
        assert gate.free("slow") == 1

    _run(scenario)


def test_paused_until_is_on_the_gate_s_clock() -> None:
    """The end of a pause can be compared with the clock that was given; a past or empty pause is none."""
    now = [100.0]
    gate = HostGate(1, 1, clock=lambda: now[0])
    gate.pause("a", 30)
    gate.pause("b", 0)
    assert (gate.paused_until("a"), gate.paused_until("b"), gate.paused_until("c")) == (130.0, None, None)
    now[0] = 130.0
    assert gate.paused_until("a") is None


def test_a_failing_block_gives_its_slot_back() -> None:
    """An error inside the block leaves the gate as it was."""

    async def scenario() -> None:
        gate = HostGate(1, 1)
        with pytest.raises(ZeroDivisionError):
            async with gate.slot("a"):
                raise ZeroDivisionError
        assert gate.free("a") == 1

    _run(scenario)


@pytest.mark.parametrize(("total", "per_host"), [(0, 1), (1, 0)])
def test_limits_below_one_are_refused(total: int, per_host: int) -> None:
    """A gate that could never open is an error at once."""
    with pytest.raises(ValueError, match="at least 1"):
        HostGate(total, per_host)
