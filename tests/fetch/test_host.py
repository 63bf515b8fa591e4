"""How a host is slowed down, not asked, tried again, given up, reported and forgotten."""

import asyncio
import itertools
import logging
from collections.abc import Callable

import pytest
from support.virtual_time import run_in_virtual_time as run

from etl.clock import now_ms
from etl.domain.statuses import HostState
from etl.domain.views import HostInfo
from etl.errors import (
    BlockedAddressError,
    BrokenConnectionError,
    ConnectError,
    CorruptImageError,
    DnsError,
    FetchError,
    FetchTimeoutError,
    HostDownError,
    InternalError,
    ItemError,
    NotAnImageError,
    NotFoundError,
    ProtocolError,
    RobotsError,
    ServerError,
    TlsError,
    TooManyRequestsError,
    TruncatedBodyError,
)
from etl.fetch.hosts.health import Health, health_of, is_overload
from etl.fetch.hosts.limiter import HostLimiter, HostNotReadyError

HOST = "archive.example"


def _limiter(total: int = 50, per_host: int = 8, **terms: float) -> HostLimiter:
    return HostLimiter(total, per_host, clock=lambda: asyncio.get_running_loop().time(), **terms)


def _status(error: FetchError, status: int) -> FetchError:
    error.http_status = status
    return error


async def _ask(
    limiter: HostLimiter, source: object = "a", error: ItemError | None = None, seconds: float = 0.01
) -> None:
    """One request that takes so many seconds and ends as told."""
    async with limiter.slot(HOST, source) as request:
        await asyncio.sleep(seconds)
        if error is None:
            limiter.succeeded(request, 100)
        else:
            limiter.failed(request, error)


async def _fail_eight(limiter: HostLimiter, error: Callable[[str], ItemError] = DnsError) -> None:
    for source in range(8):
        await _ask(limiter, source, error("no answer"))


def _is_open(limiter: HostLimiter, host: str) -> bool:
    return host in limiter._hosts and limiter._hosts[host].breaker_is_open


def _now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(
    ("error", "health", "overload"),
    [
        (TooManyRequestsError("x"), Health.ALIVE, True),
        (_status(ServerError("x"), 503), Health.FAILING, True),
        (_status(ServerError("x"), 500), Health.FAILING, False),
        (_status(ServerError("x"), 408), Health.ALIVE, True),
        (FetchTimeoutError("x"), Health.FAILING, True),
        (_status(FetchTimeoutError("in the body"), 200), Health.ALIVE, True),
        (BrokenConnectionError("x"), Health.FAILING, True),
        (ConnectError("x"), Health.FAILING, True),
        (_status(ConnectError("redirected to a dead host"), 302), Health.ALIVE, True),
        (DnsError("x"), Health.FAILING, False),
        (ProtocolError("x"), Health.FAILING, False),
        (_status(TruncatedBodyError("x"), 200), Health.ALIVE, False),
        (_status(NotFoundError("x"), 404), Health.ALIVE, False),
        (TlsError("x"), Health.ALIVE, False),
        (NotAnImageError("x"), Health.ALIVE, False),
        (CorruptImageError("x"), Health.ALIVE, False),
        (BlockedAddressError("x"), Health.UNKNOWN, False),
        (RobotsError("x"), Health.UNKNOWN, False),
        (InternalError("x"), Health.UNKNOWN, False),
    ],
)
def test_what_an_error_says_about_its_host(error: ItemError, health: Health, overload: bool) -> None:
    """An answer proves the host alive; what could come from a dead host does not; the rest says nothing."""
    assert (health_of(error), is_overload(error)) == (health, overload)


