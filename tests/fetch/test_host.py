"""How a host is slowed down, parked, tried again, given up, reported and forgotten."""

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
from etl.fetch.hosts.health import Sign, is_overload, sign_of
from etl.fetch.hosts.limiter import HostGate, NotNowError

HOST = "archive.example"


def _gate(total: int = 50, per_host: int = 8, **terms: float) -> HostGate:
    return HostGate(total, per_host, clock=lambda: asyncio.get_running_loop().time(), **terms)


def _status(error: FetchError, status: int) -> FetchError:
    error.http_status = status
    return error


async def _ask(gate: HostGate, source: object = "a", error: ItemError | None = None, seconds: float = 0.01) -> None:
    """One request that takes so many seconds and ends as told."""
    async with gate.slot(HOST, source) as request:
        await asyncio.sleep(seconds)
        if error is None:
            gate.succeeded(request, 100)
        else:
            gate.failed(request, error)


async def _park(gate: HostGate, error: Callable[[str], ItemError] = DnsError) -> None:
    for source in range(8):
        await _ask(gate, source, error("no answer"))


def _now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(
    ("error", "sign", "overload"),
    [
        (TooManyRequestsError("x"), Sign.ALIVE, True),
        (_status(ServerError("x"), 503), Sign.TROUBLE, True),
        (_status(ServerError("x"), 500), Sign.TROUBLE, False),
        (_status(ServerError("x"), 408), Sign.ALIVE, True),
        (FetchTimeoutError("x"), Sign.TROUBLE, True),
        (_status(FetchTimeoutError("in the body"), 200), Sign.ALIVE, True),
        (BrokenConnectionError("x"), Sign.TROUBLE, True),
        (ConnectError("x"), Sign.TROUBLE, True),
        (_status(ConnectError("redirected to a dead host"), 302), Sign.ALIVE, True),
        (DnsError("x"), Sign.TROUBLE, False),
        (ProtocolError("x"), Sign.TROUBLE, False),
        (_status(TruncatedBodyError("x"), 200), Sign.ALIVE, False),
        (_status(NotFoundError("x"), 404), Sign.ALIVE, False),
        (TlsError("x"), Sign.ALIVE, False),
        (NotAnImageError("x"), Sign.ALIVE, False),
        (CorruptImageError("x"), Sign.ALIVE, False),
        (BlockedAddressError("x"), Sign.NONE, False),
        (RobotsError("x"), Sign.NONE, False),
        (InternalError("x"), Sign.NONE, False),
    ],
)
def test_what_an_error_says_about_its_host(error: ItemError, sign: Sign, overload: bool) -> None:
    """An answer proves the host alive; what could come from a dead host does not; the rest says nothing."""
    assert (sign_of(error), is_overload(error)) == (sign, overload)


def test_overload_halves_what_is_allowed_once_for_all_that_ran_together() -> None:
    """Eight requests that fail together are one event; one that started after the cut is the next."""

    async def scenario() -> None:
        gate = _gate()
        async with asyncio.TaskGroup() as group:
            for source in range(8):
                error = _status(ServerError("busy"), 503)
                group.create_task(_ask(gate, source % 2, error, seconds=1 + source))
        assert gate.free(HOST) == 4
        for _ in range(2):
            await _ask(gate, "a", _status(ServerError("busy"), 503))
        assert gate.free(HOST) == 2
        await _ask(gate, "a", _status(NotFoundError("not there"), 404))
        await _ask(gate, "a", TruncatedBodyError("cut"))
        assert gate.free(HOST) == 2

    run(scenario)


def test_a_failure_once_in_a_while_slows_nobody_down() -> None:
    """One busy answer in fifty is how old servers are; one in five is not, and one 429 is a word."""

    async def allowed_after(error: FetchError, successes: int) -> int:
        gate = _gate()
        for _ in range(6):
            await _ask(gate, "a", error)
            for _ in range(successes):
                await _ask(gate, "b")
        return gate.free(HOST)

    async def scenario() -> None:
        assert await allowed_after(_status(ServerError("busy"), 503), 49) == 8
        assert await allowed_after(FetchTimeoutError("slow"), 10) == 8
        assert await allowed_after(_status(ServerError("busy"), 503), 4) < 8
        assert await allowed_after(_status(TooManyRequestsError("429", retry_after_s=0.01), 429), 4) < 8

    run(scenario)


