"""Which frame of an animation is its picture: the first that shows something."""

from PIL import Image

from etl.images import colour

CONTRAST = 32
"""Levels between the darkest and the lightest from which a frame shows something."""

MOST_FRAMES = 50
MOST_PIXELS = 200_000_000
"""Of all frames that are looked at: a second's work."""


def show_something(image: Image.Image) -> None:
    """Go on from the loaded first frame, which may be empty, to one that shows something; stay where there is none."""
    if _has_contrast(image):
        return
    try:
        for number in range(1, min(MOST_FRAMES, MOST_PIXELS // (image.width * image.height))):
            image.seek(number)
            image.load()
            if _has_contrast(image):
                return
    # A later frame that is broken, or not there, does not cost the first.
    except (EOFError, OSError, SyntaxError, ValueError):
        pass
    image.seek(0)
    image.load()


def _has_contrast(image: Image.Image) -> bool:
    bands = colour.opaque(colour.reducible(image)).getextrema()
    ranges = bands if isinstance(bands[0], tuple) else (bands,)
    return any(high - low >= CONTRAST for low, high in ranges)
