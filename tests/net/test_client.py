"""Downloads against a real server: what arrives, and which class each way of failing gets."""

import asyncio
import dataclasses
import hashlib
import inspect
import random
import resource
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import httpcore2
import httpx2
import pytest
from net.conftest import Certificates
from support import fault_server as faults
from support.fault_cases import CASES, PICTURE, Case, furnish
from support.fault_server import Behaviour, Exchange, FaultServer

from etl import errors
from etl.errors import ConfigError, DiskFullError, FetchError, StateError
from etl.images.formats import FORMATS
from etl.net.client import MAX_REDIRECTS, Download, Downloader, fetch_error
from etl.net.part import HELD
from etl.settings import Settings

BODY = random.Random(1).randbytes(150_000)
Fetch = Callable[..., Download]


def test_a_download_reports_what_the_server_said(server: FaultServer, fetch: Fetch, tmp_path: Path) -> None:
    """The file holds the body, and the result names its hash, size, validators, type and URL."""
    url = server.add("/a.jpg", BODY, "image/JPEG; charset=binary")
    result = fetch(url)
    assert (tmp_path / "a.part").read_bytes() == BODY
    assert result.sha256 == hashlib.sha256(BODY).hexdigest()
    assert (result.size, result.http_status, result.mime, result.final_url) == (150_000, 200, "image/jpeg", url)
    assert result.etag is not None
    assert result.last_modified == "Thu, 01 Jan 1970 00:00:00 GMT"


def test_requests_are_honest(server: FaultServer, fetch: Fetch) -> None:
    """The request names the program and its contact and asks for what can be read here, as it is."""
    fetch(server.add("/a.jpg", BODY), contact="archive@example.org")
    headers = server.log[0].headers
    assert headers["User-Agent"].startswith("caption-etl/")
    assert headers["User-Agent"].endswith(" (+archive@example.org)")
    assert headers["Accept-Encoding"] == "identity"
    assert headers["Accept"].startswith("image/jpeg, image/png, ")
    assert headers["Accept"].endswith(", application/pdf, image/*;q=0.8, */*;q=0.5")
    assert all((known.mime in headers["Accept"]) == known.installed for known in FORMATS)


@pytest.mark.parametrize("contact", ["a\r\nX-Evil: 1", "é"])
def test_a_contact_that_fits_no_header_is_refused(settings: Settings, contact: str) -> None:
    """A contact that would break the User-Agent is a configuration error, not a failure of each download."""
    with pytest.raises(ConfigError, match="contact"):
        Downloader(dataclasses.replace(settings, contact=contact))


def test_a_leftover_part_is_overwritten(server: FaultServer, fetch: Fetch, tmp_path: Path) -> None:
    """Bytes of an earlier, longer attempt do not survive behind the new ones."""
    (tmp_path / "a.part").write_bytes(b"x" * 400_000)
    fetch(server.add("/a.jpg", BODY))
    assert (tmp_path / "a.part").read_bytes() == BODY


def test_urls_with_spaces_and_accents_are_encoded(server: FaultServer, fetch: Fetch) -> None:
    """`a b é.TIF` is requested percent-encoded, and blanks around the URL are ignored."""
    server.add("/a b é.TIF", BODY)
    assert fetch(f" {server.base}/a b é.TIF\n").size == len(BODY)
    assert server.log[0].target == "/a%20b%20%C3%A9.TIF"


def test_a_body_without_length_is_accepted(server: FaultServer, fetch: Fetch) -> None:
    """A body that ends with its connection counts as whole."""
    server.add("/a.jpg", BODY)
    assert fetch(server.fail("/a.jpg", faults.no_length)).size == len(BODY)


def test_an_unasked_gzip_body_is_decoded(server: FaultServer, fetch: Fetch, tmp_path: Path) -> None:
    """Hash, size and file are those of the picture, not of its compressed form."""
    server.add("/a.jpg", BODY)
    result = fetch(server.fail("/a.jpg", faults.gzipped))
    assert (tmp_path / "a.part").read_bytes() == BODY
    assert (result.size, result.sha256) == (len(BODY), hashlib.sha256(BODY).hexdigest())


