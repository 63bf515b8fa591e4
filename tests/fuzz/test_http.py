"""Answers from strangers: a file that is whole, or an error of ours, in bounded time; and the next attempt succeeds."""

import asyncio
import gzip
import hashlib
import http.client
import io
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fuzzing import SOAK_FACTOR, Input, Tally, harmed, inputs, own_memory
from support.raw_server import KEEP, RESET, STALL, RawServer, Steps

from etl.errors import FetchError, InvalidUrlError, RobotsError
from etl.net import resume
from etl.net.client import Download, Downloader, Validators
from etl.net.robots import Robots
from etl.settings import Settings

ANSWERS, STALLS, ROBOTS = 225, 10, 40
AT_ONCE = 16
MAX_BYTES = 300_000
MEMORY = 256 * 2**20

BODY = bytes(range(256)) * 400
GOOD = b'HTTP/1.1 200 OK\r\nContent-Length: 102400\r\nETag: "good"\r\nConnection: close\r\n\r\n' + BODY
SWELLING = gzip.compress(bytes(10 * MAX_BYTES))
VERSION = '"v1"'
HAD = 70_000
"""Bytes of `BODY` that are there already where an answer is to a request for the rest."""

SETTINGS = Settings(
    connect_timeout=30,
    read_timeout=30,
    min_rate=100,
    max_bytes=MAX_BYTES,
    allow_host=("127.0.0.1",),
    concurrency=16,
)


# Answers --------------------------------------------------------------------------------------------------------