def test_overload_halves_what_is_allowed_once_for_all_that_ran_together() -> None:
    """Eight requests that fail together are one event; one that started after the cut is the next."""

    async def scenario() -> None:
        limiter = _limiter()
        async with asyncio.TaskGroup() as group:
            for source in range(8):
                error = _status(ServerError("busy"), 503)
                group.create_task(_ask(limiter, source % 2, error, seconds=1 + source))
        assert limiter.free(HOST) == 4
        for _ in range(2):
            await _ask(limiter, "a", _status(ServerError("busy"), 503))
        assert limiter.free(HOST) == 2
        await _ask(limiter, "a", _status(NotFoundError("not there"), 404))
        await _ask(limiter, "a", TruncatedBodyError("cut"))
        assert limiter.free(HOST) == 2

    run(scenario)


def test_a_failure_once_in_a_while_slows_nobody_down() -> None:
    """One busy answer in fifty is how old servers are; one in five is not, and one 429 is a word."""

    async def allowed_after(error: FetchError, successes: int) -> int:
        limiter = _limiter()
        for _ in range(6):
            await _ask(limiter, "a", error)
            for _ in range(successes):
                await _ask(limiter, "b")
        return limiter.free(HOST)

    async def scenario() -> None:
        assert await allowed_after(_status(ServerError("busy"), 503), 49) == 8
        assert await allowed_after(FetchTimeoutError("slow"), 10) == 8
        assert await allowed_after(_status(ServerError("busy"), 503), 4) < 8
        assert await allowed_after(_status(TooManyRequestsError("429", retry_after_s=0.01), 429), 4) < 8

    run(scenario)


def test_who_would_rather_come_again_is_turned_away() -> None:
    """Without patience a request waits for a slot, but not until a pause, an open breaker or a closed limiter ends."""

    async def turned_away(limiter: HostLimiter, then: Callable[[], object]) -> float:
        async def ask() -> None:
            async with limiter.slot(HOST, patient=False):
                pass

        async with limiter.slot(HOST):
            task = asyncio.create_task(ask())
            await asyncio.sleep(1)
            assert limiter.waiting == 1
            then()
            with pytest.raises(HostNotReadyError) as caught:
                await task
            assert limiter.waiting == 0
            return (caught.value.until_ms - now_ms()) / 1000

    async def scenario() -> None:
        limiter = _limiter(per_host=1)
        assert 19 < await turned_away(limiter, lambda: limiter.pause(HOST, 20)) <= 21
        await asyncio.sleep(21)
        assert await turned_away(limiter, lambda: setattr(limiter, "closed", True)) <= 0
        with pytest.raises(HostNotReadyError):
            async with limiter.slot("another.example", patient=False):
                pass
        limiter.closed = False
        await _ask(limiter)
        await _fail_eight(limiter, ConnectError)
        with pytest.raises(HostNotReadyError):
            async with limiter.slot(HOST, patient=False):
                pass

    run(scenario)


def test_as_many_may_wait_as_may_run() -> None:
    """Ahead of time so much may be asked for that every slot is taken again at once; nothing for a blocked host."""

    async def scenario() -> None:
        limiter = _limiter(total=6, per_host=4)
        assert (limiter.ahead(HOST), limiter.ahead("")) == (4, 6)
        async with asyncio.TaskGroup() as group:
            for _ in range(7):
                group.create_task(_ask(limiter, seconds=1))
            await asyncio.sleep(0.5)
            assert (limiter.ahead(HOST), limiter.waiting) == (1, 3)
        limiter.pause(HOST, 5)
        assert limiter.ahead(HOST) == 0

    run(scenario)


def test_successes_raise_it_step_by_step_to_the_limit() -> None:
    """One more is allowed after as many successes as are allowed; those that began before the cut do not count."""

    async def scenario() -> None:
        limiter = _limiter(per_host=4)
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(_ask(limiter, "a", BrokenConnectionError("reset"), seconds=1))
                group.create_task(_ask(limiter, seconds=2))
        allowed = [limiter.free(HOST)]
        for _ in range(9):
            await _ask(limiter)
            allowed.append(limiter.free(HOST))
        assert allowed == [2, 2, 3, 3, 3, 4, 4, 4, 4, 4]

    run(scenario)


