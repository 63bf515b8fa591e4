"""Small pictures for the page, made of the working copies."""

import base64
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from etl.images.cache import read_working

QUALITY = 55
"""Of WebP: small and good enough to recognise a picture by."""


def thumbnail(path: Path, edge: int) -> str | None:
    """Return a working copy as a WebP file of at most ``edge`` pixels, base64; ``None`` where it cannot be read."""
    try:
        # Working copies are JPEGs of our own; nothing else is opened here.
        with Image.open(io.BytesIO(read_working(path)), formats=["JPEG"]) as image:
            image.draft("RGB", (2 * edge, 2 * edge))
            image.thumbnail((edge, edge), Image.Resampling.BILINEAR)
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=2)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def thumbnails(paths: Iterable[Path], edge: int) -> Iterator[str | None]:
    """Yield the thumbnails of so many working copies, made side by side; Pillow lets go of the interpreter's lock."""
    with ThreadPoolExecutor(4) as pool:
        yield from pool.map(lambda path: thumbnail(path, edge), paths)