def test_an_odd_content_encoding_is_ignored(server: FaultServer, fetch: Fetch) -> None:
    """Old servers write a character set there; the bytes are taken as they are."""
    assert fetch(server.fail("/a.jpg", faults.encoded(BODY, "UTF-8"))).size == len(BODY)


def test_html_with_status_200_is_told_by_its_type(server: FaultServer, fetch: Fetch) -> None:
    """A login page is downloaded like any file; its type is passed on for the decoder to refuse."""
    assert fetch(server.fail("/a.jpg", faults.html)).mime == "text/html"


def test_an_etag_that_still_holds_transfers_nothing(server: FaultServer, fetch: Fetch, tmp_path: Path) -> None:
    """With a valid etag the server's 304 comes back as `not_modified`, and no file is written."""
    url = server.add("/a.jpg", BODY)
    etag = fetch(url, part=tmp_path / "first").etag
    again = fetch(url, etag=etag)
    assert again.not_modified
    assert not (tmp_path / "a.part").exists()


def test_redirects_are_followed_up_to_the_limit(server: FaultServer, fetch: Fetch) -> None:
    """Five hops arrive, relative ones too; the final URL is the last one."""
    server.add("/0", BODY)
    for hop in range(MAX_REDIRECTS):
        server.fail(f"/{hop + 1}", faults.redirect(f"/{hop}" if hop % 2 else server.url(f"/{hop}")))
    assert fetch(server.url(f"/{MAX_REDIRECTS}")).final_url == server.url("/0")


def test_a_redirect_body_is_not_read(server: FaultServer, fetch: Fetch) -> None:
    """A redirect with a body without end costs neither time nor memory."""

    def endless_redirect(exchange: faults.Exchange) -> None:
        exchange.head(302, {"Location": "/there"})
        while True:
            exchange.send(bytes(65536))

    server.add("/there", BODY)
    assert fetch(server.fail("/a", endless_redirect)).size == len(BODY)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_behaviour_has_its_consequence(server: FaultServer, fetch: Fetch, tmp_path: Path, case: Case) -> None:
    """Each way of misbehaving ends soon, after the requests that it takes, in its own class with one line."""
    furnish(server)
    server.add("/fault", PICTURE)
    url = server.fail("/fault", case.behaviour)
    began = time.monotonic()
    if case.slug is None:
        assert fetch(url).size == (tmp_path / "a.part").stat().st_size
    else:
        with pytest.raises(FetchError) as caught:
            fetch(url)
        assert (caught.value.slug, caught.value.retryable) == (case.slug, case.retryable)
        assert caught.value.retry_after_s == (None if case.wait_s is None else pytest.approx(case.wait_s, abs=1.5))
        assert url in str(caught.value)
        assert str(caught.value).isprintable()
    assert time.monotonic() - began < 4
    assert server.requests.total() == case.requests