def test_when_one_at_a_time_is_too_much_delays_grow_and_shrink() -> None:
    """From the second overload on the delay between starts doubles, from 0.5 s to 30 s; each success halves it."""

    async def scenario() -> None:
        limiter, starts = _limiter(per_host=1), list[float]()

        async def ask(error: ItemError | None) -> None:
            async with limiter.slot(HOST, "a") as request:
                starts.append(_now())
                limiter.failed(request, error) if error else limiter.succeeded(request)

        for _ in range(8):
            await ask(_status(FetchTimeoutError("slow"), 200))
        for _ in range(8):
            await ask(None)
        gaps = [round(late - early, 3) for early, late in itertools.pairwise(starts)]
        assert gaps == [0, 0.5, 1, 2, 4, 8, 16, 30, 15, 7.5, 3.75, 1.875, 0.938, 0.469, 0]

    run(scenario)


def test_a_429_pauses_the_host_for_everybody() -> None:
    """Retry-After holds all requests to the host, up to a cap; a 429 without one pauses for the time set."""

    async def scenario() -> None:
        limiter = _limiter(pause_s=7, longest_pause_s=100)
        began = _now()
        await _ask(limiter, "a", TooManyRequestsError("429", retry_after_s=30), seconds=0)
        assert (limiter.free(HOST), limiter.free("other.example")) == (0, 8)
        await _ask(limiter, "b", TooManyRequestsError("429"), seconds=0)
        assert _now() == pytest.approx(began + 30)
        await _ask(limiter, "c", _status(ServerError("503", retry_after_s=86_400), 503), seconds=0)
        assert _now() == pytest.approx(began + 37)
        assert limiter.blocked_until_ms(HOST) == pytest.approx(now_ms() + 100_000, abs=5000)

    run(scenario)


def test_eight_different_sources_in_a_row_open_the_breaker() -> None:
    """One source may fail as often as it likes; an answer in between begins a new row; others are not touched."""

    async def scenario() -> None:
        limiter = _limiter()
        for _ in range(20):
            await _ask(limiter, "same", DnsError("no name"))
        for source in range(6):
            await _ask(limiter, source, DnsError("no name"))
        assert not _is_open(limiter, HOST)
        await _ask(limiter, "missing", _status(NotFoundError("gone"), 404))
        for source in range(7):
            await _ask(limiter, source, DnsError("no name"))
        assert not _is_open(limiter, HOST)
        await _ask(limiter, 7, DnsError("no name"))
        assert _is_open(limiter, HOST)
        assert (limiter.free(HOST), limiter.free("other.example"), _is_open(limiter, "other.example")) == (0, 8, False)

    run(scenario)


def test_a_host_that_did_not_answer_gets_one_probe_and_goes_on_slowly() -> None:
    """Whoever waits stays so for 30 s; then one request runs alone, and after its success one at a time."""

    async def scenario() -> None:
        limiter, running, most = _limiter(), 0, list[int]()

        async def ask(source: int) -> None:
            nonlocal running
            async with limiter.slot(HOST, source) as request:
                running += 1
                most.append(running)
                await asyncio.sleep(5)
                limiter.succeeded(request)
                running -= 1

        await _fail_eight(limiter)
        began = _now()
        async with asyncio.TaskGroup() as group:
            for source in range(6):
                group.create_task(ask(source))
            await asyncio.sleep(29.9)
            assert (running, limiter.free(HOST)) == (0, 0)
            await asyncio.sleep(0.2)
            assert (running, limiter.free(HOST), _is_open(limiter, HOST)) == (1, 0, True)
            await asyncio.sleep(4.95)
            assert (running, _is_open(limiter, HOST)) == (1, False)
        assert (most[:3], max(most)) == ([1, 1, 1], 2)
        assert _now() > began + 45

    run(scenario)


