"""Every way in which an HTTP server is known to misbehave, each with what must become of it.

`CASES` is the table for whole files, `RESTS` for resumed ones; `furnish` puts the pages that the redirects lead to onto
a server.
"""

import gzip
from dataclasses import dataclass
from functools import partial

from PIL import Image
from support.bad_answers import (
    another_total,
    chunked,
    compressed_range,
    endless_header_line,
    endless_redirect,
    for_ever,
    from_the_start,
    half_closed,
    led_by,
    less_than_the_range,
    misannounced,
    more_than_the_range,
    multipart,
    no_content_range,
    raw,
    to,
    to_own_host,
    typed,
    unasked_range,
    unknown_total,
    unmarked_end,
    until,
)
from support.fault_server import (
    Behaviour,
    FaultServer,
    announce,
    chunked_cut,
    disconnect,
    drip,
    drip_head,
    encoded,
    endless,
    garbage,
    gzipped,
    hang,
    html,
    no_length,
    ok,
    ranged,
    redirect,
    reset_at_once,
    reset_mid_body,
    status,
    truncated,
)
from support.workbench import encoded as picture_file

PICTURE = picture_file(Image.effect_noise((420, 420), 60))
"""A JPEG of about 120 kB: large enough to be resumed, small enough that a break is charged as an attempt."""

MAX_BYTES = 500_000
"""The cap that the table assumes: above the picture, below what the endless behaviours send."""

HOPS = 5
"""Redirects that are followed."""


@dataclass(frozen=True)
class Case:
    """One behaviour and its consequence.

    Attributes:
        slug: class of the downloader's error; ``None`` when the bytes arrive.
        retryable: whether another attempt is allowed.
        stage: class in which the source ends, where it is not ``slug``: bytes may arrive and be no picture.
        requests: requests of one attempt; more than 1 where redirects are followed.
        wait_s: seconds that the server asked for, as far as they are obeyed.
    """

    name: str
    behaviour: Behaviour
    slug: str | None = None
    retryable: bool = False
    stage: str | None = None
    requests: int = 1
    wait_s: float | None = None

    @property
    def outcome(self) -> str | None:
        """Class in which a source ends; ``None`` when it is done."""
        return self.stage or self.slug


def passing(name: str, behaviour: Behaviour, slug: str, *, wait_s: float | None = None) -> Case:
    """A failure that another attempt may cure."""
    return Case(name, behaviour, slug, retryable=True, wait_s=wait_s)


_OK = b"HTTP/1.1 200 OK\r\n"
_GZIP_NAME = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x08\0\0\0\0\0\3"
"""A gzip header whose flag 8 says that a file name follows, up to a zero byte."""

CONNECTION = (
    passing("reset before the answer", reset_at_once, "reset"),
    passing("reset in the headers", raw(_OK + b"Content-Ty", reset=True), "reset"),
    passing("reset in the body", reset_mid_body, "reset"),
    passing("closed before the answer", disconnect, "reset"),
    passing("closed in the headers", raw(_OK + b"Content-Ty"), "reset"),
    passing("closed behind the headers", half_closed, "truncated"),
    passing("no answer", hang, "timeout"),
    passing("slow headers", drip_head, "timeout"),
    passing("slow body", drip(100), "timeout"),
)

