"""Pictures and manifests at s3:, gs: and hf: addresses, by the one downloader."""

import asyncio
import functools
import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import botocore.loaders
import pytest
from huggingface_hub import constants
from support.fault_server import Exchange, FaultServer, ok, ranged, redirect
from support.s3_server import KEY, SECRET, S3Server
from support.workbench import Workbench, encoded, scenes

from etl.domain.statuses import Stage
from etl.domain.views import StageSummary
from etl.errors import (
    ConfigError,
    ForbiddenError,
    InvalidUrlError,
    ManifestError,
    PackageMissingError,
    ProtocolError,
    TlsError,
    TransientFetchError,
)
from etl.ingest.manifest import Manifest
from etl.ingest.manifest_formats import store_folder
from etl.ingest.manifest_formats.file import ManifestFile
from etl.ingest.options import IngestOptions
from etl.ingest.stage import ingest
from etl.net import object_stores
from etl.net.client import Download, Downloader
from etl.net.folders import page_of
from etl.net.object_stores import Asked
from etl.net.urls import host_of, hub_file
from etl.settings import Settings
from etl.state.store import Store

BODIES = [body for _, body in scenes(6)]

SSO = """[profile over]
sso_session = x
sso_account_id = 1
sso_role_name = x
[sso-session x]
sso_start_url = https://x.awsapps.com/start
sso_region = us-east-1
"""

KEYS = ("a b.jpg", "x/./y/../z+%2F//é~.jpg", "q?a=1&b#c.jpg")


_loader = functools.cache(botocore.loaders.create_loader)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take the machine's own keys, tokens and endpoints away, and let nobody ask a cloud for some."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL",
                 "AWS_REQUEST_PAYER", "AWS_CA_BUNDLE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HF_TOKEN", "hf_notSoSecret")
    # What S3 can be asked is read and parsed once, not for each downloader.
    monkeypatch.setattr("botocore.loaders.create_loader", _loader)


