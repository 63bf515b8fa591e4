"""A loopback stand-in for the archive's two hosts, reached as an HTTP proxy.

Every URL of the manifest gets a drawn scene with a known caption, as a file of the kind that its suffix says and
of about its real size.  A fixed share of the URLs fails, by a hash of the URL: some once, some until `heal`.
"""

import hashlib
import random
import urllib.parse
from collections import Counter
from collections.abc import Mapping

from PIL import Image, ImageChops
from support.http_server import Handler, Headers, StandIn
from support.workbench import encoded

from etl.demo.scenes import Scene, random_scene

FAULTS = (
    (4, "missing"),  # 404 until healed
    (3, "unavailable"),  # 503 until healed
    (2, "resetting"),  # connection reset in mid-body until healed
    (5, "busy once"),  # one 503 with Retry-After: 1
    (5, "reset once"),  # one reset in mid-body
    (1, "html"),  # an error page with status 200, until healed
    (1, "pdf"),  # a PDF under a picture's name, for good
)
"""``(percent of URLs, behaviour)``; the rest is served at once."""


def behaviour_of(url: str) -> str:
    """Return how the server treats this URL."""
    bucket = int(hashlib.sha256(url.encode()).hexdigest()[:8], 16) % 100
    for percent, name in FAULTS:
        if bucket < percent:
            return name
        bucket -= percent
    return "ok"


def scene_of(url: str) -> Scene:
    """Return the scene that is drawn for this URL."""
    return random_scene(random.Random(url))


class ArchiveServer(StandIn):
    """The stand-in; a context manager.

    Attributes:
        requests: requests per URL.
        answered: files sent whole, per URL.
        bytes_sent: of bodies.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__(_Handler)
        self.sizes = sizes
        self.healed = False
        self.requests: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bytes_sent = 0

    def heal(self) -> None:
        """From now on everything is served."""
        self.healed = True

    def body_of(self, url: str) -> tuple[bytes, str]:
        """Return the file and its media type."""
        scene, size = scene_of(url), self.sizes.get(url) or 300_000
        if behaviour_of(url) == "pdf" or url.lower().endswith(".pdf"):
            return encoded(scene.draw(1200, 1200), "PDF"), "application/pdf"
        if url.lower().endswith((".tif", ".tiff")):
            # Uncompressed RGB: three bytes for each pixel.
            edge = max(64, int((size / 3) ** 0.5))
            return encoded(scene.draw(edge, edge), "TIFF"), "image/tiff"
        return _jpeg(scene, size), "image/jpeg"


class _Handler(Handler):
    server: ArchiveServer

    def do_GET(self) -> None:
        url = urllib.parse.unquote(self.path)
        with self.server.lock:
            self.server.requests[url] += 1
            first = self.server.requests[url] == 1
        behaviour = behaviour_of(url)
        broken = not self.server.healed
        if behaviour == "missing" and broken:
            return self._answer(404, b"not here", "text/plain")
        if (behaviour == "unavailable" and broken) or (behaviour == "busy once" and first):
            return self._answer(503, b"busy", "text/plain", {"Retry-After": "1"})
        if behaviour == "html" and broken:
            return self._answer(200, b"<!DOCTYPE html><html><body>Service en maintenance</body></html>", "text/html")
        body, kind = self.server.body_of(url)
        if (behaviour == "resetting" and broken) or (behaviour == "reset once" and first):
            return self._reset(body, kind)
        self._answer(200, body, kind)
        with self.server.lock:
            self.server.answered[url] += 1
        return None

    def _answer(self, code: int, body: bytes, kind: str, headers: Headers | None = None) -> None:
        self.answer(code, body, kind, headers)
        with self.server.lock:
            self.server.bytes_sent += len(body)

    def _reset(self, body: bytes, kind: str) -> None:
        self.head(200, {"Content-Type": kind, "Content-Length": str(len(body))})
        self.wfile.write(body[: len(body) // 2])
        self.reset()


def _jpeg(scene: Scene, size: int) -> bytes:
    """Return a JPEG of about ``size`` bytes: film grain makes a drawing as heavy as a photograph."""
    # A grain of sigma 12 costs about 0.6 bytes per pixel at quality 92.
    edge = max(200, min(6000, int((size / 0.6) ** 0.5)))
    picture = scene.draw(edge, edge)
    grain = Image.effect_noise((edge, edge), 12).convert("RGB")
    # Grain is centred on 128: the offset keeps every colour where it was.
    return encoded(ImageChops.add(picture, grain, offset=-128), quality=92)
