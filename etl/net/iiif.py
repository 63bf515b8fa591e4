"""Image services of the IIIF Image API, 1 to 3: what they say of themselves, and how a picture is asked of them.

Knows no HTTP library.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isqrt, sqrt
from typing import Any, TypeGuard

_REQUEST = re.compile(
    r"(?P<base>https?://[^?#\s]+)/(?P<region>full|square|pct:[\d.,]+|\d+,\d+,\d+,\d+)"
    r"/(?P<size>\^?(?:full|max|pct:[\d.]+|!?\d*,\d*))/(?P<rest>!?[\d.]+/(?:default|native|color|gr[ae]y|bitonal)\.\w+)"
)
_VERSION = re.compile(r"image(?:-api)?/(\d)|ImageService(\d)")
_LEVEL = re.compile(r"level(\d)")

WHOLE = ("full", "max", "^max")
"""Sizes that mean all there is."""


@dataclass(frozen=True, slots=True)
class Request:
    """A URL that asks an image service for a picture.

    Attributes:
        base: URI of the picture's service.
        region, size: as they stand in the URL.
        rest: rotation, quality and format.
    """

    base: str
    region: str
    size: str
    rest: str

    @classmethod
    def of(cls, url: str) -> "Request | None":
        """Return what a URL asks for; ``None`` for one that is of no image service."""
        found = _REQUEST.fullmatch(url.strip())
        return cls(**found.groupdict()) if found else None

    def url(self, size: str) -> str:
        """Return the URL that asks for the same in another size."""
        return f"{self.base}/{self.region}/{size}/{self.rest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What is known of the image service of one picture; 0 and empty stand for what is not.

    Attributes:
        base: its URI.
        version: of the Image API.
        level: of compliance; -1 where none is told.
        features: it has beyond that.
        width, height: of the whole picture, in pixels.
        sizes: widths and heights that are there, in pixels.
        max_width, max_height, max_area: the most that it gives, in pixels.
    """

    base: str
    version: int
    level: int
    features: frozenset[str] = frozenset()
    width: int = 0
    height: int = 0
    sizes: tuple[tuple[int, int], ...] = ()
    max_width: int = 0
    max_height: int = 0
    max_area: int = 0

    @classmethod
    def of(cls, value: Any) -> "Service | None":
        """Return the service of an info.json, or of a block in a manifest; ``None`` where it is none of images."""
        if not isinstance(value, Mapping):
            return None
        base = value.get("id") or value.get("@id")
        told = list(_listed(value.get("profile")))
        words = " ".join(str(one) for one in (value.get("type"), value.get("@type"), value.get("@context"), *told))
        version = _VERSION.search(words)
        is_info = value.get("protocol") == "http://iiif.io/api/image"
        if not isinstance(base, str) or not base.startswith(("http://", "https://")) or not (version or is_info):
            return None
        level = _LEVEL.search(" ".join(filter(_is_text, [*told, value.get("type")])))
        says = {name: inner for one in (*told, value) if isinstance(one, Mapping) for name, inner in one.items()}
        features = (*_listed(says.get("supports")), *_listed(says.get("extraFeatures")))
        return cls(
            base=base.strip().removesuffix("/info.json").rstrip("/"),
            version=int(version[1] or version[2]) if version else 2,
            level=int(level[1]) if level else -1,
            features=frozenset(filter(_is_text, features)),
            width=_pixels(says.get("width")),
            height=_pixels(says.get("height")),
            sizes=tuple(
                (_pixels(size.get("width")), _pixels(size.get("height")))
                for size in _listed(says.get("sizes"))
                if isinstance(size, Mapping) and _pixels(size.get("width")) and _pixels(size.get("height"))
            ),
            max_width=_pixels(says.get("maxWidth")),
            max_height=_pixels(says.get("maxHeight")),
            max_area=_pixels(says.get("maxArea")),
        )

    def whole(self) -> Request:
        """Return what asks for the whole picture, as large as it is given."""
        limited = self.max_width or self.max_height or self.max_area
        size = "max" if self.version >= 3 or limited else "full"
        return Request(self.base, "full", size, "0/native.jpg" if self.version == 1 else "0/default.jpg")

    def sizes_for(self, edge: int, *, asked: bool = True) -> list[str] | None:
        """Return the sizes to ask for, best first, with the longest edge of ``edge`` pixels or somewhat more.

        Empty where only the whole picture will do.  ``None`` where the service has to be ``asked`` first, as its
        version, its level or the picture's shape decides, and is not known.
        """
        known = bool(self.width and self.height)
        if known and max(self.width, self.height) <= edge:
            return []
        if not asked and self.level < 0:
            return None
        found, (wide, high) = [], self._box(edge)
        # Before version 3 a small picture may come enlarged.
        if (self.level >= 2 or "sizeByConfinedWh" in self.features) and (known or asked or self.version >= 3):
            found.append(f"!{wide},{high}")
        elif known and (self.level >= 1 or "sizeByW" in self.features):
            scale = min(wide / self.width, high / self.height)
            found.append(f"{max(1, round(self.width * scale))},")
        elif not asked and not (known and self.sizes):
            return None
        if large := [size for size in self.sizes if max(size) >= edge and size != (self.width, self.height)]:
            best = min(large, key=max)
            # Static sites of version 2 have the canonical form alone.
            found += [f"{best[0]},{best[1]}", f"{best[0]},"]
        return found

    def _box(self, edge: int) -> tuple[int, int]:
        """Return the width and height within which a picture is to be given."""
        wide = min(edge, self.max_width or edge)
        high = min(edge, self.max_height or self.max_width or edge)
        if self.max_area and self.width and self.height:
            scale = sqrt(self.max_area / (self.width * self.height))
            wide, high = min(wide, int(self.width * scale)), min(high, int(self.height * scale))
        elif self.max_area:
            wide, high = min(wide, isqrt(self.max_area)), min(high, isqrt(self.max_area))
        return max(1, wide), max(1, high)


def _listed(value: Any) -> Iterator[Any]:
    if value is not None:
        yield from value if isinstance(value, list) else (value,)


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)


def _pixels(value: Any) -> int:
    """Return a number of pixels as manifests have them, also in quotes; 0 for what is none."""
    try:
        number = int(float(value)) if isinstance(value, int | float | str) else 0
    except (ValueError, OverflowError):
        return 0
    return number if 0 < number < 1 << 40 else 0
