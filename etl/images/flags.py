"""Image flags: what is suspicious about a decoded picture.  Pure; a flag never changes or discards a picture."""

from PIL import Image

from etl.domain.statuses import ImageFlag

TINY_EDGE = 32
"""Pixels of the shorter side below which a picture shows next to nothing: icons, spacers, counters."""

BLOCK = 8
"""Pixels a side of what is averaged before contrast is looked for: noise and dust go, a line of text stays."""

BLANK_RANGE = 8
"""Levels of 255 between the darkest and the brightest block, up to which there is nothing on a picture."""


def image_flags(image: Image.Image, width: int, height: int) -> frozenset[ImageFlag]:
    """Return the flags of an upright RGB picture whose original has these sides, in pixels."""
    found = {ImageFlag.TINY: min(width, height) < TINY_EDGE, ImageFlag.BLANK: _is_blank(image)}
    return frozenset(flag for flag, present in found.items() if present)


def _is_blank(image: Image.Image) -> bool:
    """Return whether no block of pixels differs from another in any colour."""
    bands = image.reduce(BLOCK).getextrema()
    return all(isinstance(band, tuple) and band[1] - band[0] <= BLANK_RANGE for band in bands)
