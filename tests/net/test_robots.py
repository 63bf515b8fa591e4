"""robots.txt against a real server: what it allows, and what happens where it cannot be had."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import httpx2
import pytest
from support import fault_server as faults
from support.fault_server import Behaviour, FaultServer

from etl.errors import (
    ConnectError,
    DnsError,
    FetchError,
    FetchTimeoutError,
    InvalidUrlError,
    RobotsError,
    ServerError,
    TlsError,
    TooManyRedirectsError,
    TooManyRequestsError,
    TransientFetchError,
)
from etl.net.errors import fetch_error
from etl.net.responses import status_error
from etl.net.robots import AGENT, FAILURE_KEPT_S, KEPT_S, LEAST_BYTES, MAX_BYTES, Robots, origin_of, parse


async def _get(url: str) -> bytes:
    """The small fetch that the tests give to `Robots`."""
    try:
        async with httpx2.AsyncClient(follow_redirects=True, max_redirects=3, timeout=0.3, trust_env=False) as client:
            response = await client.get(url)
    except httpx2.HTTPError as error:
        raise fetch_error(error) from error
    if response.status_code != 200:
        refused = status_error(response.status_code, response.headers.get("retry-after"))
        refused.http_status = response.status_code
        raise refused
    return response.content


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(bounded())


async def _allowed(robots: Robots, url: str) -> bool:
    try:
        await robots.check(url)
    except RobotsError:
        return False
    return True


def _serve(server: FaultServer, text: str) -> None:
    server.add("/robots.txt", text.encode(), "text/plain")


def test_the_group_that_names_us_decides(server: FaultServer) -> None:
    """Our own group hides the one for everybody, the longest match wins, and * and $ are understood."""
    _serve(
        server,
        "User-agent: *\nDisallow: /\n\n"
        "User-agent: other\nDisallow: /a\n"
        "User-Agent: CAPTION-ETL/1.0  # and friends\nUser-agent: third\n"
        "Disallow: /private/\nAllow: /private/open\nDisallow: /*.tif$\nCrawl-delay: 2.5\n",
    )

    async def scenario() -> None:
        robots = Robots(_get)
        assert robots.crawl_delay(server.url("/a.jpg")) == 0
        answers = {
            path: await _allowed(robots, server.url(path))
            for path in ("/a.jpg", "/private/b.jpg", "/private/open/c.jpg", "/d.tif", "/d.tif?page=1", "/pri vate", "/")
        }
        assert answers == {
            "/a.jpg": True, "/private/b.jpg": False, "/private/open/c.jpg": True, "/d.tif": False,
            "/d.tif?page=1": True, "/pri vate": True, "/": True,
        }  # fmt: skip
        assert robots.crawl_delay(server.url("/e.jpg")) == 2.5

    _run(scenario)
    assert server.requests == {"/robots.txt": 1}


def test_the_group_for_everybody_holds_where_none_names_us(server: FaultServer) -> None:
    """Groups for other robots, also those whose name is a part of ours, do not apply."""
    _serve(
        server, "User-agent: etl\nUser-agent: caption\nUser-agent: *bot\nDisallow: /a\n\nUser-agent: *\nDisallow: /b"
    )

    async def scenario() -> None:
        robots = Robots(_get)
        assert await _allowed(robots, server.url("/a.jpg"))
        with pytest.raises(RobotsError, match=f"forbidden by {server.base}/robots.txt"):
            await robots.check(server.url("/b.jpg"))

    _run(scenario)


def test_callers_share_one_request(server: FaultServer) -> None:
    """Fifty at once cause one request, also when the one that makes it is cancelled; local paths cause none."""
    _serve(server, "User-agent: *\nDisallow: /no\n")
    cancelled: list[str] = []
    tasks: list[asyncio.Task[bool]] = []

    async def get(url: str) -> bytes:
        await asyncio.sleep(0.05)
        if not cancelled:
            cancelled.append(url)
            tasks[0].cancel()
            await asyncio.sleep(1)
        return await _get(url)

    async def scenario() -> None:
        robots = Robots(get)
        tasks.append(asyncio.create_task(_allowed(robots, server.url("/yes"))))
        await asyncio.sleep(0)
        answers = await asyncio.gather(*(_allowed(robots, server.url(f"/{'no'[: n % 3]}")) for n in range(50)))
        assert tasks[0].cancelled()
        assert answers == [n % 3 != 2 for n in range(50)]
        await robots.check("/pictures/no.jpg")

    _run(scenario)
    assert server.requests == {"/robots.txt": 1}


@pytest.mark.parametrize(
    "behaviour",
    [*(faults.status(code) for code in (400, 401, 403, 404, 410, 451)), faults.redirect("/robots.txt"), faults.html],
    ids=["400", "401", "403", "404", "410", "451", "redirect loop", "a page in place of it"],
)
def test_no_rules_allow_everything(server: FaultServer, behaviour: Behaviour) -> None:
    """An answer of 4xx, redirects without end and a body without rules mean that there are no rules."""
    server.fail("/robots.txt", behaviour)

    async def scenario() -> None:
        robots = Robots(_get)
        assert await _allowed(robots, server.url("/a.jpg"))
        assert robots.crawl_delay(server.url("/a.jpg")) == 0

    _run(scenario)


def test_redirects_count_for_the_origin_that_was_asked(server: FaultServer) -> None:
    """The rules behind a redirect are the redirecting origin's rules."""
    server.add("/elsewhere.txt", b"User-agent: *\nDisallow: /no")
    server.fail("/robots.txt", faults.redirect("/elsewhere.txt"))

    async def scenario() -> None:
        assert not await _allowed(Robots(_get), server.url("/no"))

    _run(scenario)