def test_who_would_rather_come_again_is_turned_away() -> None:
    """Without patience a request waits for a slot, but not for the end of a pause, a parking or a closed gate."""

    async def turned_away(gate: HostGate, then: Callable[[], object]) -> float:
        async def ask() -> None:
            async with gate.slot(HOST, patient=False):
                pass

        async with gate.slot(HOST):
            task = asyncio.create_task(ask())
            await asyncio.sleep(1)
            assert gate.waiting == 1
            then()
            with pytest.raises(NotNowError) as caught:
                await task
            assert gate.waiting == 0
            return (caught.value.until_ms - now_ms()) / 1000

    async def scenario() -> None:
        gate = _gate(per_host=1)
        assert 19 < await turned_away(gate, lambda: gate.pause(HOST, 20)) <= 21
        await asyncio.sleep(21)
        assert await turned_away(gate, lambda: setattr(gate, "closed", True)) <= 0
        with pytest.raises(NotNowError):
            async with gate.slot("another.example", patient=False):
                pass
        gate.closed = False
        await _ask(gate)
        await _park(gate, ConnectError)
        with pytest.raises(NotNowError):
            async with gate.slot(HOST, patient=False):
                pass

    run(scenario)


def test_as_many_may_wait_as_may_run() -> None:
    """Ahead of time so much may be asked for that every slot is taken again at once; nothing for a blocked host."""

    async def scenario() -> None:
        gate = _gate(total=6, per_host=4)
        assert (gate.ahead(HOST), gate.ahead("")) == (4, 6)
        async with asyncio.TaskGroup() as group:
            for _ in range(7):
                group.create_task(_ask(gate, seconds=1))
            await asyncio.sleep(0.5)
            assert (gate.ahead(HOST), gate.waiting) == (1, 3)
        gate.pause(HOST, 5)
        assert gate.ahead(HOST) == 0

    run(scenario)


def test_successes_raise_it_step_by_step_to_the_limit() -> None:
    """One more is allowed after as many successes as are allowed; those that began before the cut do not count."""

    async def scenario() -> None:
        gate = _gate(per_host=4)
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(_ask(gate, "a", BrokenConnectionError("reset"), seconds=1))
                group.create_task(_ask(gate, seconds=2))
        allowed = [gate.free(HOST)]
        for _ in range(9):
            await _ask(gate)
            allowed.append(gate.free(HOST))
        assert allowed == [2, 2, 3, 3, 3, 4, 4, 4, 4, 4]

    run(scenario)


def test_when_one_at_a_time_is_too_much_delays_grow_and_shrink() -> None:
    """From the second overload on the delay between starts doubles, from 0.5 s to 30 s; each success halves it."""

    async def scenario() -> None:
        gate, starts = _gate(per_host=1), list[float]()

        async def ask(error: ItemError | None) -> None:
            async with gate.slot(HOST, "a") as request:
                starts.append(_now())
                gate.failed(request, error) if error else gate.succeeded(request)

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
        gate = _gate(pause_s=7, longest_pause_s=100)
        began = _now()
        await _ask(gate, "a", TooManyRequestsError("429", retry_after_s=30), seconds=0)
        assert (gate.free(HOST), gate.free("other.example")) == (0, 8)
        await _ask(gate, "b", TooManyRequestsError("429"), seconds=0)
        assert _now() == pytest.approx(began + 30)
        await _ask(gate, "c", _status(ServerError("503", retry_after_s=86_400), 503), seconds=0)
        assert _now() == pytest.approx(began + 37)
        assert gate.paused_until(HOST) == pytest.approx(_now() + 100)

    run(scenario)


def test_eight_different_sources_in_a_row_park_the_host() -> None:
    """One source may fail as often as it likes; an answer in between begins a new row; others are not touched."""

    async def scenario() -> None:
        gate = _gate()
        for _ in range(20):
            await _ask(gate, "same", DnsError("no name"))
        for source in range(6):
            await _ask(gate, source, DnsError("no name"))
        assert not gate.parked(HOST)
        await _ask(gate, "missing", _status(NotFoundError("gone"), 404))
        for source in range(7):
            await _ask(gate, source, DnsError("no name"))
        assert not gate.parked(HOST)
        await _ask(gate, 7, DnsError("no name"))
        assert gate.parked(HOST)
        assert (gate.free(HOST), gate.free("other.example"), gate.parked("other.example")) == (0, 8, False)

    run(scenario)