@pytest.fixture
def strict(tmp_path: Path) -> Workbench:
    """A state whose fetch reaches no private address that a store does not need."""
    return Workbench(tmp_path, allow_host=())


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The stand-in for S3, named by the environment, with some pictures."""
    with S3Server(public=("open",), regions={"far": "eu-west-3"}, paid=("paid",)) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for key, body in zip(KEYS, BODIES, strict=False):
            server.add(f"/private/{key}", body)
        server.add("/far/a.jpg", BODIES[3])
        server.add("/open/a.jpg", BODIES[4])
        server.add("/paid/a.jpg", BODIES[5])
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


def test_a_refusal_is_told_in_s3_s_words(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And in no others, which may name the key; without keys it says so, and open buckets need none."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong" + SECRET)
    refused = "HTTP 403, SignatureDoesNotMatch: The signature that we calculated is another.; look at AWS_SECRET"
    with pytest.raises(ForbiddenError, match=f"^{re.escape(refused)}_ACCESS_KEY: s3://private/a b.jpg$"):
        download("s3://private/a b.jpg", tmp_path / "part", Settings())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(
        ForbiddenError, match=r"^HTTP 403, AccessDenied: Access Denied; asked without keys, as none were"
    ):
        download("s3://private/a b.jpg", tmp_path / "part", Settings())
    assert download("s3://open/a.jpg", tmp_path / "part", Settings()).size == len(BODIES[4])
    assert "X-Amz-" not in s3.log[-1].target
    Path(os.environ["AWS_CONFIG_FILE"]).write_text(SSO)
    for profile, words in (("nobody", r"\(nobody\)"), ("over", r"SSO Token.*; `aws sso login` renews it: s3://")):
        monkeypatch.setenv("AWS_PROFILE", profile)
        with pytest.raises(TransientFetchError, match=f"^cannot sign for s3: .*{words}"):
            download("s3://open/a.jpg", tmp_path / "part", Settings())
    assert not caplog.records


def test_a_manifest_of_a_bucket_names_pictures_beside_it(s3: S3Server, strict: Workbench) -> None:
    """A list at an s3: address is read, and its relative names are keys of its bucket."""
    s3.add("/private/x/list.csv", b"id,file_name\n1,../a b.jpg\n2,/far.jpg\n", "text/csv")
    strict.ingest_path("s3://private/x/list.csv")
    assert strict.rows("SELECT url FROM sources") == [("s3://private/a b.jpg",), ("s3://private/far.jpg",)]
    assert strict.rows("SELECT path FROM manifests") == [("s3://private/x/list.csv",)]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("ExpiredToken", "the session of the keys is over: sign in again"),
        ("AccessDenied", "these keys may not read it; where who asks pays, set AWS_REQUEST_PAYER=requester"),
        ("InvalidObjectState", "it is archived: have it restored first"),
        ("InvalidAccessKeyId", "the store knows no such key"),
        ("NoSuchBucket", "look at its name, and at AWS_ENDPOINT_URL"),
        ("RequestTimeTooSkewed", "this machine's clock is 2h 00m ahead: set it right"),
    ],
)
def test_a_refusal_says_what_to_do(word: str, words: str) -> None:
    """In a line behind S3's own words, and with the machine's clock where that is wrong."""
    body = f"<Error><Code>{word}</Code><Message>No</Message><Key>x</Key></Error>".encode()
    date = format_datetime(datetime.now(UTC) - timedelta(hours=2 if "Skewed" in word else 0, seconds=1))
    assert Asked("", store="s3").words(body, date).startswith(f"{word}: No; {words}")


def test_who_pays_where_a_bucket_is_and_whose_certificate(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers who pay say so, signed; a region is found in a body or redirect; AWS_CA_BUNDLE counts for S3 alone."""
    with pytest.raises(ForbiddenError, match="AWS_REQUEST_PAYER=requester"):
        download("s3://paid/a.jpg", tmp_path / "part", Settings())
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    assert download("s3://paid/a.jpg", tmp_path / "part", Settings()).size == len(BODIES[5])
    for s3.told in ("body", "location"):
        assert download("s3://far/a.jpg", tmp_path / "part", Settings()).size == len(BODIES[3])
    pem, bundle = tmp_path / "server.pem", tmp_path / "ca.pem"
    made = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=127.0.0.1")
    named = ("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(pem), "-out", str(bundle))
    subprocess.run(["openssl", "req", *made, *named], check=True, capture_output=True)
    pem.write_bytes(pem.read_bytes() + bundle.read_bytes())
    with S3Server(public=("open",), tls=str(pem)) as server:
        server.add("/open/a.jpg", BODIES[4])
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.base)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
        assert download("s3://open/a.jpg", tmp_path / "part", Settings()).size == len(BODIES[4])
        with pytest.raises(TlsError):
            download(f"{server.base}/open/a.jpg", tmp_path / "part", Settings(allow_host=("127.0.0.1",)))
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
        with pytest.raises(ConfigError, match=r"^AWS_CA_BUNDLE: .*none\.pem cannot be used: No such file"):
            download("s3://open/a.jpg", tmp_path / "part", Settings())


