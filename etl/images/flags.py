"""Image flags: what is suspicious about a decoded picture.  Pure; a flag never changes or discards a picture."""

from PIL import Image

from etl.domain.statuses import ImageFlag

TINY_PIXELS = 32 * 32
"""Pixels below which a picture shows next to nothing: icons, spacers, counters.  A line of text has more."""

BLOCK = 8
"""Pixels a side averaged, at most, before contrast is looked for: grain and dust go, a line of text stays."""

BLOCKS = 32
"""Blocks across the shorter side, at least, as far as there are pixels: small pictures would be averaged away."""

BLANK_RANGE = 8
"""Levels of 255 between the darkest and the brightest block, up to which there is nothing on a picture."""


def image_flags(image: Image.Image, width: int, height: int) -> frozenset[ImageFlag]:
    """Return the flags of an upright RGB picture whose original has these sides, in pixels."""
    found = {ImageFlag.TINY: width * height < TINY_PIXELS, ImageFlag.BLANK: _is_blank(image)}
    return frozenset(flag for flag, present in found.items() if present)


def _is_blank(image: Image.Image) -> bool:
    """Return whether no block of pixels differs from another in any colour."""
    block = min(BLOCK, min(image.size) // BLOCKS)
    bands = (image.reduce(block) if block > 1 else image).getextrema()
    return all(isinstance(band, tuple) and band[1] - band[0] <= BLANK_RANGE for band in bands)