def test_a_parked_host_gets_one_trial_which_opens_it_slowly() -> None:
    """Whoever waits stays so for 30 s; then one request runs alone, and after its success one at a time."""

    async def scenario() -> None:
        gate, running, most = _gate(), 0, list[int]()

        async def ask(source: int) -> None:
            nonlocal running
            async with gate.slot(HOST, source) as request:
                running += 1
                most.append(running)
                await asyncio.sleep(5)
                gate.succeeded(request)
                running -= 1

        await _park(gate)
        began = _now()
        async with asyncio.TaskGroup() as group:
            for source in range(6):
                group.create_task(ask(source))
            await asyncio.sleep(29.9)
            assert (running, gate.free(HOST)) == (0, 0)
            await asyncio.sleep(0.2)
            assert (running, gate.free(HOST), gate.parked(HOST)) == (1, 0, True)
            await asyncio.sleep(4.95)
            assert (running, gate.parked(HOST)) == (1, False)
        assert (most[:3], max(most)) == ([1, 1, 1], 2)
        assert _now() > began + 45

    run(scenario)


def test_a_failed_trial_parks_the_host_for_twice_as_long() -> None:
    """The time between trials doubles from 30 s to ten minutes; each is exactly one request."""

    async def scenario() -> None:
        gate, trials = _gate(patience_s=1e6), list[float]()

        async def ask(source: int) -> None:
            async with gate.slot(HOST, source) as request:
                assert request.trial
                trials.append(_now())
                gate.failed(request, DnsError("no name"))

        await _park(gate)
        parked = _now()
        async with asyncio.TaskGroup() as group:
            for source in range(7):
                group.create_task(ask(source))
        waits = [round(late - early) for early, late in itertools.pairwise([parked, *trials])]
        assert waits == [30, 60, 120, 240, 480, 600, 600]

    run(scenario)


def test_no_wait_of_our_own_is_longer_than_set() -> None:
    """Parking, also one that an earlier run chose, and delays end when the longest wait is over."""

    async def scenario() -> None:
        gate = _gate(per_host=1, longest_wait_s=2)
        gate.restore("restored", HostState.PARKED, 500, None)
        await _park(gate, ConnectError)
        for _ in range(3):
            parked = _now()
            await _ask(gate, "a", ConnectError("refused"), seconds=0)
            assert _now() - parked == pytest.approx(2)
        assert gate.free("restored") == 1

    run(scenario)


def test_a_trial_without_result_is_followed_by_another() -> None:
    """A trial that is cancelled, or that ended with an error of ours, leaves the host parked and due for a trial."""

    async def scenario() -> None:
        gate = _gate()
        await _park(gate)
        cancelled = asyncio.create_task(_ask(gate, "a", seconds=100))
        waiting = asyncio.create_task(_ask(gate, "b", InternalError("ours")))
        await asyncio.sleep(31)
        cancelled.cancel()
        await asyncio.wait([cancelled, waiting])
        assert (gate.parked(HOST), gate.free(HOST)) == (True, 1)
        await _ask(gate, "c")
        assert (gate.parked(HOST), gate.free(HOST)) == (False, 1)

    run(scenario)


def test_requests_under_way_run_on_when_their_host_is_parked() -> None:
    """Their failures park nothing anew, and the success of one opens the host."""

    async def scenario() -> None:
        gate = _gate(per_host=10)
        async with asyncio.TaskGroup() as group:
            for source in range(8):
                group.create_task(_ask(gate, source, DnsError("no name"), seconds=1))
            group.create_task(_ask(gate, "late", DnsError("no name"), seconds=25))
            group.create_task(_ask(gate, "later", seconds=35))
            await asyncio.sleep(26)
            assert gate.parked(HOST)
            await asyncio.sleep(6)
            assert gate.free(HOST) == 1
        assert not gate.parked(HOST)

    run(scenario)


def test_an_error_that_leaves_the_block_is_reported_once() -> None:
    """Whoever names a source need not report its errors, and a second report changes nothing."""

    async def scenario() -> None:
        gate = _gate()
        for source in range(8):
            with pytest.raises(DnsError):
                async with gate.slot(HOST, source) as request:
                    error = DnsError("no name")
                    gate.failed(request, error)
                    gate.succeeded(request)
                    raise error
        assert gate.parked(HOST)
        assert [info.failed for info in gate.hosts()] == [8]

    run(scenario)


