"""Which frame of an animation is its picture: the first that shows something."""

from PIL import Image

from etl.images import colour

CONTRAST = 32
"""Levels between the darkest and the lightest from which a frame shows something."""

MOST_FRAMES = 50
MOST_PIXELS = 200_000_000
"""Of all frames that are looked at: a second's work."""


def something_shown(image: Image.Image) -> Image.Image:
    """Return the first frame, which may be empty, or the first one that shows something, where there is one."""
    # To have looked whether there are more frames unloads a GIF.
    image.load()
    # Of the frames that follow Pillow loses the palette of a PNG.
    if _has_contrast(image) or (image.format == "PNG" and image.mode == "P"):
        return image
    # Not by going back, after which formats give other sizes and palettes.
    first = image.copy()
    try:
        for number in range(1, min(MOST_FRAMES, MOST_PIXELS // (image.width * image.height))):
            image.seek(number)
            image.load()
            if image.size != first.size:
                break
            if _has_contrast(image):
                return image
    # A later frame that is broken, or not there, does not cost the first.
    except (EOFError, OSError, SyntaxError, ValueError):
        pass
    return first


def _has_contrast(image: Image.Image) -> bool:
    bands = colour.opaque(colour.reducible(image)).getextrema()
    ranges = bands if isinstance(bands[0], tuple) else (bands,)
    return any(high - low >= CONTRAST for low, high in ranges)