@pytest.mark.parametrize(
    ("behaviour", "cls"),
    [
        (faults.status(500), ServerError),
        (faults.status(503, retry_after="7"), ServerError),
        (faults.status(429, retry_after="7"), TooManyRequestsError),
        (faults.hang, FetchTimeoutError),
        (faults.reset_at_once, TransientFetchError),
    ],
    ids=["500", "503", "429", "hang", "reset"],
)
def test_what_cannot_be_had_forbids_for_a_minute(
    server: FaultServer, behaviour: Behaviour, cls: type[TransientFetchError]
) -> None:
    """Nothing is fetched from the origin meanwhile, with an error that is tried again; then it is asked anew."""
    _serve(server, "User-agent: *\nDisallow: /no\n")
    server.fail("/robots.txt", behaviour, times=1)

    async def scenario() -> None:
        clock = _Clock()
        robots = Robots(_get, clock=clock)
        errors = []
        for _ in range(2):
            with pytest.raises(cls, match=f"nothing is fetched while {server.base}/robots.txt cannot be had") as caught:
                await robots.check(server.url("/yes"))
            errors.append(caught.value)
            assert caught.value.retryable
        assert errors[0] is not errors[1]
        if behaviour in (faults.hang, faults.reset_at_once):
            assert errors[0].http_status is None
        else:
            assert errors[0].http_status in (429, 500, 503)
            assert errors[0].retry_after_s == (None if errors[0].http_status == 500 else 7)
        assert server.requests == {"/robots.txt": 1}
        clock.now += FAILURE_KEPT_S
        assert [await _allowed(robots, server.url(path)) for path in ("/yes", "/no")] == [True, False]

    _run(scenario)


@pytest.mark.parametrize("error", [ConnectError("refused"), DnsError("no name"), TlsError("expired")])
def test_a_host_that_cannot_be_reached_keeps_its_error_class(error: FetchError) -> None:
    """What kept the robots.txt from coming is what the source fails with."""

    async def get(url: str) -> bytes:
        assert url == "https://dead.example/robots.txt"
        raise error

    async def scenario() -> None:
        with pytest.raises(type(error), match=str(error)):
            await Robots(get).check("https://dead.example:443/a.jpg")

    _run(scenario)