def test_after_a_failed_probe_the_breaker_is_open_for_twice_as_long() -> None:
    """The time between probes doubles from 30 s to ten minutes; each is exactly one request."""

    async def scenario() -> None:
        limiter, probes = _limiter(patience_s=1e6), list[float]()

        async def ask(source: int) -> None:
            async with limiter.slot(HOST, source) as request:
                assert request.is_probe
                probes.append(_now())
                limiter.failed(request, DnsError("no name"))

        await _fail_eight(limiter)
        opened = _now()
        async with asyncio.TaskGroup() as group:
            for source in range(7):
                group.create_task(ask(source))
        waits = [round(late - early) for early, late in itertools.pairwise([opened, *probes])]
        assert waits == [30, 60, 120, 240, 480, 600, 600]

    run(scenario)


def test_no_wait_of_our_own_is_longer_than_set() -> None:
    """Parking, also one that an earlier run chose, and delays end when the longest wait is over."""

    async def scenario() -> None:
        limiter = _limiter(per_host=1, longest_wait_s=2)
        limiter.restore("restored", HostState.NOT_ANSWERING, 500, None)
        await _fail_eight(limiter, ConnectError)
        for _ in range(3):
            opened = _now()
            await _ask(limiter, "a", ConnectError("refused"), seconds=0)
            assert _now() - opened == pytest.approx(2)
        assert limiter.free("restored") == 1

    run(scenario)


def test_a_probe_without_result_is_followed_by_another() -> None:
    """A probe that is cancelled, or that ended with an error of ours, leaves the breaker half-open."""

    async def scenario() -> None:
        limiter = _limiter()
        await _fail_eight(limiter)
        cancelled = asyncio.create_task(_ask(limiter, "a", seconds=100))
        waiting = asyncio.create_task(_ask(limiter, "b", InternalError("ours")))
        await asyncio.sleep(31)
        cancelled.cancel()
        await asyncio.wait([cancelled, waiting])
        assert (_is_open(limiter, HOST), limiter.free(HOST)) == (True, 1)
        await _ask(limiter, "c")
        assert (_is_open(limiter, HOST), limiter.free(HOST)) == (False, 1)

    run(scenario)


def test_requests_under_way_run_on_when_the_breaker_opens() -> None:
    """Their failures open nothing anew, and the success of one closes the breaker."""

    async def scenario() -> None:
        limiter = _limiter(per_host=10)
        async with asyncio.TaskGroup() as group:
            for source in range(8):
                group.create_task(_ask(limiter, source, DnsError("no name"), seconds=1))
            group.create_task(_ask(limiter, "late", DnsError("no name"), seconds=25))
            group.create_task(_ask(limiter, "later", seconds=35))
            await asyncio.sleep(26)
            assert _is_open(limiter, HOST)
            await asyncio.sleep(6)
            assert limiter.free(HOST) == 1
        assert not _is_open(limiter, HOST)

    run(scenario)


def test_an_error_that_leaves_the_block_is_reported_once() -> None:
    """Whoever names a source need not report its errors, and a second report changes nothing."""

    async def scenario() -> None:
        limiter = _limiter()
        for source in range(8):
            with pytest.raises(DnsError):
                async with limiter.slot(HOST, source) as request:
                    error = DnsError("no name")
                    limiter.failed(request, error)
                    limiter.succeeded(request)
                    raise error
        assert _is_open(limiter, HOST)
        assert [info.failed for info in limiter.hosts()] == [8]

    run(scenario)


def test_patience_ends_with_a_failed_probe() -> None:
    """A host is given up at the first failure after its patience, for which a probe comes just then; a success
    takes everything back."""

    async def scenario() -> None:
        limiter = _limiter(patience_s=100)
        began = _now()
        await _fail_eight(limiter)
        for _ in range(2):
            await _ask(limiter, "a", DnsError("no name"))
            assert not limiter.given_up(HOST)
        # The probes were after 30 s and 90 s; the next would be after 210 s.
        await _ask(limiter, "a", DnsError("no name"))
        assert limiter.given_up(HOST)
        assert _now() - began == pytest.approx(100, abs=0.1)
        await _ask(limiter, "a")
        assert (limiter.given_up(HOST), _is_open(limiter, HOST)) == (False, False)

    run(scenario)