def test_bytes_behind_an_answer_do_not_become_the_next_one(
    server: FaultServer, settings: Settings, tmp_path: Path
) -> None:
    """A body that is longer than announced does not pass for the answer to the next request."""
    forged = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"

    def longer(exchange: faults.Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nshort" + forged)

    server.fail("/short", longer)
    server.add("/good", BODY)

    async def go() -> Download:
        async with Downloader(settings) as downloader:
            await downloader.download(server.url("/short"), tmp_path / "short.part")
            return await downloader.download(server.url("/good"), tmp_path / "good.part")

    assert asyncio.run(go()).size == len(BODY)


@pytest.mark.parametrize(
    ("url", "slug"),
    [
        ("http://127.0.0.1:{closed}/", "connect"),
        ("http://does-not-exist.invalid/a.jpg", "dns"),
        ("http://a..b/x.jpg", "invalid_url"),
        ("http://10.0.0.1/", "blocked_address"),
        ("http://2130706434/", "blocked_address"),
        ("http://[::ffff:10.0.0.1]/", "blocked_address"),
        ("gopher://example.org/", "invalid_url"),
        ("file:///etc/passwd", "invalid_url"),
        ("http://", "invalid_url"),
        ("http:///a.jpg", "invalid_url"),
        ("http://[::1", "invalid_url"),
        ("http://host:99999/", "invalid_url"),
        ("http://ho\x00st/", "invalid_url"),
        ("a.jpg", "invalid_url"),
        ("", "invalid_url"),
    ],
)
def test_each_bad_url_has_its_class(fetch: Fetch, url: str, slug: str) -> None:
    """URLs that lead nowhere are told apart without a traceback."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(FetchError) as caught:
            fetch(url.replace("{closed}", str(closed.getsockname()[1])))
    assert caught.value.slug == slug
    assert str(caught.value).isprintable()


def test_errors_keep_the_status_and_hide_secrets(server: FaultServer, fetch: Fetch) -> None:
    """The last status is on the error; passwords and query values are not in its text."""
    server.fail("/a", faults.redirect("/b?token=s3cret"))
    server.fail("/b", faults.truncated)
    with pytest.raises(FetchError) as caught:
        fetch(server.url("/a?key=s3cret").replace("http://", "http://me:s3cret@"))
    assert caught.value.http_status == 200
    assert "s3cret" not in str(caught.value)
    assert "/a?key=..." in str(caught.value)
    assert "/b?token=..." in str(caught.value)


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120.0), (lambda: faults.http_date(90), 90.0), (lambda: faults.http_date(-90), 0.0), ("soon", None)],
)
def test_retry_after_is_read_in_both_forms(
    server: FaultServer, fetch: Fetch, code: int, header: str | Callable[[], str], seconds: float | None
) -> None:
    """Seconds and HTTP dates both end as seconds to wait; nonsense ends as nothing."""
    text = header if isinstance(header, str) else header()
    with pytest.raises(FetchError) as caught:
        fetch(server.fail("/a", faults.status(code, retry_after=text)))
    assert caught.value.retry_after_s == (seconds if seconds is None else pytest.approx(seconds, abs=1.5))


def test_a_slow_but_steady_server_is_waited_for(server: FaultServer, fetch: Fetch) -> None:
    """A body above the minimum rate may take longer than the read time-out."""
    server.add("/a.jpg", BODY[:4000])
    assert fetch(server.fail("/a.jpg", faults.drip(4000)), min_rate=1000, read_timeout=0.4).size == 4000


def test_a_broken_download_leaves_its_part_for_a_resume(server: FaultServer, fetch: Fetch, tmp_path: Path) -> None:
    """After a break the bytes that came stay; after a final refusal nothing does."""
    part = tmp_path / "a.part"
    server.add("/a.jpg", BODY)
    with pytest.raises(FetchError, match=r"^the body ended early, after 75000 of 150000 bytes: http"):
        fetch(server.fail("/a.jpg", faults.truncated))
    assert part.read_bytes() == BODY[:75_000]
    with pytest.raises(FetchError):
        fetch(server.fail("/a.jpg", faults.endless))
    assert not part.exists()


def test_what_is_small_stays_in_memory(server: FaultServer, settings: Settings, tmp_path: Path) -> None:
    """Where that is wanted, a body below 64 KiB makes no file, announced or not, and leaves none where it breaks."""
    part = tmp_path / "a.part"
    cases = [
        (b"", faults.ok, True), (BODY[: HELD - 1], faults.ok, True), (BODY[: HELD - 1], faults.no_length, True),
        (BODY[:HELD], faults.ok, False), (BODY, faults.ok, False), (BODY, faults.no_length, False),
        (BODY[:5000], faults.gzipped, True), (BODY, faults.gzipped, False),
    ]  # fmt: skip

    async def go() -> None:
        async with Downloader(settings) as downloader:
            for body, behaviour, held in cases:
                server.add("/a.jpg", body)
                server.fail("/a.jpg", behaviour)
                download = await downloader.download(server.url("/a.jpg"), part, in_memory=True)
                assert (download.data is not None, part.exists()) == (held, not held)
                assert (part.read_bytes() if download.data is None else download.data) == body
                assert (download.size, download.sha256) == (len(body), hashlib.sha256(body).hexdigest())
                part.unlink(missing_ok=True)
            server.add("/a.jpg", BODY[:5000])
            server.fail("/a.jpg", faults.truncated)
            with pytest.raises(errors.TruncatedBodyError):
                await downloader.download(server.url("/a.jpg"), part, in_memory=True)
            assert not list(tmp_path.iterdir())

    asyncio.run(go())


def test_a_full_disk_ends_the_run_and_not_the_item(server: FaultServer, fetch: Fetch, tmp_path: Path) -> None:
    """Where the kernel takes no more bytes, be it at a write or at the last flush, that is no fault of the source."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (100, 400_000):
        url = server.add("/a.jpg", bytes(size))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
        try:
            with pytest.raises(DiskFullError, match="File too large"):
                fetch(url, part=tmp_path / f"{size}.part")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_unwritable_part_is_the_state_s_fault(server: FaultServer, fetch: Fetch, tmp_path: Path) -> None:
    """A missing directory is reported as such, not as a network failure."""
    with pytest.raises(StateError, match="cannot write"):
        fetch(server.add("/a.jpg", BODY), part=tmp_path / "missing" / "a.part")


def test_an_untrusted_certificate_is_final(certificate: str, fetch: Fetch) -> None:
    """A self-signed certificate is a TLS error that says so and is not retried; no request is sent."""
    with FaultServer(tls=certificate) as server, pytest.raises(errors.TlsError, match="self-signed") as caught:
        fetch(server.add("/a.jpg", BODY))
    assert not caught.value.retryable
    assert (server.connections, server.requests.total()) == (1, 0)


@pytest.mark.parametrize(
    ("name", "address", "until", "reason"),
    [
        ("expired", "127.0.0.1", "20210101000000Z", "expired"),
        ("foreign", "127.0.0.9", "20990101000000Z", "mismatch"),
    ],
)
def test_a_trusted_certificate_that_is_not_valid_is_final(
    certificates: Certificates, fetch: Fetch, monkeypatch: pytest.MonkeyPatch, name: str, address: str, until: str,
    reason: str,
) -> None:  # fmt: skip
    """Expired, or another host's: a TLS error that says so, after one connection and no request."""
    pem = certificates.make(name, address, until)
    monkeypatch.setenv("SSL_CERT_FILE", f"{pem}.crt")
    with FaultServer(tls=pem) as server, pytest.raises(errors.TlsError, match=reason) as caught:
        fetch(server.add("/a.jpg", BODY))
    assert not caught.value.retryable
    assert (server.connections, server.requests.total()) == (1, 0)


def test_http_to_a_tls_port_is_a_broken_connection(certificate: str, fetch: Fetch) -> None:
    """A server that only speaks TLS breaks a plain request off, once for each attempt."""
    with FaultServer(tls=certificate) as server, pytest.raises(errors.BrokenConnectionError) as caught:
        fetch(server.add("/a.jpg", BODY).replace("https:", "http:"))
    assert caught.value.retryable
    assert (server.connections, server.requests.total()) == (1, 0)


def test_a_trusted_certificate_works_through_the_guard(
    certificate: str, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the certificate trusted by SSL_CERT_FILE the same download succeeds."""
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    with FaultServer(tls=certificate) as server:
        assert fetch(server.add("/a.jpg", BODY)).size == len(BODY)


def test_https_to_a_plain_server_is_a_tls_error(server: FaultServer, fetch: Fetch) -> None:
    """A server that does not speak TLS at all is told apart from one that cannot be reached."""
    with pytest.raises(errors.TlsError):
        fetch(server.add("/a.jpg", BODY).replace("http:", "https:"))


def test_downloads_go_on_after_hundreds_of_cancellations(
    server: FaultServer, settings: Settings, tmp_path: Path
) -> None:
    """Cancelled downloads, more at once than there are connections, leave a client that works."""
    server.add("/a.jpg", BODY)
    server.fail("/hang", faults.hang)
    server.fail("/slow", faults.drip(20_000))

    async def go() -> Download:
        async with Downloader(dataclasses.replace(settings, concurrency=4, read_timeout=20)) as downloader:
            for turn in range(25):
                urls = [server.url(("/hang", "/slow", "/a.jpg")[n % 3]) for n in range(20)]
                jobs = [
                    asyncio.create_task(downloader.download(url, tmp_path / f"{n}.part")) for n, url in enumerate(urls)
                ]
                await asyncio.sleep(0.002 * (turn % 5))
                for job in jobs:
                    job.cancel()
                ended = await asyncio.gather(*jobs, return_exceptions=True)
                assert all(isinstance(each, asyncio.CancelledError | Download) for each in ended), ended
            async with asyncio.timeout(5):
                return await downloader.download(server.url("/a.jpg"), tmp_path / "last.part")

    assert asyncio.run(go()).size == len(BODY)


SAID = {
    "page": (
        403, b"<!doctype html><title>403 Forbidden</title><style>p {}</style><h1>Blocked</h1>\n<p>Mail us&excl;",
        'HTTP 403, says "Blocked Mail us!"',
    ),
    "json": (429, b'{"error": "quota of 100 an hour"}', 'HTTP 429, says "{"error": "quota of 100 an hour"}"'),
    "xml": (404, b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", 'HTTP 404, says "NoSuchKey"'),
    "stranger": (500, "<p>\x1b[31m\u202eevil".encode(), 'HTTP 500, says "\\x1b[31m\\u202eevil"'),
    "secret": (403, b"not http://h/a?sig=c2VjcmV0 nor c2VjcmV0", 'HTTP 403, says "not http://h/a?sig=... nor ..."'),
    "nothing new": (404, b"<html><h1>404 Not Found</h1>", "HTTP 404"),
    "nothing": (503, b"", "HTTP 503"),
    "no text": (500, b"\xff\xd8\xff\0\0", "HTTP 500"),
    "long": (500, b"words " * 50_000, 'HTTP 500, says "' + "words " * 19 + 'wor..."'),
}  # fmt: skip


def test_a_refusal_has_the_host_s_own_words(
    server: FaultServer, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first words of a body, cleaned and without what is secret in the URL; whoever never ends it holds nobody up,
    and a body that was read leaves its connection to the next request.
    """
    monkeypatch.setattr("etl.net.first_words.MAX_S", 0.2)

    def answer(code: int, body: bytes, length: int) -> Behaviour:
        def behave(exchange: Exchange) -> None:
            exchange.head(code, {"Content-Length": str(length)})
            exchange.send(body)
            if length > len(body):
                exchange.closing.wait(5)

        return behave

    cases = {name: (code, body, len(body), said) for name, (code, body, said) in SAID.items()}
    cases["unfinished"] = (403, b"Wait here", 99, 'HTTP 403, says "Wait here"')

    async def go() -> dict[str, str]:
        found, opened = {}, {}
        async with Downloader(settings) as downloader:
            for name, (code, body, length, _) in cases.items():
                url = server.fail("/a.jpg", answer(code, body, length)) + "?sig=c2VjcmV0"
                try:
                    await downloader.download(url, tmp_path / "a.part")
                except FetchError as error:
                    found[name] = str(error).removesuffix(f": {server.url('/a.jpg')}?sig=...")
                opened[name] = server.connections
            assert opened["long"] == opened["no text"]
            server.heal()
            await downloader.download(server.add("/good.jpg", BODY), tmp_path / "a.part")
        return found

    assert asyncio.run(go()) == {name: said for name, (*_, said) in cases.items()}


def test_connections_are_reused(server: FaultServer, settings: Settings, tmp_path: Path) -> None:
    """Downloads in a row go over one connection."""
    server.add("/a.jpg", BODY)

    async def go() -> None:
        async with Downloader(settings) as downloader:
            for _ in range(3):
                await downloader.download(server.url("/a.jpg"), tmp_path / "a.part")

    asyncio.run(go())
    assert server.connections == 1


def test_a_request_that_an_idle_connection_lost_is_sent_again(
    server: FaultServer, settings: Settings, tmp_path: Path
) -> None:
    """A kept connection that the server closes as it is used costs nothing; a new one that breaks is a failure."""
    server.add("/a.jpg", BODY)
    for name, behaviour in {"/reset": faults.reset_if_kept, "/closed": faults.close_if_kept}.items():
        server.add(name, BODY)
        server.fail(name, behaviour)
    server.fail("/always", faults.reset_at_once)

    async def go() -> list[Download]:
        async with Downloader(settings) as downloader:
            names = ("/a.jpg", "/reset", "/a.jpg", "/closed", "/a.jpg")
            done = [await downloader.download(server.url(name), tmp_path / "a.part") for name in names]
            with pytest.raises(errors.BrokenConnectionError):
                await downloader.download(server.url("/always"), tmp_path / "a.part")
            return done

    assert [each.size for each in asyncio.run(go())] == [len(BODY)] * 5
    assert server.requests == {"/a.jpg": 3, "/reset": 2, "/closed": 2, "/always": 2}


def test_the_environment_s_proxy_is_used(
    server: FaultServer, fetch: Fetch, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With HTTP_PROXY a request goes there in absolute form, spaces encoded, its host neither resolved nor guarded."""
    monkeypatch.setenv("HTTP_PROXY", server.base)
    server.add("http://pictures.invalid/a b.TIF", BODY)
    result = fetch("http://pictures.invalid/a b.TIF", allow_host=())
    assert result.size == len(BODY)
    assert server.log[0].target == "http://pictures.invalid/a%20b.TIF"
    assert Downloader(settings).proxied


def test_no_proxy_hosts_are_dialled_directly_and_guarded(
    server: FaultServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_PROXY excepts a host from the proxy, and then the guard holds again."""
    monkeypatch.setenv("ALL_PROXY", "127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", f"127.0.0.1:{server.port}")
    assert fetch(server.add("/a.jpg", BODY)).size == len(BODY)
    with pytest.raises(errors.BlockedAddressError):
        fetch(server.url("/a.jpg"), allow_host=())
    with pytest.raises(errors.ConnectError):
        fetch("http://elsewhere.invalid/a.jpg")


@pytest.mark.parametrize("proxy", ["ftp://127.0.0.1:1", "http://127.0.0.1:port"])
def test_an_unusable_proxy_is_a_configuration_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """A proxy that cannot be used is named before any download starts."""
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ConfigError, match="proxy"):
        Downloader(settings)


def _errors_of_libraries() -> list[Exception]:
    request = httpx2.Request("GET", "http://host/")
    arguments: dict[str, object] = {"message": "boom", "request": request, "response": httpx2.Response(200)}
    found: list[Exception] = []
    for library in (httpx2, httpcore2):
        for cls in vars(library).values():
            if isinstance(cls, type) and issubclass(cls, Exception):
                wanted = inspect.signature(cls.__init__).parameters
                found.append(cls(**{name: arguments[name] for name in wanted if name in arguments}))
    return [*found, OSError(5, "boom"), TimeoutError(), ssl.SSLError("boom"), socket.gaierror(-2, "boom"), KeyError(1)]


@pytest.mark.parametrize("error", _errors_of_libraries(), ids=lambda e: f"{type(e).__module__}.{type(e).__name__}")
def test_every_exception_of_a_library_has_a_class(error: Exception) -> None:
    """Each exception of httpx2, httpcore2 and the system maps to a fetch error; the network's to a narrow one."""
    mapped = fetch_error(error)
    assert isinstance(mapped, FetchError)
    transport = isinstance(error, httpx2.TransportError | OSError | httpcore2.NetworkError | httpcore2.TimeoutException)
    assert not (transport and type(mapped) is errors.TransientFetchError)


def test_an_unexpected_exception_does_not_escape(
    server: FaultServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no table knows still fails its item only, under the name of the exception."""
    monkeypatch.setattr("etl.net.client.PartWriter", lambda *_, **__: 1 / 0)
    with pytest.raises(errors.TransientFetchError, match="ZeroDivisionError"):
        fetch(server.add("/a.jpg", BODY))