def head(status: object = "200 OK", *lines: str | bytes, version: str = "HTTP/1.1") -> bytes:
    encoded = [line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass") for line in lines]
    return b"\r\n".join([f"{version} {status}".encode(), *encoded, b"", b""])


def chunked(body: bytes, rng: random.Random) -> bytes:
    out, at = b"", 0
    while at < len(body):
        size = min(rng.choice((1, 1000, 30_000)), len(body) - at)
        extension = rng.choice((b"", b"", b";a=b", b';name="x y"'))
        out += b"%x%s\r\n%s\r\n" % (size, extension, body[at : at + size])
        at += size
    return out + b"0\r\n" + rng.choice((b"", b"", b"X-Trailer: 1\r\n")) + b"\r\n"


def some_body(rng: random.Random) -> bytes:
    return BODY[: rng.choice((0, 1, 500, 70_000, 102_400))]


def unharmed(rng: random.Random) -> bytes:
    """A whole file, framed in any way that HTTP has."""
    body = some_body(rng)
    odd = rng.choice(
        ("X-Odd: \u00e9", b"X-Odd: \xff\xfe", "X-Long: " + "a" * 9000, "Content-Encoding: utf-8", "Server:")
    )
    match rng.randrange(4):
        case 0:
            return head("200 OK", odd, f"Content-Length: {len(body)}") + body
        case 1:
            return head("200", "Transfer-Encoding: chunked", odd) + chunked(body, rng)
        case 2:
            return head("203 Odd", odd, version=rng.choice(("HTTP/1.0", "HTTP/1.1"))) + body
        case _:
            packed = rng.choice((gzip.compress, zlib.compress))(body)
            return head("200 OK", f"Content-Length: {len(packed)}", "Content-Encoding: gzip") + packed


def status_line(rng: random.Random) -> bytes:
    status = rng.choice((
        "200", "0", "99", "100", "101", "103", "199", "204", "205", "206", "304", "400", "451", "599", "600", "999",
        "1000", "-1", "2OO", "", "200 " + "x" * 70_000, "\u0662\u0660\u0660", "200 \x1b[2J", "416", "407", "511",
    ))  # fmt: skip
    version = rng.choice(
        ("HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2", "HTTP/1.10", "http/1.1", "ICY", "", "HTTP/1.1 ")
    )
    return head(status, "Content-Length: 5", version=version) + b"hello"


def header_lines(rng: random.Random) -> bytes:
    body = some_body(rng)
    odd: list[str | bytes] = [
        "", " folded", "\tfolded", "no colon", ": no name", "a b: c", "a\0b: c", "A: b\0c", "A: \x1b[31m", b"\xff: x",
        "Set-Cookie: a=" + "b" * 40_000, "Content-Length:", "Content-Length: " + str(len(body)), "X: a\r",
        'ETag: "\u00e9"', b'ETag: "\xff\x80"', 'ETag: "a\x7f"', "ETag: " + '"' + "x" * 20_000 + '"', "ETag: W/\"x\"",
        "ETag:", b"Last-Modified: \xe9", "Last-Modified: never", "Last-Modified: Thu, 01 Jan 1970 00:00:00 GMT",
        "Content-Type: \u202e", "Content-Type: " + ";" * 999, b"Content-Type: \xf0\x9f", "Accept-Ranges: bytes",
        "Connection: upgrade", "Location: /x", "Refresh: 0",
    ]  # fmt: skip
    lines = [*rng.sample(odd, rng.randint(1, 4)), f"Content-Length: {len(body)}"]
    rng.shuffle(lines)
    if rng.random() < 0.1:
        lines += [f"X-{number}: y" for number in range(3000)]
    return head("200 OK", *lines) + body[: rng.choice((len(body), len(body) // 2))]


def lengths(rng: random.Random) -> bytes:
    """Content-Length and Transfer-Encoding in all combinations, true and not."""
    body = some_body(rng)
    said = (
        str(len(body)),
        "0",
        "1",
        str(len(body) + 1),
        "-1",
        "1e3",
        "+5",
        "0x10",
        " 5 ",
        "5, 5",
        "5,6",
        "9" * 19,
        "9" * 40,
    )
    lines = [f"Content-Length: {rng.choice(said)}" for _ in range(rng.randint(0, 2))]
    codings = ("chunked", "identity", "gzip, chunked", "chunked, chunked", "xchunked", "Chunked", "")
    lines += [f"Transfer-Encoding: {rng.choice(codings)}" for _ in range(rng.choice((0, 0, 1, 1, 2)))]
    sent = chunked(body, rng) if rng.random() < 0.5 else body
    return head("200 OK", *lines, version=rng.choice(("HTTP/1.1", "HTTP/1.1", "HTTP/1.0"))) + sent


def chunks(rng: random.Random) -> bytes:
    sent = chunked(some_body(rng), rng)
    match rng.randrange(4):
        case 0:
            sent = harmed(sent, rng)
        case 1:
            sizes = (
                b"-1",
                b"0x5",
                b"f" * 16,
                b"f" * 40,
                b" 5",
                b"5 ",
                b"",
                b"g",
                b"5;" + b"a" * 50_000,
                b"00000005",
                b"+5",
            )
            sent = rng.choice(sizes) + b"\r\nhello\r\n" + sent
        case 2:
            sent = sent[: rng.randrange(len(sent))]
        case _:
            sent = (
                sent[:-2] + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 100) for n in range(rng.choice((3, 900)))) + b"\r\n"
            )
    return head("200 OK", "Transfer-Encoding: chunked") + sent


def codings(rng: random.Random) -> bytes:
    body = some_body(rng)
    packed = rng.choice((
        gzip.compress(body), zlib.compress(body), SWELLING, gzip.compress(body)[:-4], body, b"",
        gzip.compress(body) * 2, gzip.compress(body) + b"tail", harmed(gzip.compress(body), rng), gzip.compress(b""),
    ))  # fmt: skip
    coding = rng.choice(
        ("gzip", "x-gzip", "deflate", "GZIP", "gzip, gzip", "br", "zstd", "identity", "none", "\u00e9", "")
    )
    return head("200 OK", f"Content-Length: {len(packed)}", f"Content-Encoding: {coding}") + packed


def redirect(rng: random.Random) -> bytes:
    target = rng.choice((
        "/other", "", "?", "#", "//", "///", "http://", "http:///x", "http://[", "http://[::1]/", "http://10.0.0.1/",
        "http://127.0.0.1:1/", "http://127.0.0.1:99999/", "http://127.0.0.1:0/", "http://127.0.0.1:x/",
        "file:///etc/passwd", "ftp://127.0.0.1/", "javascript:1", "data:,x", "http://\u00e9\u202e.\ud800/",
        "http://a b/", "http://%00/", "\x7f", "http://" + "a" * 300 + "/", "/" + "a" * 70_000,
        "http://user:pw@169.254.169.254/", "http://0x7f.1/", "http://0/", "http://2130706433/", "http://127.1/",
        "gopher://127.0.0.1/", "http:other", "\\\\host\\x", "http://xn--a/",
    ))  # fmt: skip
    lines: list[str | bytes] = [f"Location: {target}", "Content-Length: 3"]
    if rng.random() < 0.2:
        lines.append(rng.choice((b"Location: \xff\xfe", "Location: /other")))
    return head(rng.choice((300, 301, 302, 303, 304, 305, 307, 308, 399)), *lines) + b"moved"


def waits(rng: random.Random) -> bytes:
    said = rng.choice((
        "0", "1", "-1", "1.5", "9" * 9, "9" * 400, "1e9", "nan", "inf", "", " ", "soon", "\u0665",
        "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 01 Jan 0000 00:00:00", "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 32 Foo 99999 99:99:99 +9999", "1 Jan 1 0:0:0 -2359", "- -", "Tue, 1 Jan 99999999999999999999 1:1:1",
        "0 0 0 0", "\xa0 5",
    ))  # fmt: skip
    date = rng.choice(("", "x", "Fri, 31 Dec 9999 23:59:59 -9999", "Mon, 1 Jan 0001 00:00:00 +2359"))
    return head(rng.choice((429, 503, 500, 403, 301)), f"Retry-After: {said}", f"Date: {date}", "Content-Length: 0")


def parts(rng: random.Random) -> bytes:
    """Answers to a request for the rest of a file, of which 70,000 bytes are there."""
    rest, size = BODY[HAD:], len(BODY)
    said = rng.choice((
        f"bytes {HAD}-{size - 1}/{size}", f"bytes {HAD}-{size - 1}/{size}", f"bytes {HAD}-{size - 1}/*",
        f"bytes */{size}", f"bytes 0-{size - 1}/{size}", f"bytes {HAD + 1}-{size - 1}/{size}",
        f"bytes {HAD}-{size}/{size + 1}", "bytes", "", f"bytes {HAD}-{HAD}/{size}", f"bytes {'9' * 500}-1/1",
        f"items {HAD}-{size - 1}/{size}", f"bytes -{HAD}-1/2", f"bytes {HAD}-{size - 1}/{size}, bytes 0-1/{size}",
        f"BYTES {HAD}-{size - 1}/{size}", f"bytes \u0667{HAD}-{size - 1}/{size}",
    ))  # fmt: skip
    lines = [f"Content-Range: {said}", f"ETag: {rng.choice((VERSION, VERSION, VERSION, chr(34), 'W/' + VERSION, ''))}"]
    sent = rng.choice((rest, rest, rest, rest[:-1], rest + b"x", rest[:100], b"", BODY))
    lines += rng.choice(([f"Content-Length: {len(sent)}"], [f"Content-Length: {len(rest)}"], []))
    if rng.random() < 0.1:
        lines += ["Content-Encoding: gzip"]
    status = rng.choice((206, 206, 206, 206, 200, 416, 204, 304))
    return head(status, *lines) + (BODY if status == 200 else sent)


def surplus(rng: random.Random) -> bytes:
    """More than was announced, which must not become the beginning of another picture."""
    return head("200 OK", "Content-Length: 500") + BODY[:500] + rng.choice((b"x", GOOD, unharmed(rng), BODY, b"\r\n"))


def without_end(rng: random.Random) -> bytes:
    """Far more of something than anybody needs."""
    body = bytes(2 * MAX_BYTES)
    return rng.choice((
        head("100 Continue") * 5000 + head("200 OK", "Content-Length: 5") + b"hello", b"\r\n" * 50_000,
        b"HTTP/1.1 200 " * 50_000, head("200 OK") + body,
        head("200 OK", "Transfer-Encoding: chunked") + chunked(body, rng), b"\0" * 300_000,
        head("200 OK", f"Content-Length: {len(body)}") + body, head("200 OK", "X: " + "y" * 500_000) + b"hello",
        head("200 OK", "Transfer-Encoding: chunked") + b"0" * 500_000, head("302 Found", "Location: /other") + body * 3,
    ))  # fmt: skip


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "unharmed": unharmed, "status line": status_line, "headers": header_lines, "lengths": lengths, "chunks": chunks,
    "codings": codings, "redirects": redirect, "retry-after": waits, "parts": parts, "surplus": surplus,
    "without end": without_end, "bytes": lambda rng: harmed(unharmed(rng), rng),
    "cut": lambda rng: (data := unharmed(rng))[: rng.randrange(len(data))],
    "notes": parts, "no http": lambda rng: rng.randbytes(rng.choice((0, 1, 50, 5000))),
}  # fmt: skip

KEPT = ("redirects", "retry-after", "surplus")
"""Kinds whose answers tell where they end, after which the connection may go on."""


# Tests ----------------------------------------------------------------------------------------------------------


def test_answers(tmp_path: Path, tally: Tally) -> None:
    """Every answer gives a whole file with its hash or a `FetchError`; what is left of it spoils no later attempt."""
    asyncio.run(feed(tmp_path, ANSWERS, tally))


def test_stalls(tmp_path: Path, tally: Tally) -> None:
    """A server that stops in the middle of anything is given up."""
    asyncio.run(feed_stalls(tmp_path, STALLS, tally))


def test_robots(tally: Tally) -> None:
    """Whatever a robots.txt holds, the rule for us in it is obeyed, and reading it takes bounded time and memory."""
    asyncio.run(feed_robots(ROBOTS, tally))


@pytest.mark.soak
def test_answers_soak(tmp_path: Path, tally: Tally) -> None:
    """The same with many more answers."""
    asyncio.run(feed(tmp_path, ANSWERS * SOAK_FACTOR, tally))


@pytest.mark.soak
def test_stalls_soak(tmp_path: Path, tally: Tally) -> None:
    """The same with many more stalls."""
    asyncio.run(feed_stalls(tmp_path, STALLS * SOAK_FACTOR, tally))


@pytest.mark.soak
def test_robots_soak(tally: Tally) -> None:
    """The same with many more files."""
    asyncio.run(feed_robots(ROBOTS * SOAK_FACTOR, tally))


async def feed(directory: Path, count: int, tally: Tally) -> None:
    with own_memory(tally), RawServer(GOOD) as server:
        async with Downloader(SETTINGS) as downloader:
            waiting = list(inputs(KINDS, count))
            for first in range(0, count, AT_ONCE):
                chosen = waiting[first : first + AT_ONCE]
                async with asyncio.timeout(120), asyncio.TaskGroup() as group:
                    for one in chosen:
                        group.create_task(take(one, directory, server, downloader, tally))
    assert tally.memory < MEMORY


async def take(one: Input, directory: Path, server: RawServer, downloader: Downloader, tally: Tally) -> None:
    """Download one answer, judge what came, and download what the same path has next."""
    kind, number, rng = one
    path, part = f"/{number}", directory / f"{number}.part"
    answer = KINDS[kind](rng)
    ends: list[Steps] = [[], [], [KEEP] if kind in KEPT else [], [RESET]]
    last: Steps = [] if kind == "unharmed" else rng.choice(ends)
    server.answers[path] = [answer, *last]
    if kind in ("parts", "notes"):
        leave_part(part, rng if kind == "notes" else None)
    with tally.trying(kind, number) as outcome:
        try:
            download = await downloader.download(server.base + path, part)
        except FetchError as error:
            assert str(error).isprintable() and len(str(error)) < 3000, error
            assert kind != "unharmed", error
            assert error.retryable or not list(directory.glob(f"{number}.part*"))
            outcome.append(error.slug)
        else:
            judge(download, part, answer, resumed=kind in ("parts", "notes"))
            outcome.append("stored")
            await confirmed(downloader, server, path, download, part)
            return
        await recovers(downloader, server.base + path, part)


def leave_part(part: Path, rng: random.Random | None) -> None:
    """Leave what a broken download left, its note harmed."""
    part.write_bytes(BODY[:HAD])
    note: dict[str, Any] = {"validator": VERSION, "total": len(BODY), "boot": resume._boot()}
    data = json.dumps(note).encode()
    if rng is not None and rng.random() < 0.5:
        odd: tuple[object, ...] = (
            None,
            True,
            1e999,
            -1,
            10**30,
            "x",
            "\u00e9",
            "a\r\nX: y",
            "\0",
            [],
            {},
            HAD,
            HAD + 0.5,
            "\ud800",
            [VERSION],
        )
        data = json.dumps(note | {rng.choice(list(note)): rng.choice(odd)}).encode()
    elif rng is not None:
        data = rng.choice((harmed(data, rng), b"[" * 100_000, b"", b"null", b"[]", data[: rng.randrange(len(data))]))
    part.with_name(part.name + resume.NOTE_SUFFIX).write_bytes(data)


def judge(download: Download, part: Path, answer: bytes, *, resumed: bool) -> None:
    """What was taken for a whole file is the file that another client reads from the same bytes."""
    data = part.read_bytes()
    assert (download.size, download.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert len(data) <= MAX_BYTES
    if answer.startswith(b"HTTP/1.1 30"):
        return
    try:
        body = read_by_another(answer)
    except http.client.IncompleteRead:
        raise
    except http.client.HTTPException:
        return  # Beyond what the other reads: a hundred headers, 64 KiB of a status.
    if resumed and answer.startswith(b"HTTP/1.1 206"):
        # Which bytes come under the right range only the server knows; no other range will do.
        assert b"Content-Range: bytes 70000-102399/102400\r\n" in answer
        assert len(data) == len(BODY) and data == BODY[:HAD] + body
    else:
        assert data == body


def read_by_another(answer: bytes) -> bytes:
    """Return the body as `http.client` reads it; it raises where the body is cut short."""
    # A length that is said twice counts once (RFC 9110, 8.6), which it does not know.
    answer = answer.replace(b"Content-Length: 5, 5\r\n", b"Content-Length: 5\r\n")

    class Line:
        def makefile(self, _mode: str) -> io.BytesIO:
            return io.BytesIO(answer)

    response = http.client.HTTPResponse(Line())  # type: ignore[arg-type]
    response.begin()
    body = response.read()
    if response.headers.get("Content-Encoding", "").strip().lower() in ("gzip", "x-gzip", "deflate"):
        return zlib.decompress(body, zlib.MAX_WBITS | 32)
    return body


async def recovers(downloader: Downloader, url: str, part: Path) -> None:
    """A host that answers well again is understood: at once, or when what does not fit has been thrown away."""
    for attempt in (1, 2):
        try:
            download = await downloader.download(url, part)
        except FetchError as error:
            assert attempt == 1 and error.retryable, error
        else:
            assert download.sha256 == hashlib.sha256(BODY).hexdigest() and part.read_bytes() == BODY
            return


async def confirmed(downloader: Downloader, server: RawServer, path: str, download: Download, part: Path) -> None:
    """What the answer said of its version can be sent back."""
    validators = Validators(download.etag, download.last_modified)
    if not validators.headers:
        return
    server.answers[path] = [head("304 Not Modified", "Content-Length: 0")]
    again = await downloader.download(server.base + path, part.with_suffix(".again"), validators=validators)
    assert again.not_modified


# Stalls ---------------------------------------------------------------------------------------------------------


async def feed_stalls(directory: Path, count: int, tally: Tally) -> None:
    settings = Settings(
        connect_timeout=0.2, read_timeout=0.2, min_rate=10_000_000, max_bytes=MAX_BYTES, allow_host=("127.0.0.1",)
    )
    with RawServer(GOOD) as server:
        async with Downloader(settings) as downloader, asyncio.timeout(60 + count), asyncio.TaskGroup() as group:
            for kind, number, rng in inputs(("chunks", "unharmed", "parts", "redirects", "without end"), count):
                data = KINDS[kind](rng)
                steps: Steps = [data[: rng.randrange(len(data))], STALL]
                server.answers[f"/{number}"] = steps
                group.create_task(give_up(downloader, server, directory, kind, number, tally))


async def give_up(
    downloader: Downloader, server: RawServer, directory: Path, kind: str, number: int, tally: Tally
) -> None:
    part = directory / f"{number}.part"
    with tally.trying(f"stalled {kind}", number) as outcome:
        try:
            download = await downloader.download(f"{server.base}/{number}", part)
        except FetchError as error:
            outcome.append(error.slug)
        else:
            # All of a body may have come before the stall.
            assert download.sha256 == hashlib.sha256(part.read_bytes()).hexdigest()
            outcome.append("stored")


# robots.txt -----------------------------------------------------------------------------------------------------


def rules(rng: random.Random) -> bytes:
    """Lines that a robots.txt may have, and some that none should."""
    star = rng.choice(
        (b"/*a" * rng.choice((3, 2000)), b"*" * 5000, b"/" + b"*a*b" * 50 + b"$", b"/%zz%C3", b"/\xff", b"$")
    )
    lines = (
        b"User-agent: *", b"User-agent:", b"User-agent: " + b"x" * 900, b"Disallow: /", b"Allow: /",
        b"Disallow: " + star, b"Crawl-delay: " + rng.choice((b"nan", b"inf", b"-1", b"1e400", b"9" * 5000, b"x")),
        b"Sitemap: \0", b"Host: [", b"Request-rate: 1/0", b"Visit-time: 9999-1", b"\xef\xbb\xbf", b"\0" * 9, b"<html>",
        b":" * 99, b"#" * 99, b"Disallow /x", b"user agent a b c", b"Disallow: http://[", b"Allow: " + star,
        rng.randbytes(60),
    )  # fmt: skip
    end = rng.choice((b"\n", b"\r\n", b"\r", b"\n\n", b"\x0b"))
    return end.join(rng.choices(lines, k=rng.choice((1, 10, 100)))) + b"\n"


ROBOTS_KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "robots": rules,
    "robots, harmed": lambda rng: harmed(rules(rng), rng, most=20) + b"\n",
    # Not longer for a moment, or the memory that is measured would be the test's own.
    "robots, long": lambda rng: (some := rules(rng)) * (300_000 // len(some)) + b"\n",
    "robots, no text": lambda rng: rng.randbytes(2000).replace(b"caption", b"") + b"\n",
}


async def feed_robots(count: int, tally: Tally) -> None:
    ours = b"User-agent: *\nAllow: /free\n\nUser-agent: caption-etl\nDisallow: /private\n"
    with own_memory(tally):
        for kind, number, rng in inputs(ROBOTS_KINDS, count):
            content = rng.choice((rules, ROBOTS_KINDS[kind]))(rng) + ours

            async def fetch(_url: str, content: bytes = content) -> bytes:
                return content

            robots = Robots(fetch)
            with tally.trying(kind, number) as outcome:
                with pytest.raises(RobotsError):
                    await robots.check("http://a.example/private/" + "a" * rng.choice((1, 2000)))
                for url in (
                    "http://a.example/free",
                    "http://a.example/" + "ab" * 1500,
                    "http://b.example/%zz?q=\u00e9",
                ):
                    try:
                        await robots.check(url)
                    except (RobotsError, InvalidUrlError) as error:
                        outcome[:] = [error.slug]
                robots.crawl_delay("http://a.example/x")
                outcome[:] = outcome or ["allowed"]
    assert tally.memory < MEMORY
