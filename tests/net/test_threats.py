"""Hostile URLs, servers and paths, as a stranger's manifest brings them: what is asked for, and what never is."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fault_server import Exchange, FaultServer

from etl.errors import BlockedAddressError, BlockedPathError, FetchError, InvalidUrlError, LocalFileError, NotPlainError
from etl.fetch.local_files import Roots
from etl.fetch.mirrors import Mirrors
from etl.net.address_guard import is_public
from etl.net.client import Download, Downloader
from etl.net.part import PartWriter
from etl.net.urls import host_of
from etl.settings import Settings

Fetch = Callable[..., Download]

METADATA = ("169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254",
            "fd20:ce::254", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1")  # fmt: skip
"""Where clouds hand out a machine's credentials: AWS, ECS, Alibaba, Azure, Oracle, IPv6, disguises."""


@pytest.mark.parametrize("address", METADATA)
def test_no_cloud_s_metadata_is_public(address: str) -> None:
    """The metadata addresses of the large clouds are refused in every form."""
    assert not is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/a",
        "http://2130706433:{port}/a",
        "http://0x7f.1:{port}/a",
        "http://0177.0.0.1:{port}/a",
        "http://127.1:{port}/a",
        "http://0:{port}/a",
        "http://localhost.:{port}/a",
        "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11:{port}/a",
        "http://①②⑦.0.0.1:{port}/a",
        "http://127。0。0。1:{port}/a",
        "http://[::1]:{port}/a",
        "http://[::ffff:127.0.0.1]:{port}/a",
        "http://public.example@127.0.0.1:{port}/a",
        "http://public.example:80@127.0.0.1:{port}/a",
        "http://127.0.0.1:{port}\\@public.example/a",
        "http://127.0.0.1:{port}#@public.example/a",
        "http:\\\\127.0.0.1:{port}/a",
        "http:/127.0.0.1:{port}/a",
        "ftp://127.0.0.1:{port}/a",
        "gopher://127.0.0.1:{port}/a",
        "unix:///run/docker.sock",
    ],
)
def test_no_spelling_reaches_a_private_service(server: FaultServer, fetch: Fetch, url: str) -> None:
    """Numbers in any base, full-width digits, user names, backslashes and other schemes lead nowhere."""
    server.add("/a", b"secret")
    with pytest.raises(FetchError) as caught:
        fetch(url.format(port=server.port), allow_host=())
    assert str(caught.value).isprintable()
    assert not server.log


@pytest.mark.parametrize(
    "target",
    ["http://169.254.169.254/latest/meta-data/", "http://127.0.0.2/", "http://2130706434/", "//0x7f.2/", "file:///etc/passwd",
     "http://[fd00:ec2::254]/", "gopher://127.0.0.1/", "http://100.100.100.200/"],
)  # fmt: skip
def test_every_hop_of_a_redirect_is_checked(server: FaultServer, fetch: Fetch, target: str) -> None:
    """A server that may be asked cannot send us to one that may not, on the first hop or a later one."""
    server.add("/start", b"")
    server.add("/next", b"")
    server.fail("/start", lambda exchange: exchange.head(302, {"Location": "/next", "Content-Length": "0"}))
    server.fail("/next", lambda exchange: exchange.head(302, {"Location": target, "Content-Length": "0"}))
    with pytest.raises((BlockedAddressError, InvalidUrlError)):
        fetch(server.url("/start"))
    assert [request.path for request in server.log] == ["/start", "/next"]


def test_robots_and_texts_go_through_the_same_guard(server: FaultServer, settings: Settings) -> None:
    """A robots.txt is asked for only where a picture might be."""

    async def go() -> None:
        async with Downloader(Settings(**(settings.to_json() | {"state": Path("s"), "allow_host": ()}))) as downloader:
            await downloader.read(server.url("/robots.txt"), max_bytes=100)

    with pytest.raises(BlockedAddressError):
        asyncio.run(go())
    assert not server.log


def test_cookies_do_not_outlive_a_download(server: FaultServer, settings: Settings, tmp_path: Path) -> None:
    """What one answer sets is sent on in its redirects, and never with another picture, on any host."""
    server.add("/b.jpg", b"b")

    def sets(exchange: Exchange) -> None:
        exchange.head(302, {"Location": "/b.jpg", "Set-Cookie": "track=1; Path=/", "Content-Length": "0"})

    server.add("/a.jpg", b"")
    server.fail("/a.jpg", sets)

    async def go() -> None:
        async with Downloader(settings) as downloader:
            await downloader.download(server.url("/a.jpg"), tmp_path / "1.part")
            await downloader.download(server.url("/b.jpg"), tmp_path / "2.part")

    asyncio.run(go())
    cookies = [{name.lower(): value for name, value in each.headers.items()}.get("cookie") for each in server.log]
    assert cookies == [None, "track=1", None]