def test_folders_of_stores(
    s3: S3Server, server: FaultServer, strict: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every picture in one is a record under its object's name, page after page; what is unchanged stays as it is.

    Listed again where it was broken off, it gives the same records.
    """
    monkeypatch.setattr(object_stores, "GOOGLE", s3.base)
    monkeypatch.setattr(constants, "ENDPOINT", server.base)
    for name in (KEYS[0], KEYS[2], "é+&<.JPG", "readme.md", "sub/"):
        s3.add(f"/private/box 1/{name}", BODIES[0])
        s3.add(f"/open/{name}", BODIES[1])
    tree = "/api/datasets/own/set/tree/v1/train"
    top = {"type": "directory", "path": "train", "size": 0}
    named = [{"type": "file", "path": f"train/{name}", "size": 7} for name in ("é 0.jpg", "1.png")]
    link = f'<{server.base}{tree}?recursive=true&cursor=Zm%3D>; rel="next"'
    server.add(f"{tree}?recursive=true", json.dumps([top, named[0]]).encode())
    server.fail(
        f"{tree}?recursive=true",
        lambda exchange: exchange.handler.answer(200, exchange.resource.body, "application/json", {"Link": link}),
    )
    server.add(f"{tree}?recursive=true&cursor=Zm%3D", json.dumps([named[1]]).encode())
    monkeypatch.setattr("etl.ingest.stage.BATCH", 1)
    for folder, inside, objects in (
        ("s3://private/box 1/", "", [f"box 1/{name}" for name in (KEYS[0], KEYS[2], "é+&<.JPG")]),
        ("gs://open", "/", ["a b.jpg", "a.jpg", KEYS[2], "é+&<.JPG"]),
        ("hf://datasets/own/set@v1/train/", "", ["train/é 0.jpg", "train/1.png"]),
    ):
        begin = f"{folder}{inside}".removesuffix("box 1/").removesuffix("train/")
        # A store's own endpoint may be private, Google's may not.
        settings = replace(strict.settings, allow_host=("127.0.0.1",) if folder[:2] == "gs" else ())
        for broken_off in (True, False):
            with Store.open(settings) as store, store.run((Stage.INGEST,)):
                found = ingest(
                    store, Manifest(folder), IngestOptions(), should_stop=functools.partial(bool, broken_off)
                )
        assert (found.records, found.resumed_at, found.removed) == (len(objects), 1, 0)
        rows = strict.rows(
            f"SELECT r.key, s.url FROM records r JOIN sources s ON s.id = r.source "
            f"JOIN manifests m ON m.id = r.manifest WHERE m.path = '{folder}{inside}' ORDER BY r.position"
        )
        assert rows == [(name, f"{begin}{name}") for name in objects]
    assert [request.headers["Authorization"] for request in server.log[:2]] == ["Bearer hf_notSoSecret"] * 2


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (
            "s3://b/",
            '<!DOCTYPE x [<!ENTITY a "a">]><ListBucketResult><Contents><Key>&a;</Key></Contents></ListBucketResult>',
        ),
        ("gs://b/", "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"),
        ("s3://b/", "<html>"),
        ("hf://datasets/o/n/", '{"error": "x"}'),
        ("hf://datasets/o/n/", '[{"type": "file"}]'),
    ],
)
def test_a_list_of_a_store_that_makes_no_sense(url: str, body: str) -> None:
    """It is refused as a whole: nothing is expanded, and no first page is taken for all."""
    with pytest.raises(ProtocolError, match=f"^the store's list of {url} makes no sense$"):
        page_of(url, body.encode(), "")


@pytest.mark.parametrize("marks", [["1"], ["1", "2"], ["1", "2", "3"]])
def test_a_folder_whose_pages_come_again(marks: list[str]) -> None:
    """A store whose pages lead in a circle is told, however long that is, once the circle is closed."""
    asked, following = list[str](), dict(itertools.pairwise(["", *marks, marks[0]]))

    def read_page(_: str, after: str, __: int) -> tuple[bytes, str]:
        asked.append(after)
        assert len(asked) < 9
        mark = f"<NextContinuationToken>{following[after]}</NextContinuationToken>"
        return f"<ListBucketResult>{mark}</ListBucketResult>".encode(), ""

    file = ManifestFile(None, called="s3://b/", folder="s3://b/", read_page=read_page)
    with pytest.raises(ManifestError, match="the store gives the same pages of s3://b/ again and again") as raised:
        list(store_folder.lines(file))
    assert raised.value.cure.startswith("that is a fault of the store")
    assert asked == ["", *marks]


def test_a_folder_without_its_slash(s3: S3Server, strict: Workbench) -> None:
    """What is no list is asked for as one; the error says how a folder is named."""
    s3.add("/private/box/a.jpg", BODIES[0])
    with pytest.raises(ManifestError, match="HTTP 404") as caught:
        strict.ingest_path("s3://private/box")
    assert caught.value.cure == "if it is a folder, write / at its end"


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
    # Certificates of a store on the own network are none of the hub's.
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
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
