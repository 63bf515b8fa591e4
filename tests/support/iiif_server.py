"""An archive that speaks IIIF on loopback: manifests, and image services of any version and level."""

import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from support.http_server import Handler, StandIn

CONTEXT = {2: "http://iiif.io/api/image/2/context.json", 3: "http://iiif.io/api/image/3/context.json"}
_PICTURE = re.compile(r"(?P<region>[^/]+)/(?P<size>[^/]+)/0/default\.jpg")


def gradient(width: int, height: int) -> bytes:
    """Return a JPEG of this size, drawn quickly."""
    held = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(held, "JPEG")
    return held.getvalue()


@dataclass(frozen=True, kw_only=True)
class Served:
    """One picture and what its service can do.

    Attributes:
        sizes: that it gives at level 0, too.
        refuses: a part of sizes that it does not give, whatever its info.json says.
        more: for its info.json.
    """

    version: int = 3
    level: int = 2
    width: int = 3000
    height: int = 2000
    sizes: tuple[tuple[int, int], ...] = ()
    refuses: str = "?"
    more: Mapping[str, Any] = field(default_factory=dict)

    def info(self, base: str) -> dict[str, Any]:
        """Return its info.json."""
        v3 = self.version == 3
        return {
            "@context": CONTEXT[self.version], "id" if v3 else "@id": base, "protocol": "http://iiif.io/api/image",
            **({"type": "ImageService3", "profile": f"level{self.level}"} if v3 else
               {"profile": [f"http://iiif.io/api/image/2/level{self.level}.json"]}),
            "width": self.width, "height": self.height,
            **({"sizes": [{"width": w, "height": h} for w, h in self.sizes]} if self.sizes else {}), **self.more,
        }  # fmt: skip

    def size_of(self, asked: str) -> tuple[int, int] | None:
        """Return the width and height that it gives for a size parameter; ``None`` where it refuses that."""
        width, height = self.width, self.height
        if self.refuses in asked:
            return None
        if asked == "max" or (asked == "full" and self.version == 2):
            return width, height
        wide, _, high = asked.removeprefix("!").partition(",")
        if asked.startswith("!"):
            if self.level < 2:
                return None
            scale = min(int(wide) / width, int(high) / height)
            scale = min(scale, 1.0) if self.version == 3 else scale
            return round(width * scale), round(height * scale)
        if (int(wide or 0), int(high or 0)) in self.sizes:
            return int(wide), int(high)
        if self.level < 1 or high or int(wide) > width:
            return None
        return int(wide), round(height * int(wide) / width)


class ImageArchive(StandIn):
    """Serves documents by their path, and each picture by that of its service.

    Attributes:
        documents: what is answered, by path; a number is a status.
        pictures: by the path of their services, which has two parts.
        asked: the path of every request, in their order.
        sent: bytes of all answers.
        draw: makes a JPEG of a width and height.
    """

    def __init__(self, draw: Callable[[int, int], bytes] = gradient) -> None:
        super().__init__(_Asked)
        self.documents: dict[str, Any] = {}
        self.pictures: dict[str, Served] = {}
        self.asked: list[str] = []
        self.sent = 0
        self.draw = draw


class _Asked(Handler):
    server: ImageArchive

    def do_GET(self) -> None:
        archive = self.server
        archive.asked.append(self.path)
        status, kind, body = self._found(archive)
        archive.sent += len(body)
        headers = {"Location": f"{archive.base}{self.path}/info.json"} if status == 303 else {}
        self.answer(status, body, kind, headers)

    def _found(self, archive: ImageArchive) -> tuple[int, str, bytes]:
        if self.path in archive.documents:
            known = archive.documents[self.path]
            if isinstance(known, int):
                return known, "text/plain", b""
            return 200, "application/ld+json", known if isinstance(known, bytes) else json.dumps(known).encode()
        _, site, name, rest = [*self.path.split("/", 3), "", "", ""][:4]
        served = archive.pictures.get(f"/{site}/{name}")
        if served is None:
            return 404, "text/plain", b"no such picture"
        if rest in ("", "info.json"):
            info = json.dumps(served.info(f"{archive.base}/{site}/{name}")).encode()
            return (200, "application/ld+json", info) if rest else (303, "text/plain", b"")
        match = _PICTURE.fullmatch(rest)
        size = served.size_of(match["size"]) if match else None
        if size is None:
            return 400, "text/plain", b"not this size"
        return 200, "image/jpeg", archive.draw(*size)
