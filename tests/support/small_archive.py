"""A loopback stand-in for picture hosts that counts everything: small pictures, a tenth of the URLs faulty.

It is reached directly or as an HTTP proxy.  Every URL gets a drawn picture of its own, of the kind that its suffix
says; how it is treated is fixed by a hash of its path.  It notes, by its own clock, what a polite and thrifty client
is known by: who asked when, how much was sent, how many requests of one host were open, who was asked to wait.
"""

import hashlib
import random
import re
import select
import struct
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field

from PIL.TiffImagePlugin import ImageFileDirectory_v2
from support.http_server import Handler, Headers, StandIn
from support.workbench import encoded

from etl.demo.scenes import random_scene

FAULTS = (
    (15, "missing"),  # 404 until healed
    (10, "forbidden"),  # 403 until healed
    (20, "html"),  # a page with status 200 until healed
    (20, "cut"),  # half of the picture as a whole answer until healed
    (5, "unavailable once"),  # one 503 with Retry-After: 1
    (5, "busy once"),  # one 429 with Retry-After: 1
    (10, "reset once"),  # one connection reset in the middle of the body
    (10, "reset twice"),
    (5, "silent once"),  # one request without an answer
)
"""``(per mille of the URLs, behaviour)``; the rest is served at once."""

PERMANENT = {"missing": "http_404", "forbidden": "http_403", "html": "not_an_image", "cut": "truncated_image"}
"""What must become of the behaviours that no further attempt cures."""

LATENCY_S = 0.005
"""Seconds before each answer."""

SILENCE_S = 1.5
"""Seconds for which an unanswered request counts as open: less than the client's patience."""

LARGE = 160_000
"""Bytes of a picture whose connection is reset: large enough to be resumed."""

_PAGE = b"<!DOCTYPE html><html><body>Service en maintenance</body></html>"


def behaviour_of(url: str) -> str:
    """Return how the server treats this URL, by its path alone: a host's port may change."""
    path = urllib.parse.urlsplit(url).path
    bucket = int(hashlib.sha256(path.encode()).hexdigest()[:8], 16) % 1000
    for share, name in FAULTS:
        if bucket < share:
            return name
        bucket -= share
    return "ok"


