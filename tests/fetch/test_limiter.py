"""Limits per host and in total, and pauses."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from support.virtual_time import run_in_virtual_time

from etl.clock import now_ms
from etl.domain.statuses import HostState
from etl.domain.views import HostInfo
from etl.errors import ConnectError, DnsError, FetchError, FetchTimeoutError, TooManyRequestsError
from etl.fetch.hosts.breaker import Request
from etl.fetch.hosts.limiter import HostLimiter


def _run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(bounded())


async def _hold(limiter: HostLimiter, host: str, until: asyncio.Event, started: list[str]) -> None:
    async with limiter.slot(host):
        started.append(host)
        await until.wait()


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_limits_hold_under_random_load_and_cancellation() -> None:
    """However requests come, end and are cancelled, no limit is passed and no slot is lost."""

    async def scenario() -> None:
        rng = random.Random(3)
        limiter, active, most = HostLimiter(5, 2), Counter[str](), Counter[str]()

        async def work(host: str, seconds: float) -> None:
            async with limiter.slot(host):
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
        assert [limiter.free(f"h{n}") for n in range(6)] == [2] * 6
        assert limiter.free("") == 5

    _run(scenario)


class _Watched:
    """A limiter under random load, and what must hold at every start."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = asyncio.get_running_loop().time
        self.intervals = {f"h{n}": self.rng.choice([0.2, 3.0]) for n in range(4)}
        self.limiter = HostLimiter(9, 4, rate=5, pause_s=3, patience_s=1e6, clock=self.clock)
        for host, seconds in self.intervals.items():
            self.limiter.set_interval(host, seconds)
        self.last_start: dict[str, float] = {}
        self.infos: dict[str, HostInfo] = {}
        self.active = Counter[str]()
        self.probes: dict[str, Request] = {}
        self.seen = Counter[str]()

    async def ask(self, host: str, source: int) -> None:
        async with self.limiter.slot(host, source) as request:
            self.check_start(request)
            try:
                await asyncio.sleep(self.rng.expovariate(0.5))
                self.end(request)
            finally:
                self.active[host] -= 1
                if self.probes.get(host) is request:
                    del self.probes[host]

    def check_start(self, request: Request) -> None:
        host, now = request.host, self.clock()
        self.active[host] += 1
        assert self.active.total() <= 9
        state = self.limiter._hosts[host]
        assert state.paused_until(now) is None
        assert now - self.last_start.get(host, 0) >= self.intervals[host] - 1e-9
        self.last_start[host] = now
        self.infos |= {each.host: each for each in self.limiter.hosts()}
        info = self.infos[host]
        assert info.in_flight == self.active[host]
        assert request.is_probe == state.breaker_is_open
        if request.is_probe:
            assert host not in self.probes
            assert info.until is None
            self.probes[host] = request
            self.seen["probe"] += 1
        else:
            assert self.active[host] <= info.allowed <= 4
            self.seen[f"allowed {info.allowed}"] += 1

    def end(self, request: Request) -> None:
        # The first host is healthy, the last one mostly dead.
        if self.rng.random() > int(request.host[1:]) / 3.2:
            self.limiter.succeeded(request, 1)
            return
        busy = TooManyRequestsError("429", retry_after_s=self.rng.choice([None, 5.0]))
        raise self.rng.choice([ConnectError("refused"), FetchTimeoutError("slow"), DnsError("no name"), busy])


@pytest.mark.parametrize("seed", range(5))
def test_limits_hold_under_random_load(seed: int) -> None:
    """However requests come, fail and are cancelled: no start above a limit, in a pause, of a host that does not answer
    except for one probe, or sooner than the interval after the one before; and in the end every slot is free."""

    async def scenario() -> None:
        watched = _Watched(seed)
        rng, limiter = watched.rng, watched.limiter
        tasks = []
        for source in range(1500):
            tasks.append(asyncio.create_task(watched.ask(f"h{rng.randrange(4)}", source)))
            if rng.random() < 0.2:
                rng.choice(tasks).cancel()
            if rng.random() < 0.01:
                limiter.pause(f"h{rng.randrange(4)}", rng.random() * 20)
            await asyncio.sleep(rng.expovariate(2))
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError | FetchError), result
        assert {"probe", "allowed 1", "allowed 4"} <= watched.seen.keys()
        assert limiter.free("") == 9
        for host in watched.intervals:
            limiter.set_interval(host, 0)
            for _ in range(20):
                await _succeed(limiter, host)
        await asyncio.sleep(1)
        # Healed: of four free slots, three can be used within the next half second at 5 starts per second.
        assert [limiter.free(host) for host in watched.intervals] == [3, 3, 3, 3]

    run_in_virtual_time(scenario, limit_s=1e8)


async def _succeed(limiter: HostLimiter, host: str) -> None:
    async with limiter.slot(host) as request:
        limiter.succeeded(request)