def test_patience_ends_with_a_failed_trial() -> None:
    """A host is given up at the first failure after its patience, for which a trial comes just then; a success
    takes everything back."""

    async def scenario() -> None:
        gate = _gate(patience_s=100)
        began = _now()
        await _park(gate)
        for _ in range(2):
            await _ask(gate, "a", DnsError("no name"))
            assert not gate.given_up(HOST)
        # The trials were after 30 s and 90 s; the next would be after 210 s.
        await _ask(gate, "a", DnsError("no name"))
        assert gate.given_up(HOST)
        assert _now() - began == pytest.approx(100, abs=0.1)
        await _ask(gate, "a")
        assert (gate.given_up(HOST), gate.parked(HOST)) == (False, False)

    run(scenario)


def test_whoever_waits_for_a_host_that_is_given_up_is_told() -> None:
    """Waiting requests end with `HostDownError` instead of becoming one trial after the other."""

    async def scenario() -> None:
        gate = _gate(patience_s=1)
        await _park(gate)
        tasks = [asyncio.create_task(_ask(gate, source, ConnectError("refused"))) for source in range(5)]
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in ended] == [type(None)] + 4 * [HostDownError]
        assert "connect" in str(ended[1])
        assert gate.free("other.example") == 8

    run(scenario)


def test_requests_to_one_host_are_spread_evenly_under_a_rate() -> None:
    """With 4 requests per second, a quarter of a second lies between any two starts, on each host for itself."""

    async def scenario() -> None:
        gate, starts = _gate(rate=4), dict[str, list[float]]()

        async def ask(host: str) -> None:
            async with gate.slot(host):
                starts.setdefault(host, []).append(_now() - began)

        began = _now()
        assert gate.free("a") == 3
        async with asyncio.TaskGroup() as group:
            for host in "aabaab":
                group.create_task(ask(host))
            await asyncio.sleep(0.01)
            assert (gate.free("a"), gate.free("b")) == (0, 1)
        assert starts["a"] == pytest.approx([0, 0.25, 0.5, 0.75])
        assert starts["b"] == pytest.approx([0, 0.25])

    run(scenario)


def test_a_host_s_own_interval_outlives_its_forgetting() -> None:
    """The interval that a robots.txt asks for holds, also for a host that was idle in between, until it is ended."""

    async def scenario() -> None:
        gate = _gate(rate=10)
        gate.set_interval(HOST, 10)
        for expected in (0, 10, 20):
            await _ask(gate, seconds=0)
            assert (_now() - 1000, gate.free(HOST)) == (pytest.approx(expected), 0)
            gate.hosts()
        await asyncio.sleep(60)
        gate.hosts()
        assert gate.free(HOST) == 1
        await _ask(gate, seconds=0)
        waiting = asyncio.create_task(_ask(gate, seconds=0))
        await asyncio.sleep(1)
        gate.set_interval(HOST, 0)
        await waiting
        assert _now() - 1000 == pytest.approx(81)

    run(scenario)


def _only(infos: list[HostInfo]) -> HostInfo:
    (info,) = infos
    return info


def test_hosts_tells_what_changed_since_the_last_time() -> None:
    """Each report has the counts and the busy time since the one before; what did not change is left out."""

    async def scenario() -> None:
        gate = _gate()
        async with asyncio.TaskGroup() as group:
            group.create_task(_ask(gate, "a", seconds=1))
            group.create_task(_ask(gate, "b", seconds=2))
            await asyncio.sleep(1.5)
            info = _only(gate.hosts())
            assert (info.host, info.state, info.in_flight) == (HOST, HostState.OPEN, 1)
            assert (info.done, info.failed, info.bytes, info.busy_ms) == (1, 0, 100, 1500)
        info = _only(gate.hosts())
        assert (info.done, info.bytes, info.busy_ms, info.in_flight, info.allowed) == (1, 100, 500, 0, 8)
        assert gate.hosts() == []
        async with gate.slot(""):
            assert gate.hosts() == []

    run(scenario)