def test_whoever_waits_for_a_host_that_is_given_up_is_told() -> None:
    """Waiting requests end with `HostDownError` instead of becoming one probe after the other."""

    async def scenario() -> None:
        limiter = _limiter(patience_s=1)
        await _fail_eight(limiter)
        tasks = [asyncio.create_task(_ask(limiter, source, ConnectError("refused"))) for source in range(5)]
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in ended] == [type(None)] + 4 * [HostDownError]
        assert "connect" in str(ended[1])
        assert limiter.free("other.example") == 8

    run(scenario)


def test_requests_to_one_host_are_spread_evenly_under_a_rate() -> None:
    """With 4 requests per second, a quarter of a second lies between any two starts, on each host for itself."""

    async def scenario() -> None:
        limiter, starts = _limiter(rate=4), dict[str, list[float]]()

        async def ask(host: str) -> None:
            async with limiter.slot(host):
                starts.setdefault(host, []).append(_now() - began)

        began = _now()
        assert limiter.free("a") == 3
        async with asyncio.TaskGroup() as group:
            for host in "aabaab":
                group.create_task(ask(host))
            await asyncio.sleep(0.01)
            assert (limiter.free("a"), limiter.free("b")) == (0, 1)
        assert starts["a"] == pytest.approx([0, 0.25, 0.5, 0.75])
        assert starts["b"] == pytest.approx([0, 0.25])

    run(scenario)


def test_a_host_s_own_interval_outlives_its_forgetting() -> None:
    """The interval that a robots.txt asks for holds, also for a host that was idle in between, until it is ended."""

    async def scenario() -> None:
        limiter = _limiter(rate=10)
        limiter.set_interval(HOST, 10)
        for expected in (0, 10, 20):
            await _ask(limiter, seconds=0)
            assert _now() - 1000 == pytest.approx(expected)
            assert limiter.free(HOST) == 0
            limiter.hosts()
        await asyncio.sleep(60)
        limiter.hosts()
        assert limiter.free(HOST) == 1
        await _ask(limiter, seconds=0)
        waiting = asyncio.create_task(_ask(limiter, seconds=0))
        await asyncio.sleep(1)
        limiter.set_interval(HOST, 0)
        await waiting
        assert _now() - 1000 == pytest.approx(81)

    run(scenario)


def _only(infos: list[HostInfo]) -> HostInfo:
    (info,) = infos
    return info


def test_hosts_tells_what_changed_since_the_last_time() -> None:
    """Each report has the counts and the busy time since the one before; what did not change is left out."""

    async def scenario() -> None:
        limiter = _limiter()
        async with asyncio.TaskGroup() as group:
            group.create_task(_ask(limiter, "a", seconds=1))
            group.create_task(_ask(limiter, "b", seconds=2))
            await asyncio.sleep(1.5)
            info = _only(limiter.hosts())
            assert (info.host, info.state, info.in_flight) == (HOST, HostState.HEALTHY, 1)
            assert (info.done, info.failed, info.bytes, info.busy_ms) == (1, 0, 100, 1500)
        info = _only(limiter.hosts())
        assert (info.done, info.bytes, info.busy_ms, info.in_flight, info.allowed) == (1, 100, 500, 0, 8)
        assert limiter.hosts() == []
        async with limiter.slot(""):
            assert limiter.hosts() == []

    run(scenario)