def test_rules_are_kept_for_a_day(server: FaultServer) -> None:
    """Within 24 hours the file is not asked for again; after that its new rules hold."""
    _serve(server, "User-agent: *\nDisallow: /a\n")

    async def scenario() -> None:
        clock = _Clock()
        robots = Robots(_get, clock=clock)
        assert not await _allowed(robots, server.url("/a"))
        _serve(server, "")
        clock.now += KEPT_S - 1
        assert not await _allowed(robots, server.url("/a"))
        clock.now += 2
        assert await _allowed(robots, server.url("/a"))

    _run(scenario)
    assert server.requests == {"/robots.txt": 2}


def test_the_least_recently_used_origin_is_forgotten() -> None:
    """No more bytes are remembered than asked for, and a file that is missing counts for some."""
    asked: list[str] = []

    async def get(url: str) -> bytes:
        asked.append(url)
        if "long" in url:
            return b"#" * 2 * LEAST_BYTES
        raise TooManyRedirectsError("loop")

    async def scenario() -> None:
        robots = Robots(get, remembered=2 * LEAST_BYTES)
        for host in ("a", "b", "a", "c", "a", "b", "long", "long", "b", "c", "long"):
            await robots.check(f"http://{host}/x.jpg")

    _run(scenario)
    assert asked == [f"http://{host}/robots.txt" for host in ("a", "b", "c", "b", "long", "c", "long")]


def test_origin_is_scheme_host_and_port() -> None:
    """User names, default ports, letter case and a trailing dot make no other origin; a local path has none."""
    assert origin_of("http://user:secret@A.Example.:80/x?y#z") == "http://a.example"
    assert origin_of("https://a.example:8443") == "https://a.example:8443"
    assert origin_of("HTTPS://a.example:443/") == "https://a.example"
    assert origin_of("http://[2001:DB8::1]:8080/x") == "http://[2001:db8::1]:8080"
    assert origin_of("pictures/a.jpg") is None
    with pytest.raises(InvalidUrlError):
        origin_of("ftp://a.example/x")


def test_only_the_first_500_kib_are_read() -> None:
    """Rules behind that are not seen, and the line that is cut in two is no rule."""
    head = b"User-agent: *\nDisallow: /first\n"
    cut = b"\nDisallow: /" + b"p" * 20
    body = head + b"#" * (MAX_BYTES - len(head) - 12) + cut + b"\nDisallow: /last\n"
    assert body[:MAX_BYTES].endswith(b"\nDisallow: /")
    for received in (body, body[:MAX_BYTES]):
        rules = parse(received)
        assert not rules.can_fetch("http://h/first", AGENT)
        assert rules.can_fetch("http://h/last", AGENT)
        assert rules.can_fetch("http://h/other", AGENT)


def test_any_bytes_can_be_read() -> None:
    """A byte order mark, Latin-1, odd line ends and noise around a rule do not hide it, and noise is no error."""
    body = b"\xef\xbb\xbfUser-agent: *\rDisallow: /caf\xe9\r\n\x00\xff\xfe nonsense\nCrawl-delay: soon\nDisallow: /no\n"
    rules = parse(body)
    assert not rules.can_fetch("http://h/no", AGENT)
    assert rules.crawl_delay(AGENT) is None
    rng = random.Random(5)
    words = [
        b"User-agent",
        b"Disallow",
        b"Allow",
        b"Crawl-delay",
        b":",
        b" ",
        b"*",
        b"$",
        b"%",
        b"/a",
        b"\n",
        b"\xff",
        b"#",
    ]
    for _ in range(300):
        noise = parse(b"".join(rng.choices(words, k=60)) + rng.randbytes(20))
        noise.can_fetch("http://h/a%zz*$?x#y", AGENT)


@pytest.mark.parametrize("name", ["bot{}", "\tuser {}", "caption-etl{}", "{}*", "*{}"])
def test_a_file_made_to_fill_the_memory_stays_small(name: str) -> None:
    """Thousands of robot names over thousands of rules are not multiplied."""
    lines = [f"User-agent: {name.format(n)}" for n in range(1000)] + ["Disallow: /no"] * 1000
    rules = parse("\n".join(lines).encode())
    assert len(rules._user_agents) <= 2
