"""URLs that are signed: asked for as they are written, and one picture whatever their signature is."""

import asyncio
from pathlib import Path
from urllib.parse import unquote

import pytest
from support.fault_server import FaultServer, status
from support.workbench import Workbench, scenes

from etl.domain.views import StageSummary
from etl.net.client import Downloader
from etl.net.signatures import identity_of, newest
from etl.settings import Settings
from etl.state.read.export_rows import export_rows
from etl.state.read.reader import Reader

BODIES = [body for _, body in scenes(2)]

AMAZON = "X-Amz-Algorithm=A&X-Amz-Credential=K%2F2026&X-Amz-Date={0}&X-Amz-Expires=60&X-Amz-Signature={0}f"


@pytest.mark.parametrize(
    "signature",
    [
        AMAZON,
        "X-Goog-Date={0}&X-Goog-Signature={0}a",
        "AWSAccessKeyId=K&Signature={0}%3D&Expires=17{0}",
        "Expires=17{0}&Policy=eyJ{0}&Signature={0}&Key-Pair-Id=K",
        "sv=2024-11-04&se={0}Z&sr=b&sp=r&sig={0}%2F",
        "ex={0}&is={0}&hm={0}",
        "token={0}",
    ],
    ids=lambda text: text.partition("=")[0],
)
def test_a_signature_is_not_what_a_url_stands_for(signature: str) -> None:
    """What stands beside it in the query is, in its order, and so is every byte of the path."""
    one, two = (f"https://a.example/x/./a%2fb//c+d.jpg?{signature.format(n)}" for n in (1, 2))
    assert identity_of(one) == identity_of(two) == "https://a.example/x/./a%2fb//c+d.jpg#signed"
    both = f"https://a.example/?id=7&{signature.format(1)}&v=#x"
    assert identity_of(both) == "https://a.example/?id=7&v=#signed"
    lines = [f'{{"a": {{"b": ["see {one}, or"]}}}}\n'.encode(), f'{{"url": "<{two}>"}}\n'.encode()]
    for order in (lines, lines[::-1]):
        found = newest(identity_of(one), order)
        assert found == two or not any(name in signature for name in ("Date", "Expires", "se=", "ex="))


@pytest.mark.parametrize(
    "url",
    ["https://a.example/a.jpg?se=1&sp=2&hm=3#x", "https://a.example/a.jpg", "s3://bucket/a?sig=1"],
)
def test_what_is_not_signed_stands_for_itself(url: str) -> None:
    """Short names count only beside what makes them a signature; in a store's key nothing does."""
    assert identity_of(url) == url


def test_a_signed_path_is_asked_for_as_it_is_written(server: FaultServer, tmp_path: Path) -> None:
    """Dots, slashes, plus and escapes stay, also behind a redirect; without a signature dots go, as in browsers."""
    path = "/x/./y/../a%2Fb%2f//c+d%20é~;,.jpg"
    for at in (unquote(path), "/x/z.jpg"):
        server.add(at, b"x")
    server.fail("/to", lambda exchange: exchange.head(302, {"Location": f"{path}?token=2", "Content-Length": "0"}))

    async def go() -> None:
        async with Downloader(Settings(allow_host=("127.0.0.1",))) as downloader:
            for url in (f"{path}?X-Amz-Signature=1", "/to", "/x/./y/../z.jpg"):
                await downloader.download(server.base + url, tmp_path / "part")

    asyncio.run(go())
    asked = path.replace("é", "%C3%A9")
    assert [request.target for request in server.log] == [
        f"{asked}?X-Amz-Signature=1", "/to", f"{asked}?token=2", "/x/z.jpg",
    ]  # fmt: skip


def test_a_list_that_is_signed_anew_names_the_same_pictures(server: FaultServer, tmp_path: Path) -> None:
    """The newest signature is asked for; what is there is not asked for again, and what failed has another chance."""
    bench = Workbench(tmp_path, url_identity=True, max_attempts=1)
    for n, body in enumerate(BODIES):
        server.add(f"/{n}.jpg", body)
    server.fail("/1.jpg", status(403), times=1)

    def ingest(date: int) -> None:
        bench.ingest(*(f"{server.base}/{n}.jpg?size=L&{AMAZON.format(date)}" for n in range(2)))

    ingest(1)
    assert bench.fetch() == StageSummary(done=1, dead=1)
    assert bench.fetch() == StageSummary()
    ingest(2)
    assert bench.fetch() == StageSummary(done=1)
    assert bench.rows("SELECT url, status, final_url FROM sources ORDER BY id") == [
        (f"{server.base}/{n}.jpg?size=L#signed", "done", f"{server.base}/{n}.jpg?size=L") for n in range(2)
    ]
    with Reader(bench.state) as reader:
        assert [row.url for row in export_rows(reader, 1, None)] == [f"{server.base}/{n}.jpg?size=L" for n in range(2)]
    assert [(request.path, "Date=2" in request.target) for request in sorted(server.log, key=lambda one: one.path)] == [
        ("/0.jpg", False), ("/1.jpg", False), ("/1.jpg", True),
    ]  # fmt: skip