def test_hosts_tells_why_a_host_is_not_open() -> None:
    """Slowed, paused and parked come with a reason for people and with the end of a pause as Unix time."""

    async def scenario() -> None:
        gate = _gate(per_host=2)
        await _ask(gate, "a", _status(TooManyRequestsError("429", retry_after_s=30), 429))
        paused = _only(gate.hosts())
        assert (paused.state, paused.reason) == (HostState.PAUSED, "HTTP 429, asks to wait 30 s")
        assert paused.until is not None
        assert abs(paused.until - now_ms() - 30_000) < 5_000
        await asyncio.sleep(31)
        slowed = _only(gate.hosts())
        assert (slowed.state, slowed.reason, slowed.until, slowed.allowed) == ("slowed", "after HTTP 429", None, 1)
        for _ in range(2):
            await _ask(gate, "a", _status(ServerError("busy"), 503))
        assert _only(gate.hosts()).reason == "after HTTP 503; 0.5 s between requests"
        await _ask(gate, "a")
        await _park(gate, FetchTimeoutError)
        parked = _only(gate.hosts())
        assert (parked.state, parked.reason) == (HostState.PARKED, "8 sources failed in a row: timeout")
        await _ask(gate, 0, DnsError("no name"))
        assert _only(gate.hosts()).reason == "a trial failed too: dns"
        gate.set_interval("slow.example", 20)
        async with gate.slot("slow.example"):
            await asyncio.sleep(0)
        assert _only(gate.hosts()).reason == "20 s between requests"

    run(scenario)


def test_what_an_earlier_run_knew_is_restored() -> None:
    """A pause goes on for its rest, a parked host begins with a trial; other states change nothing."""

    async def scenario() -> None:
        gate = _gate()
        gate.restore("paused", HostState.PAUSED, 12, "HTTP 429")
        gate.restore("open", HostState.OPEN, 12, None)
        gate.restore(HOST, HostState.PARKED, 40, "8 sources failed in a row: dns")
        reasons = {info.host: (info.state, info.reason) for info in gate.hosts()}
        assert reasons == {
            "paused": (HostState.PAUSED, "HTTP 429"),
            HOST: (HostState.PARKED, "8 sources failed in a row: dns"),
        }
        assert [gate.free(host) for host in ("paused", "open", HOST)] == [0, 8, 0]
        await asyncio.sleep(41)
        assert [gate.free(host) for host in ("paused", "open", HOST)] == [8, 8, 1]
        await _ask(gate, "a", DnsError("no name"))
        assert (gate.parked(HOST), gate.free(HOST), gate.given_up(HOST)) == (True, 0, False)

    run(scenario)


def test_idle_hosts_are_forgotten() -> None:
    """A healthy host is forgotten when it was reported, one in trouble after half an hour, a parked one never."""

    async def scenario() -> None:
        gate = _gate()
        for host in map(str, range(50)):
            async with gate.slot(host, "a") as request:
                gate.succeeded(request)
        await _ask(gate, "a", DnsError("no name"))
        gate.restore("dead", HostState.PARKED, 1, None)
        assert len(gate._hosts) == 52
        assert len(gate.hosts()) == 52
        assert sorted(gate._hosts) == [HOST, "dead"]
        await asyncio.sleep(1801)
        gate.hosts()
        assert sorted(gate._hosts) == ["dead"]

    run(scenario)


def test_each_change_of_state_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Hundreds of requests that change nothing say nothing."""

    async def scenario() -> None:
        gate = _gate(per_host=2)
        for error in (None, _status(ServerError("busy"), 503), _status(ServerError("busy"), 503), None, None, None):
            for source in range(5):
                await _ask(gate, source, error)
        async with asyncio.TaskGroup() as group:
            for seconds in (0.1, 0.2):
                group.create_task(_ask(gate, "a", TooManyRequestsError("429", retry_after_s=3), seconds))
        await _park(gate)
        await _ask(gate)

    with caplog.at_level(logging.INFO, "etl.fetch.hosts"):
        run(scenario)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("INFO", f"{HOST}: slowed down after HTTP 503"),
        ("INFO", f"{HOST}: at full speed again"),
        ("INFO", f"{HOST}: slowed down after HTTP 429"),
        ("INFO", f"{HOST}: paused for 3 s: HTTP 429, asks to wait 3 s"),
        ("WARNING", f"{HOST}: parked for 30 s: 8 sources failed in a row: dns"),
        ("WARNING", f"{HOST}: answers again; goes on with one request at a time"),
    ]
