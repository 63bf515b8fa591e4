"""Files that end too early: which of their pixels are there.

A file is decoded twice, with something else each time in the place of what is missing; where the two pictures are the
same, the file itself has said it.
"""

import contextlib
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageChops, ImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile

Opener = Callable[[Path | IO[bytes]], ImageFile.ImageFile]
"""Opens a file, ready to be loaded."""

_END, _SCAN = b"\xff\xd9", b"\xff\xda"
_SEGMENTS = (0xC4, 0xDA, 0xDB, 0xDD, 0xFE)
"""Markers, other than those of headers, of segments that tell their length."""

_OTHER = random.Random(0).randbytes(64 * 1024).replace(b"\xff", b"\x55")
"""What could be more of a JPEG's data: no marker is in it."""

_BLOCK = 256
"""Bytes of the longest block of a GIF, which Pillow takes whole or not at all."""

_FILLS = (128, 0)


def is_cut_short(error: OSError) -> bool:
    """Return whether Pillow says that the file's end is missing."""
    return "truncated" in str(error)


def load(path: Path, opener: Opener) -> tuple[ImageFile.ImageFile, float]:
    """Return the picture, loaded, gray where the file has no pixels, and the part of its pixels that the file has.

    Raises whatever Pillow raises where even so there is no picture.
    """
    with _end_forgiven():
        with opener(path) as image:
            kind = type(image)
        if issubclass(kind, JpegImageFile):
            # Half a marker would make one of what follows.
            data = _whole_segments(path.read_bytes().rstrip(b"\xff"))
            picture, difference = _load_twice(opener, *(io.BytesIO(data + more) for more in (_END, _OTHER + _END)))
            # From the first row that differs on nothing is sure, although by chance some pixels may be the same.
            box = difference.getbbox()
            rows = 1.0 if box is None else box[1] / picture.height
            return picture, min(rows, _part_of_scans(data, len(picture.getbands())))
        if issubclass(kind, GifImageFile):
            data = path.read_bytes()
            picture, difference = _load_twice(opener, *(io.BytesIO(data + more * _BLOCK) for more in (b"\0", b"\x55")))
        else:
            picture, difference = _load_twice(opener, path, path)
        return picture, difference.histogram()[0] / (difference.width * difference.height)


def _load_twice(
    opener: Opener, file: Path | IO[bytes], other: Path | IO[bytes]
) -> tuple[ImageFile.ImageFile, Image.Image]:
    """Return the first of two pictures, both loaded, and where the bytes of their rows differ."""
    with opener(file) as picture, opener(other) as judge:
        for image, fill in zip((picture, judge), _FILLS, strict=True):
            _load_over(image, fill)
        rows = (len(picture.tobytes()) // picture.height, picture.height)
        first, second = (Image.frombytes("L", rows, image.tobytes()) for image in (picture, judge))
        return picture, ImageChops.difference(first, second)


def _whole_segments(data: bytes) -> bytes:
    """Return a JPEG's data without a segment at their end that is not all there."""
    at = max(data.rfind(bytes((0xFF, marker))) for marker in _SEGMENTS)
    is_cut = at >= 0 and at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big")) > len(data)
    return data[:at] if is_cut else data


def _part_of_scans(data: bytes, components: int) -> float:
    """Return the part of all coefficients whose last bits are in a scan that has begun (ITU-T T.81, B.2.3)."""
    done: set[tuple[int, int]] = set()
    # What is before the first scan may hold a small picture with scans of its own.
    at = 2
    while 2 <= at < len(data) and not data.startswith(_SCAN, at):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    while 0 <= at < len(data):
        header = data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
        first, last, bits = header[-3:]
        if not bits & 0xF:
            done.update((component, number) for component in header[1:-3:2] for number in range(first, last + 1))
        at = data.find(_SCAN, at + 2)
    return min(1.0, len(done) / (64 * components))


def _load_over(image: ImageFile.ImageFile, fill: int) -> None:
    """Load a picture; where the file has no pixels, it keeps this colour."""
    prepare = image.load_prepare

    def prepare_and_fill() -> None:
        prepare()
        colour: Any = fill if image.im.bands == 1 else (fill,) * image.im.bands
        image.im.paste(colour, (0, 0, *image.im.size))

    image.__dict__["load_prepare"] = prepare_and_fill
    image.load()


@contextlib.contextmanager
def _end_forgiven() -> Iterator[None]:
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
