"""A look at working copies: whether each is the picture that the database describes."""

from pathlib import Path

from PIL import Image

from etl import files


def fault_of(path: Path, width: int, height: int) -> str | None:
    """Return what is wrong with a working copy that should have this size in pixels; ``None`` for a good one.

    Its whole content is decoded, but only where its header says the right size.
    """
    try:
        with files.reading(path) as file, Image.open(file, formats=["JPEG"]) as picture:
            if picture.size != (width, height):
                return f"it has {picture.width} x {picture.height} pixels, not {width} x {height}"
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"it cannot be decoded ({error})"
    return None
