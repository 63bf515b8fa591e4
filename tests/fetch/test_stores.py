"""Pictures and manifests at s3:, gs: and hf: addresses, by the one downloader."""

import asyncio
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from support.fault_server import Exchange, FaultServer, ok, ranged, redirect
from support.s3_server import KEY, SECRET, S3Server
from support.workbench import Workbench, encoded, scenes

from etl.domain.views import StageSummary
from etl.errors import ForbiddenError, InvalidUrlError, PackageMissingError, TransientFetchError
from etl.net import object_stores
from etl.net.client import Download, Downloader
from etl.net.urls import host_of, hub_file
from etl.settings import Settings

BODIES = [body for _, body in scenes(6)]

KEYS = ("a b.jpg", "x/./y/../z+%2F//é~.jpg", "q?a=1&b#c.jpg")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take the machine's own keys, tokens and endpoints away, and let nobody ask a cloud for some."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HF_TOKEN", "hf_notSoSecret")


@pytest.fixture
def strict(tmp_path: Path) -> Workbench:
    """A state whose fetch reaches no private address that a store does not need."""
    return Workbench(tmp_path, allow_host=())


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The stand-in for S3, named by the environment, with some pictures."""
    with S3Server(public=("open",), regions={"far": "eu-west-3"}) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for key, body in zip(KEYS, BODIES, strict=False):
            server.add(f"/private/{key}", body)
        server.add("/far/a.jpg", BODIES[3])
        server.add("/open/a.jpg", BODIES[4])
        yield server


def broken(exchange: Exchange) -> None:
    """Send all but the end of a body, and say of what it is a part."""
    body = exchange.resource.body
    exchange.head(200, {"Content-Length": str(len(body)), "ETag": exchange.resource.etag})
    exchange.send(body[:-1000])
    exchange.close()


def download(url: str, part: Path, settings: Settings) -> Download:
    """Download one address."""

    async def go() -> Download:
        async with Downloader(settings) as downloader:
            return await downloader.download(url, part)

    return asyncio.run(go())


def test_pictures_of_buckets(s3: S3Server, strict: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed as they are asked for, in the bucket's own region, byte for byte under their keys, also the rest of one.

    What has not changed costs one small answer.  Where the user says that S3 is on this machine, s3: addresses lead
    there, and no others.  Neither keys nor signatures are kept, and no bucket is looked up as if it were a host.
    """
    looked_up, look_up = list[str](), socket.getaddrinfo

    def noted(host: str, *rest: Any, **more: Any) -> Any:
        looked_up.append(host)
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", noted)
    large = encoded(scenes(1)[0][0].draw(300, 300), "PNG", compress_level=0)
    behaviours = iter((broken, ranged, ok))
    s3.add("/private/large.png", large)
    s3.fail("/private/large.png", lambda exchange: next(behaviours)(exchange))
    urls = ["s3://private/large.png", *(f"s3://private/{key}" for key in KEYS)]
    elsewhere = f"{s3.base}/open/a.jpg"
    strict.ingest(*urls, "s3://far/a.jpg", elsewhere, "s3://private/none.jpg", "s3://Not a bucket/a.jpg")
    assert strict.fetch() == StageSummary(done=5, dead=2)
    assert strict.rows("SELECT url, host, final_url FROM sources WHERE status = 'done' ORDER BY id") == [
        *((url, "s3://private", url) for url in urls), ("s3://far/a.jpg", "s3://far", "s3://far/a.jpg"),
    ]  # fmt: skip
    assert strict.rows("SELECT error_class, url FROM sources WHERE status = 'dead' ORDER BY id") == [
        ("blocked_address", elsewhere), ("http_404", "s3://private/none.jpg"),
    ]  # fmt: skip
    assert strict.rows("SELECT error_class, error FROM records WHERE state = 'invalid'") == [
        ("invalid_url", "no bucket can have the name 'Not a bucket'")
    ]
    ranges = [request.headers.get("Range") for request in s3.log if request.path == "/private/large.png"]
    assert ranges == [None, f"bytes={len(large) - 1000}-"]
    assert strict.fetch(refresh=True) == StageSummary(done=5)
    assert all("If-None-Match" in request.headers for request in s3.log[-5:])
    assert not any("://" in host for host in looked_up)
    kept = b"".join(path.read_bytes() for path in strict.state.rglob("*") if path.is_file())
    assert not [word for word in (KEY, SECRET, "X-Amz-") if word.encode() in kept]