def test_hosts_tells_why_a_host_is_not_open() -> None:
    """Slowed, paused and not answering come with a reason for people and with the end of a pause as Unix time."""

    async def scenario() -> None:
        limiter = _limiter(per_host=2)
        await _ask(limiter, "a", _status(TooManyRequestsError("429", retry_after_s=30), 429))
        paused = _only(limiter.hosts())
        assert (paused.state, paused.reason) == (HostState.PAUSED, "HTTP 429, asks to wait 30 s")
        assert paused.until is not None
        assert abs(paused.until - now_ms() - 30_000) < 5_000
        await asyncio.sleep(31)
        slowed = _only(limiter.hosts())
        assert (slowed.state, slowed.reason, slowed.until, slowed.allowed) == ("slowed", "after HTTP 429", None, 1)
        for _ in range(2):
            await _ask(limiter, "a", _status(ServerError("busy"), 503))
        assert _only(limiter.hosts()).reason == "after HTTP 503; 0.5 s between requests"
        await _ask(limiter, "a")
        await _fail_eight(limiter, FetchTimeoutError)
        opened = _only(limiter.hosts())
        assert (opened.state, opened.reason) == (HostState.NOT_ANSWERING, "8 sources failed in a row: timeout")
        await _ask(limiter, 0, DnsError("no name"))
        assert _only(limiter.hosts()).reason == "the next one failed too: dns"
        limiter.set_interval("slow.example", 20)
        async with limiter.slot("slow.example"):
            await asyncio.sleep(0)
        assert _only(limiter.hosts()).reason == "20 s between requests"

    run(scenario)


def test_what_an_earlier_run_knew_is_restored() -> None:
    """A pause goes on for its rest, a host that did not answer begins with a probe; other states change nothing."""

    async def scenario() -> None:
        limiter = _limiter()
        limiter.restore("paused", HostState.PAUSED, 12, "HTTP 429")
        limiter.restore("open", HostState.HEALTHY, 12, None)
        limiter.restore(HOST, HostState.NOT_ANSWERING, 40, "8 sources failed in a row: dns")
        reasons = {info.host: (info.state, info.reason) for info in limiter.hosts()}
        assert reasons == {
            "paused": (HostState.PAUSED, "HTTP 429"),
            HOST: (HostState.NOT_ANSWERING, "8 sources failed in a row: dns"),
        }
        assert [limiter.free(host) for host in ("paused", "open", HOST)] == [0, 8, 0]
        await asyncio.sleep(41)
        assert [limiter.free(host) for host in ("paused", "open", HOST)] == [8, 8, 1]
        await _ask(limiter, "a", DnsError("no name"))
        assert (_is_open(limiter, HOST), limiter.free(HOST), limiter.given_up(HOST)) == (True, 0, False)

    run(scenario)


def test_idle_hosts_are_forgotten() -> None:
    """A healthy host is forgotten once reported, a slowed one after half an hour, one that does not answer never."""

    async def scenario() -> None:
        limiter = _limiter()
        for host in map(str, range(50)):
            async with limiter.slot(host, "a") as request:
                limiter.succeeded(request)
        await _ask(limiter, "a", DnsError("no name"))
        limiter.restore("dead", HostState.NOT_ANSWERING, 1, None)
        assert len(limiter._hosts) == 52
        assert len(limiter.hosts()) == 52
        assert sorted(limiter._hosts) == [HOST, "dead"]
        await asyncio.sleep(1801)
        limiter.hosts()
        assert sorted(limiter._hosts) == ["dead"]

    run(scenario)


def test_each_change_of_state_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Hundreds of requests that change nothing say nothing."""

    async def scenario() -> None:
        limiter = _limiter(per_host=2)
        for error in (None, _status(ServerError("busy"), 503), _status(ServerError("busy"), 503), None, None, None):
            for source in range(5):
                await _ask(limiter, source, error)
        async with asyncio.TaskGroup() as group:
            for seconds in (0.1, 0.2):
                group.create_task(_ask(limiter, "a", TooManyRequestsError("429", retry_after_s=3), seconds))
        await _fail_eight(limiter)
        await _ask(limiter)

    with caplog.at_level(logging.INFO, "etl.fetch.hosts"):
        run(scenario)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("INFO", f"{HOST}: slowed down after HTTP 503"),
        ("INFO", f"{HOST}: at full speed again"),
        ("INFO", f"{HOST}: slowed down after HTTP 429"),
        ("INFO", f"{HOST}: paused for 3 s: HTTP 429, asks to wait 3 s"),
        ("WARNING", f"{HOST}: not answering, asked again in 30 s: 8 sources failed in a row: dns"),
        ("WARNING", f"{HOST}: answers again; goes on with one request at a time"),
    ]
