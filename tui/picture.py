"""A picture as terminal cells: two pixels in each, or one character of the right darkness.  Pure but for the file."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from etl import files
from etl.errors import NotPlainError

if TYPE_CHECKING:
    from PIL import Image

HALF = "▀"
"""Its upper half has the foreground's colour, its lower half the background's."""

RAMP = " .:-=+*#%@"
"""Characters from dark to light."""

MOST_PIXELS = 64_000_000
"""A working copy is far smaller; a file that claims more is not opened."""

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Cells:
    """A picture of ``height`` lines of ``width`` cells; each cell its upper and its lower pixel."""

    width: int
    height: int
    lines: tuple[tuple[tuple[Colour, Colour], ...], ...]


def read(path: Path, width: int, height: int) -> Cells | None:
    """Return a JPEG file as large as fits into ``width`` x ``height`` cells; ``None`` when it cannot be read.

    Called in a thread: a file of 12 megapixels takes 60 ms.
    """
    from PIL import Image

    if width < 1 or height < 1:
        return None
    try:
        with files.reading(path) as file, Image.open(file, formats=("JPEG",)) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            # The decoder itself can halve the size again and again, which is most of the time saved.
            image.draft("RGB", (2 * width, 4 * height))
            return _cells(image.convert("RGB"), width, height)
    except (NotPlainError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        # Damaged, truncated or gone: `etl verify` is the place to find out which.
        return None


def _cells(image: "Image.Image", width: int, height: int) -> Cells:
    # A cell is about twice as high as wide, so that its two pixels are square.
    scale = min(width / image.width, 2 * height / image.height)
    columns, rows = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    rows += rows % 2
    data = image.resize((columns, rows)).tobytes()
    pixels: list[Colour] = list(zip(data[0::3], data[1::3], data[2::3], strict=True))
    lines = tuple(
        tuple(zip(pixels[y * columns : (y + 1) * columns], pixels[(y + 1) * columns : (y + 2) * columns], strict=True))
        for y in range(0, rows, 2)
    )
    return Cells(columns, rows // 2, lines)


def shade(upper: Colour, lower: Colour) -> str:
    """Return the character that is as light as the two pixels together."""
    red, green, blue = (a + b for a, b in zip(upper, lower, strict=True))
    light = (299 * red + 587 * green + 114 * blue) / (2 * 255 * 1000)
    return RAMP[min(len(RAMP) - 1, int(light * len(RAMP)))]