LENGTH = (
    passing("shorter than announced", truncated, "truncated"),
    passing("announced too long", misannounced(1000), "truncated"),
    passing("announced too long and left open", misannounced(1000, stay=True), "timeout"),
    Case("announced too short", misannounced(-40_000), stage="truncated_image"),
    Case("no length", no_length),
    Case("no length and cut", unmarked_end, stage="truncated_image"),
    Case("empty", typed("image/jpeg", b""), stage="not_an_image"),
    Case("too large by its length", announce(MAX_BYTES + 1), "too_large"),
    Case("absurd length", announce(10**18), "too_large"),
    passing("length of 31 digits", announce(10**30), "protocol"),
    passing("negative length", announce(-1), "protocol"),
    passing("two lengths", raw(_OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"), "protocol"),
    Case("without end", endless, "too_large"),
)

CHUNKS = (
    passing("chunks cut", chunked_cut, "truncated"),
    passing("chunk cut", chunked(b"ffffffff\r\nabc"), "truncated"),
    passing("chunk size no number", chunked(b"zz\r\nabc\r\n"), "protocol"),
    passing("chunk size negative", chunked(b"-1\r\nabc\r\n"), "protocol"),
    passing("chunk longer than its size", chunked(b"2\r\nabcdef\r\n0\r\n\r\n"), "protocol"),
    Case(
        "chunks without end",
        for_ever(_OK + b"Transfer-Encoding: chunked\r\n\r\n", b"4000\r\n" + bytes(0x4000) + b"\r\n"),
        "too_large",
    ),
)

CODING = (
    Case("gzip", gzipped),
    Case("gzip bomb", encoded(gzip.compress(bytes(50_000_000)), "gzip"), "too_large"),
    Case("gzip header without end", for_ever(_GZIP_NAME, b"a" * 65536), "too_large"),
    passing("gzip cut", encoded(gzip.compress(PICTURE)[:-5000], "gzip"), "truncated"),
    passing("gzip broken", encoded(b"not gzip at all", "gzip"), "protocol"),
    passing("gzip and more", encoded(gzip.compress(PICTURE) + b"more", "gzip"), "protocol"),
    passing("brotli", encoded(PICTURE, "br"), "protocol"),
    passing("two codings", encoded(PICTURE, "gzip, gzip"), "protocol"),
    Case("a character set for a coding", encoded(PICTURE, "UTF-8")),
    Case("unknown coding", encoded(PICTURE, "x-unheard-of")),
)

NO_HTTP = (
    passing("garbage", garbage, "protocol"),
    passing("no headers", raw(PICTURE), "protocol"),
    passing("status of two digits", raw(b"HTTP/1.1 20 OK\r\n\r\n"), "protocol"),
    passing("header without colon", raw(_OK + b"what is this\r\n\r\n"), "protocol"),
    passing("headers without end", for_ever(_OK, b"X-More: " + b"a" * 1000 + b"\r\n"), "protocol"),
    passing("header line without end", endless_header_line, "protocol"),
    Case("bare line feeds", raw(b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(PICTURE), PICTURE)),
    Case("continue first", led_by(b"HTTP/1.1 100 Continue\r\n\r\n")),
    Case("early hints first", led_by(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n" * 3)),
    passing("hints without end", for_ever(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.01), "timeout"),
    passing("switching protocols", raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h9\r\n\r\n"), "protocol"),
)

STATUSES = (
    *(Case(str(code), status(code), "http_403") for code in (401, 403, 407)),
    *(Case(str(code), status(code), "http_404") for code in (404, 410)),
    passing("202", status(202, retry_after="7"), "http_202", wait_s=7),
    passing("403 that asks to wait", status(403, retry_after="7"), "http_429", wait_s=7),
    Case("404 that asks to wait", status(404, retry_after="7"), "http_404"),
    *(Case(str(code), status(code), "http_4xx") for code in (204, 205, 206, 300, 304, 305, 400, 416, 418, 451)),
    *(passing(str(code), status(code), "http_5xx") for code in (408, 500, 502, 503, 504, 999)),
    Case("an unasked range", unasked_range, "http_4xx"),
    passing("429", status(429), "http_429"),
)

WAITS = (
    passing("429 for seconds", status(429, retry_after="1"), "http_429", wait_s=1),
    passing("429 until a date", until(429, 2), "http_429", wait_s=2),
    passing("429 until the past", status(429, retry_after="Thu, 01 Jan 1970 00:00:00 GMT"), "http_429", wait_s=0),
    passing("429 for no number", status(429, retry_after="soon"), "http_429"),
    passing("429 for a negative number", status(429, retry_after="-5"), "http_429"),
    passing("429 for ages", status(429, retry_after="99999999"), "http_429", wait_s=99_999_999),
    passing("503 for seconds", status(503, retry_after="1"), "http_5xx", wait_s=1),
    passing("503 for ages", until(503, 1e9), "http_5xx", wait_s=1e9),
)

REDIRECTS = (
    Case("redirects to the limit", redirect(f"/hop/{HOPS - 1}"), requests=HOPS + 1),
    Case("redirects beyond the limit", redirect(f"/hop/{HOPS}"), "redirects", requests=HOPS + 1),
    Case("redirect in a circle", redirect("/circle"), "redirects", requests=HOPS + 1),
    Case("redirect to nowhere", redirect(""), "redirects", requests=HOPS + 1),
    Case("redirect with an endless body", endless_redirect, requests=2),
    Case("relative redirect", redirect("there?page=1#top"), requests=2),
    Case("redirect without protocol", to_own_host, requests=2),
    Case("redirect with a space", to(b"/over there.jpg"), requests=2),
    Case("redirect in UTF-8", to("/là.jpg".encode()), requests=2),
    Case("redirect without Location", raw(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"), "http_4xx"),
    Case("redirect to a file", redirect("file:///etc/passwd"), "invalid_url"),
    passing("redirect to nonsense", redirect("http://[::bad/"), "protocol"),
)

DIALLED = (
    Case("redirect to link-local", redirect("http://169.254.169.254/latest/"), "blocked_address"),
    Case("redirect to a private address", redirect("http://10.255.0.1/"), "blocked_address"),
    Case("redirect to another loopback", redirect("http://127.0.0.2:1/"), "blocked_address"),
    Case("redirect to a private https", redirect("https://192.168.0.1/a.jpg"), "blocked_address"),
)
"""Redirects that the guard ends; behind a proxy there is no guard."""

CONTENT = (
    Case("HTML for a picture", html, stage="not_an_image"),
    Case("HTML called a picture", typed("image/jpeg", b"<!DOCTYPE html><title>Error</title>"), stage="not_an_image"),
    Case("a picture called HTML", typed("text/html")),
    Case("a picture called nothing", typed("")),
    Case("half a picture", typed("image/jpeg", PICTURE[: len(PICTURE) // 2]), stage="truncated_image"),
)

RESTS = (
    Case("the rest", ranged),
    Case("the whole file", ok),
    *(
        passing(name, behaviour, "protocol")
        for name, behaviour in (
            ("an earlier range", partial(ranged, shift=-10)),
            ("a later range", partial(ranged, shift=10)),
            ("no Content-Range", no_content_range),
            ("several ranges", multipart),
            ("a range of another total", another_total),
            ("a range of an unknown total", unknown_total),
            ("a range from the start", from_the_start),
            ("416", status(416)),
        )
    ),
    passing("less than the range", less_than_the_range, "truncated"),
    passing("more than the range", more_than_the_range, "truncated"),
    passing("part of the rest", partial(ranged, cut=100), "truncated"),
    Case("a compressed range", compressed_range),
)
"""Answers to a request for the rest of a file, after a first request that broke in the middle."""

CASES = (
    *CONNECTION, *LENGTH, *CHUNKS, *CODING, *NO_HTTP, *STATUSES, *WAITS, *REDIRECTS, *DIALLED, *CONTENT,
)  # fmt: skip
"""Answers to a request for a whole file."""


def furnish(server: FaultServer) -> None:
    """Add the pages that the redirects lead to."""
    for path in ("/there", "/over there.jpg", "/là.jpg", "/hop/0"):
        server.add(path, PICTURE)
    for hop in range(1, HOPS + 1):
        server.fail(f"/hop/{hop}", redirect(f"/hop/{hop - 1}"))
    server.fail("/circle", redirect("/circle"))