def picture_of(url: str) -> tuple[bytes, str]:
    """Return a picture that no other URL has, and its media type."""
    scene, large = random_scene(random.Random(url)), behaviour_of(url).startswith("reset")
    suffix = url.lower().rpartition(".")[2]
    if suffix == "pdf":
        return encoded(scene.draw(128, 128), "PDF", title=url), "application/pdf"
    if suffix in ("tif", "tiff"):
        edge = 232 if large else 56
        named = ImageFileDirectory_v2()
        named[270] = url  # ImageDescription
        return encoded(scene.draw(edge, edge), "TIFF", tiffinfo=named), "image/tiff"
    body = encoded(scene.draw(128, 128), quality=85, comment=url)
    if large:
        # Comment segments behind the first marker; each holds at most 65,533 bytes.
        filling = b"\xff\xfe" + struct.pack(">H", 55_002) + bytes(55_000)
        body = body[:2] + filling * (LARGE // len(filling) + 1) + body[2:]
    return body, "image/jpeg"


@dataclass
class Visit:
    """One request.

    Attributes:
        number: how many requests of this URL came before, plus 1.
        at: when it came, by the server's monotonic clock, in seconds.
        start: first byte that was asked for.
        sent: bytes of the body that were sent.
        whole: whether the picture was sent to its end.
    """

    url: str
    host: str
    number: int
    at: float
    start: int = 0
    sent: int = 0
    whole: bool = False


@dataclass(frozen=True)
class Refusal:
    """A host's wish to be left alone from one instant to another."""

    host: str
    at: float
    until: float


@dataclass
class Notes:
    """What was seen since the beginning.

    Attributes:
        visits: all requests in the order in which they came.
        refusals: answers with ``Retry-After``.
        peak: most requests that were open at once, by host.
    """

    visits: list[Visit] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    peak: Counter[str] = field(default_factory=Counter)


class SmallArchive(StandIn):
    """The stand-in; a context manager.

    Attributes:
        notes: what was seen.
    """

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.notes = Notes()
        self._healed = False
        self._seen: Counter[str] = Counter()
        self._asking: Counter[str] = Counter()

    def heal(self) -> None:
        """From now on every picture is served."""
        self._healed = True

    def arrive(self, url: str, at: float) -> tuple[Visit, str]:
        """Note a request; return it and how to treat it."""
        host = urllib.parse.urlsplit(url).hostname or ""
        name = behaviour_of(url)
        with self.lock:
            self._seen[url] += 1
            visit = Visit(url, host, self._seen[url], at)
            self.notes.visits.append(visit)
            self._asking[host] += 1
            self.notes.peak[host] = max(self.notes.peak[host], self._asking[host])
        times = {"once": 1, "twice": 2}.get(name.rpartition(" ")[2])
        over = self._healed or (times is not None and visit.number > times)
        return visit, "ok" if over else name

    def leave(self, visit: Visit) -> None:
        """Note that a request is about to get its last byte."""
        with self.lock:
            self._asking[visit.host] -= 1

    def refuse(self, visit: Visit, seconds: float) -> None:
        """Note that the host wants no request for so many seconds."""
        now = time.monotonic()
        with self.lock:
            self.notes.refusals.append(Refusal(visit.host, now, now + seconds))


class _Handler(Handler):
    server: SmallArchive

    def do_GET(self) -> None:
        at = time.monotonic()
        path = urllib.parse.unquote(self.path)
        url = path if "://" in path else f"http://{self.headers['Host']}{path}"
        visit, behaviour = self.server.arrive(url, at)
        time.sleep(LATENCY_S)
        match behaviour:
            case "missing":
                self._answer(visit, 404, b"not here", "text/plain")
            case "forbidden":
                self._answer(visit, 403, b"not for you", "text/plain")
            case "html":
                self._answer(visit, 200, _PAGE, "text/html")
            case "unavailable once":
                self._answer(visit, 503, b"busy", "text/plain", {"Retry-After": "1"})
            case "busy once":
                self._answer(visit, 429, b"too many", "text/plain", {"Retry-After": "1"})
            case "silent once":
                self._say_nothing(visit)
            case _:
                self._picture(visit, behaviour)

    def _answer(self, visit: Visit, status: int, body: bytes, kind: str, headers: Headers | None = None) -> None:
        refused = status >= 400
        if refused:
            # Its status is the end of it: no client need read what follows before it begins another request.
            self.server.leave(visit)
        self.head(status, {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})})
        if headers and "Retry-After" in headers:
            self.server.refuse(visit, float(headers["Retry-After"]))
        self._body(visit, body, left=refused)

    def _picture(self, visit: Visit, behaviour: str) -> None:
        body, kind = picture_of(visit.url)
        if behaviour == "cut":
            return self._answer(visit, 200, body[: len(body) // 2], kind)
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        head = {"Content-Type": kind, "ETag": etag}
        if asked and self.headers.get("If-Range") == etag:
            visit.start = int(asked[1])
            head["Content-Range"] = f"bytes {visit.start}-{len(body) - 1}/{len(body)}"
        rest = body[visit.start :]
        self.head(206 if visit.start else 200, {**head, "Content-Length": str(len(rest))})
        if behaviour.startswith("reset"):
            return self._reset(visit, rest[: len(rest) // 2])
        self._body(visit, rest)
        visit.whole = True
        return None

    def _body(self, visit: Visit, body: bytes, *, left: bool = False) -> None:
        # Without its last byte no client can think this request ended and begin another one.
        self.wfile.write(body[:-1])
        if not left:
            self.server.leave(visit)
        self.wfile.write(body[-1:])
        visit.sent = len(body)

    def _reset(self, visit: Visit, body: bytes) -> None:
        self.wfile.write(body)
        visit.sent = len(body)
        # Let the bytes arrive: RST would discard what the client has not read yet.
        time.sleep(0.1)
        self.server.leave(visit)
        self.reset()

    def _say_nothing(self, visit: Visit) -> None:
        time.sleep(SILENCE_S)
        self.server.leave(visit)
        # Until the client hangs up.
        select.select([self.connection], [], [], 60)
        self.close_connection = True