def test_a_refusal_is_told_in_s3_s_words(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And in no others, which may name the key; without keys it says so, and open buckets need none."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong" + SECRET)
    refused = "HTTP 403, SignatureDoesNotMatch: The signature that we calculated is another.: s3://private/a b.jpg"
    with pytest.raises(ForbiddenError, match=f"^{re.escape(refused)}$"):
        download("s3://private/a b.jpg", tmp_path / "part", Settings())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(
        ForbiddenError, match=r"^HTTP 403, AccessDenied: Access Denied; asked without keys, as none were"
    ):
        download("s3://private/a b.jpg", tmp_path / "part", Settings())
    assert download("s3://open/a.jpg", tmp_path / "part", Settings()).size == len(BODIES[4])
    assert "X-Amz-" not in s3.log[-1].target
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(TransientFetchError, match=r"^cannot sign for s3: .*\(nobody\)"):
        download("s3://open/a.jpg", tmp_path / "part", Settings())


def test_a_manifest_of_a_bucket_names_pictures_beside_it(s3: S3Server, strict: Workbench) -> None:
    """A list at an s3: address is read, and its relative names are keys of its bucket."""
    s3.add("/private/x/list.csv", b"id,file_name\n1,../a b.jpg\n2,/far.jpg\n", "text/csv")
    strict.ingest_path("s3://private/x/list.csv")
    assert strict.rows("SELECT url FROM sources") == [("s3://private/a b.jpg",), ("s3://private/far.jpg",)]
    assert strict.rows("SELECT path FROM manifests") == [("s3://private/x/list.csv",)]


@pytest.mark.parametrize(
    ("url", "package"), [("s3://private/a.jpg", "botocore"), ("hf://datasets/o/n/a.jpg", "huggingface_hub")]
)
def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, package: str) -> None:
    """It costs the picture alone, and the message says what to type."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PackageMissingError, match=f"^{url[:3]} addresses need one more package: .*install"):
        download(url, tmp_path / "part", Settings())


def test_files_of_the_hub(
    server: FaultServer, bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset's metadata and its pictures; the token goes to the hub alone, not where it sends us."""
    monkeypatch.setattr(constants, "ENDPOINT", server.base)
    template = server.base + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    root = "/datasets/own/set/resolve/refs/pr/1"
    server.add(f"{root}/metadata.jsonl", b'{"file_name": "train/\xc3\xa9 0.jpg", "text": "x"}\n')
    url = "hf://datasets/own/set@refs/pr/1/train/é 0.jpg"
    with FaultServer() as store:
        server.fail(f"{root}/train/é 0.jpg", redirect(store.add("/blob?X-Amz-Signature=1", BODIES[0])))
        bench.ingest_path("hf://datasets/own/set@refs/pr/1/metadata.jsonl")
        assert bench.rows("SELECT url, host FROM sources") == [(url, "hf://datasets")]
        assert download(url, tmp_path / "part", bench.settings).final_url == url
        assert ["Authorization" in request.headers for request in store.log] == [False]
    assert [(request.target, request.headers["Authorization"]) for request in server.log] == [
        (f"/datasets/own/set/resolve/refs%2Fpr%2F1/{path}", "Bearer hf_notSoSecret")
        for path in ("metadata.jsonl", "train/%C3%A9%200.jpg")
    ]


def test_public_objects_of_google(server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked for under their keys, as they are."""
    monkeypatch.setattr(object_stores, "GOOGLE", server.base)
    server.add("/bucket/a/./b c+%.jpg", BODIES[0])
    download("gs://bucket/a/./b c+%.jpg", tmp_path / "part", Settings(allow_host=("127.0.0.1",)))
    assert [request.target for request in server.log] == ["/bucket/a/./b%20c%2B%25.jpg"]


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("hf://datasets/o/n/a/b.jpg", ("dataset", "o/n", "main", "a/b.jpg")),
        ("hf://datasets/o/n@v1.0/b.jpg", ("dataset", "o/n", "v1.0", "b.jpg")),
        ("hf://spaces/o/n@refs%2Fpr%2F2/b.jpg", ("space", "o/n", "refs/pr/2", "b.jpg")),
        ("HF://o/n@~parquet/b.parquet", ("model", "o/n", "~parquet", "b.parquet")),
        ("hf://datasets/o/n", None),
        ("hf://datasets/o/n/../../x/y/z.jpg", None),
        ("hf://buckets/o/n/a.jpg", None),
        ("hf://datasets/o", None),
    ],
)
def test_what_an_address_of_the_hub_means(url: str, meant: tuple[str, ...] | None) -> None:
    """Repository, revision and path, or one line that says how to write it."""
    if meant is not None:
        assert hub_file(url) == meant
        return
    with pytest.raises(InvalidUrlError, match="hf://datasets/OWNER/NAME/PATH"):
        host_of(url)


@pytest.mark.parametrize("url", ["s3://b", "s3://bucket", "s3://bucket/", "s3://bucket/a/", "s3:///a", "gs://a..b/c"])
def test_what_names_no_object(url: str) -> None:
    """A bucket or folder alone is refused in one line, when it is ingested."""
    with pytest.raises(InvalidUrlError, match=r"^(names no object; write|no bucket can have)"):
        host_of(url)