def test_cancelled_waiters_leave_nothing_behind() -> None:
    """Waiters that are cancelled while their host pauses, or does not answer, do not count as waiting any more."""

    async def scenario() -> None:
        limiter = HostLimiter(4, 2, clock=asyncio.get_running_loop().time)
        limiter.pause("a", 10)
        limiter.restore("b", HostState.NOT_ANSWERING, 10, None)
        waiting = [asyncio.create_task(_succeed(limiter, host)) for host in "aaabbb"]
        await asyncio.sleep(5)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        await asyncio.sleep(6)
        assert [limiter.free(host) for host in ("a", "b", "")] == [2, 1, 4]

    run_in_virtual_time(scenario)


def test_a_request_cancelled_as_its_slot_comes_gives_it_on() -> None:
    """A waiter that is cancelled in the moment between grant and start does not take the slot with it."""

    async def scenario() -> None:
        limiter, done, started = HostLimiter(1, 1), asyncio.Event(), list[str]()
        done.set()
        async with limiter.slot("a"):
            cancelled = asyncio.create_task(_hold(limiter, "a", done, started))
            following = asyncio.create_task(_hold(limiter, "a", done, started))
            await _settle()
        # Leaving the block granted the slot; the waiter has not run since.
        cancelled.cancel()
        await following
        assert started == ["a"]
        assert cancelled.cancelled()
        assert limiter.free("a") == 1

    _run(scenario)


def test_a_busy_host_does_not_hold_up_the_others() -> None:
    """Requests that wait for their host take nothing from the total."""

    async def scenario() -> None:
        limiter, done, started = HostLimiter(3, 1), asyncio.Event(), list[str]()
        async with asyncio.TaskGroup() as group:
            for host in ("busy", "busy", "busy", "busy", "other", "third"):
                group.create_task(_hold(limiter, host, done, started))
            await _settle()
            assert started == ["busy", "other", "third"]
            done.set()
        assert Counter(started) == {"busy": 4, "other": 1, "third": 1}

    _run(scenario)


def test_free_says_what_could_start_now() -> None:
    """It is bounded by the host, by the total and, for local files, by the total alone."""

    async def scenario() -> None:
        limiter, done = HostLimiter(3, 2), asyncio.Event()
        assert (limiter.free("a"), limiter.free("")) == (2, 3)
        async with asyncio.TaskGroup() as group:
            group.create_task(_hold(limiter, "a", done, []))
            group.create_task(_hold(limiter, "b", done, []))
            await _settle()
            assert (limiter.free("a"), limiter.free("b"), limiter.free("c"), limiter.free("")) == (1, 1, 1, 1)
            done.set()

    _run(scenario)


def test_a_pause_holds_its_host_only_and_ends_by_itself() -> None:
    """Requests to the paused host wait it out, also those that were waiting already; others start at once."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        limiter, done, started = HostLimiter(4, 1, clock=loop.time), asyncio.Event(), list[str]()
        began = loop.time()
        limiter.pause("slow", 0.1)
        assert limiter.free("slow") == 0
        async with asyncio.TaskGroup() as group:
            group.create_task(_hold(limiter, "slow", done, started))
            await _settle()
            limiter.pause("slow", 0.25)
            limiter.pause("slow", 0.01)
            group.create_task(_hold(limiter, "quick", done, started))
            await asyncio.sleep(0.15)
            assert started == ["quick"]
            done.set()
        assert loop.time() - began >= 0.25
        assert started == ["quick", "slow"]
        assert limiter.blocked_until_ms("slow") is None
        assert limiter.free("slow") == 1

    run_in_virtual_time(scenario)


def test_pauses_are_on_the_limiter_s_clock() -> None:
    """The end of a pause is counted on the clock that was given; a past or empty pause is none."""
    now = [100.0]
    limiter = HostLimiter(1, 1, clock=lambda: now[0])
    limiter.pause("a", 30)
    limiter.pause("b", 0)
    assert limiter.blocked_until_ms("a") == pytest.approx(now_ms() + 30_000, abs=5000)
    assert (limiter.blocked_until_ms("b"), limiter.blocked_until_ms("c")) == (None, None)
    now[0] = 130.0
    assert limiter.blocked_until_ms("a") is None


def test_a_failing_block_gives_its_slot_back() -> None:
    """An error inside the block leaves the limiter as it was."""

    async def scenario() -> None:
        limiter = HostLimiter(1, 1)
        with pytest.raises(ZeroDivisionError):
            async with limiter.slot("a"):
                raise ZeroDivisionError
        assert limiter.free("a") == 1

    _run(scenario)


@pytest.mark.parametrize(("total", "per_host"), [(0, 1), (1, 0)])
def test_limits_below_one_are_refused(total: int, per_host: int) -> None:
    """A limiter that could never open is an error at once."""
    with pytest.raises(ValueError, match="at least 1"):
        HostLimiter(total, per_host)