def test_a_part_is_private_and_no_link_is_followed(server: FaultServer, fetch: Fetch, tmp_path: Path) -> None:
    """A link under a part's name, which anybody can work out, does not lead a download to another file."""
    server.add("/a.jpg", b"body")
    victim, part = tmp_path / "victim", tmp_path / "a.part"
    victim.write_text("mine")
    assert fetch(server.url("/a.jpg"), part=tmp_path / "plain.part").size == 4
    assert (tmp_path / "plain.part").stat().st_mode & 0o777 == 0o600
    part.symlink_to(victim)
    with pytest.raises(NotPlainError, match="is a link"):
        fetch(server.url("/a.jpg"), part=part)
    for resumed_at in (0, 2):
        with pytest.raises(NotPlainError, match="is a link"), PartWriter(part, max_bytes=9, resumed_at=resumed_at):
            pass
    assert victim.read_text() == "mine"


def test_local_files_lie_beside_the_manifest(tmp_path: Path) -> None:
    """Below an allowed directory everything is read; nothing that dots, links or an absolute path lead to."""
    inside, outside = tmp_path / "manifest", tmp_path / "private"
    for folder in (inside / "sub", outside):
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(b"1")
    (inside / "link.jpg").symlink_to(outside / "a.jpg")
    (inside / "up").symlink_to("..")
    (inside / "within.jpg").symlink_to("sub/a.jpg")
    roots = Roots([inside])
    for name in ("sub/a.jpg", "sub/../sub/a.jpg", "within.jpg", "none.jpg"):
        assert roots.checked(str(inside / name)).is_relative_to(inside)
    for url in (f"{inside}/../private/a.jpg", f"{inside}/link.jpg", f"{inside}/up/private/a.jpg", f"{outside}/a.jpg",
                f"file://{outside}/a.jpg", f"file://{inside}/%2e%2e/private/a.jpg", "/proc/self/environ", "/dev/stdin",
                f"{inside}-else/a.jpg"):  # fmt: skip
        with pytest.raises(BlockedPathError, match="--allow-path"):
            roots.checked(url)
    assert Roots([inside, str(outside)]).checked(f"{outside}/a.jpg") == outside / "a.jpg"
    with pytest.raises(LocalFileError):
        roots.checked(f"{inside}/nul\0")
    for url in (f"file://server{inside}/within.jpg", f"/{inside}/within.jpg"):
        with pytest.raises(InvalidUrlError, match="another machine"):
            roots.checked(url)


def test_a_loop_of_links_is_an_error_of_its_file(tmp_path: Path) -> None:
    """A link to itself neither hangs nor ends the run."""
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises((LocalFileError, BlockedPathError)):
        Roots([]).checked(str(tmp_path / "loop"))


def test_mirrors_open_only_what_the_operator_wrote(tmp_path: Path) -> None:
    """A rewrite to a local directory allows that directory; neither a URL's dots nor a bare field lead further."""
    store = tmp_path / "store"
    mirrors = Mirrors(["https://a\\.example/(.*)=" + f"{store}/\\1"], f"{store}/by-key/{{key}}")
    roots = Roots(mirrors.directories)
    line = b'{"key": "x/../../../private.jpg"}'
    good, *_ = [one.url for one in mirrors.addresses("https://a.example/b.jpg", "a.example", line) if one.is_mirror]
    assert roots.checked(good) == store / "b.jpg"
    url = "https://a.example/../private.jpg"
    for bad in [one.url for one in mirrors.addresses(url, "a.example", line) if one.is_mirror]:
        with pytest.raises(BlockedPathError):
            roots.checked(bad)
    assert Mirrors([], "{anywhere}").directories == []


@pytest.mark.parametrize("url", ["http://h/a\r\nX-Evil: 1", "http://h\r\n/a", "http://h/\ud800", "http://h/\x00"])
def test_no_url_reaches_into_the_request_s_head(url: str) -> None:
    """Line ends and what is no text are refused before anything is asked for."""
    with pytest.raises(FetchError):
        host_of(url)
