"""Limits per host and in total, and pauses."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from support.virtual_time import run_in_virtual_time

from etl.domain.statuses import HostState
from etl.domain.views import HostInfo
from etl.errors import ConnectError, DnsError, FetchError, FetchTimeoutError, TooManyRequestsError
from etl.fetch.hosts.breaker import Request
from etl.fetch.hosts.limiter import HostGate


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


class _Watched:
    """A gate under random load, and what must hold at every start."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = asyncio.get_running_loop().time
        self.intervals = {f"h{n}": self.rng.choice([0.2, 3.0]) for n in range(4)}
        self.gate = HostGate(9, 4, rate=5, pause_s=3, patience_s=1e6, clock=self.clock)
        for host, seconds in self.intervals.items():
            self.gate.set_interval(host, seconds)
        self.last_start: dict[str, float] = {}
        self.infos: dict[str, HostInfo] = {}
        self.active = Counter[str]()
        self.trials: dict[str, Request] = {}
        self.seen = Counter[str]()

    async def ask(self, host: str, source: int) -> None:
        async with self.gate.slot(host, source) as request:
            self.check_start(request)
            try:
                await asyncio.sleep(self.rng.expovariate(0.5))
                self.end(request)
            finally:
                self.active[host] -= 1
                if self.trials.get(host) is request:
                    del self.trials[host]

    def check_start(self, request: Request) -> None:
        host, now = request.host, self.clock()
        self.active[host] += 1
        assert self.active.total() <= 9
        assert self.gate.paused_until(host) is None
        assert now - self.last_start.get(host, 0) >= self.intervals[host] - 1e-9
        self.last_start[host] = now
        self.infos |= {each.host: each for each in self.gate.hosts()}
        info = self.infos[host]
        assert info.in_flight == self.active[host]
        assert request.trial == self.gate.parked(host)
        if request.trial:
            assert host not in self.trials
            assert info.until is None
            self.trials[host] = request
            self.seen["trial"] += 1
        else:
            assert self.active[host] <= info.allowed <= 4
            self.seen[f"allowed {info.allowed}"] += 1

    def end(self, request: Request) -> None:
        # The first host is healthy, the last one mostly dead.
        if self.rng.random() > int(request.host[1:]) / 3.2:
            self.gate.succeeded(request, 1)
            return
        busy = TooManyRequestsError("429", retry_after_s=self.rng.choice([None, 5.0]))
        raise self.rng.choice([ConnectError("refused"), FetchTimeoutError("slow"), DnsError("no name"), busy])


@pytest.mark.parametrize("seed", range(5))
def test_politeness_holds_under_random_load(seed: int) -> None:
    """However requests come, fail and are cancelled: no start above a limit, in a pause, while parked except for one
    trial, or sooner than the interval after the one before; and in the end every slot is free."""

    async def scenario() -> None:
        watched = _Watched(seed)
        rng, gate = watched.rng, watched.gate
        tasks = []
        for source in range(1500):
            tasks.append(asyncio.create_task(watched.ask(f"h{rng.randrange(4)}", source)))
            if rng.random() < 0.2:
                rng.choice(tasks).cancel()
            if rng.random() < 0.01:
                gate.pause(f"h{rng.randrange(4)}", rng.random() * 20)
            await asyncio.sleep(rng.expovariate(2))
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError | FetchError), result
        assert {"trial", "allowed 1", "allowed 4"} <= watched.seen.keys()
        assert gate.free("") == 9
        for host in watched.intervals:
            gate.set_interval(host, 0)
            for _ in range(20):
                await _succeed(gate, host)
        await asyncio.sleep(1)
        # Healed: of four free slots, three can be used within the next half second at 5 starts per second.
        assert [gate.free(host) for host in watched.intervals] == [3, 3, 3, 3]

    run_in_virtual_time(scenario, limit_s=1e8)


async def _succeed(gate: HostGate, host: str) -> None:
    async with gate.slot(host) as request:
        gate.succeeded(request)


def test_cancelled_waiters_leave_nothing_behind() -> None:
    """Waiters that are cancelled while their host pauses, or is parked, do not count as waiting any more."""

    async def scenario() -> None:
        gate = HostGate(4, 2, clock=asyncio.get_running_loop().time)
        gate.pause("a", 10)
        gate.restore("b", HostState.PARKED, 10, None)
        waiting = [asyncio.create_task(_succeed(gate, host)) for host in "aaabbb"]
        await asyncio.sleep(5)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        await asyncio.sleep(6)
        assert [gate.free(host) for host in ("a", "b", "")] == [2, 1, 4]

    run_in_virtual_time(scenario)


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
