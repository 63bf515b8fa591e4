"""Files that end too early, or are damaged from some point on: which of their pixels are there.

A file is decoded twice, with something else each time in the place of what is missing; where the two pictures are the
same, the file itself has said it.
"""

import contextlib
import io
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from PIL import Image, ImageChops, ImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from etl.images.leniency import LOSSLESS, MANY_SCANS

Opener = Callable[[Path | IO[bytes]], ImageFile.ImageFile]
"""Opens a file, ready to be loaded."""

_END, _END_MARKER, _SCAN_MARKER = b"\xff\xd9", 0xD9, 0xDA
_SEGMENTS = (0xC4, 0xDA, 0xDB, 0xDD, 0xFE)
"""Markers, other than those of headers, of segments that tell their length."""

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""Of a segment: not a zero that was put behind a byte of data, nor a restart."""

_NOISE = random.Random(0).randbytes(16 * 1024).replace(b"\xff", b"\x55")
_OTHER = _NOISE + b"".join(bytes((0xFF, 0xD0 + number % 8)) + _NOISE for number in range(16))
"""What could be more of a JPEG's data, also behind any restart: no other marker is in it."""

CUT_SHORT, DAMAGED, UNFINISHED = "cut short", "damaged", "closed before its end"
_LIBTIFFS = "decoder error"
_BROKEN = {
    "truncated": CUT_SHORT,
    "broken data stream": DAMAGED,
    "unrecognized data stream": DAMAGED,
    _LIBTIFFS: DAMAGED,
}

_LAST, _GRAY = 8, (127, 128)
"""Pixels to look at, and their colour: of coefficients that are zero, which CMYK inverts."""

_BLOCK = 256
"""Bytes of the longest block of a GIF, which Pillow takes whole or not at all."""

_FILLS = (128, 0)


def how_broken(error: OSError) -> str:
    """Return what Pillow says of the file's pixels: that they are ``cut short``, ``damaged``, or nothing."""
    return next((meaning for words, meaning in _BROKEN.items() if words in str(error).lower()), "")


def looks_unfinished(image: ImageFile.ImageFile, path: Path) -> bool:
    """Return whether a loaded JPEG that has its end lacks scans, or ends in the gray of what its data do not say."""
    if image.format not in ("JPEG", "MPO") or LOSSLESS in image.info:
        return False
    if MANY_SCANS in image.info and _part_of_scans(path.read_bytes(), image) < 1:
        return True
    last = image.crop((max(0, image.width - _LAST), image.height - 1, *image.size)).getextrema()
    bands = last if isinstance(last[0], tuple) else (last,)
    return all(_GRAY[0] <= low and high <= _GRAY[1] for low, high in cast("tuple[tuple[int, int], ...]", bands))


def load(path: Path, opener: Opener, how: str) -> tuple[ImageFile.ImageFile, float]:
    """Return the picture, loaded, gray where the file has no pixels, and the part of its pixels that the file has.

    ``how`` it is broken `how_broken` says.  Raises whatever Pillow raises where even so there is no picture.
    """
    with _end_forgiven():
        with opener(path) as image:
            kind = type(image)
        if issubclass(kind, JpegImageFile):
            if kind.format not in ("JPEG", "MPO"):
                # Of a camera's raw data, where the end of the file is not that of the JPEG within.
                raise OSError("image file is truncated")
            # Half a marker would make one of what follows.
            data = path.read_bytes()
            if how == DAMAGED or (how == UNFINISHED and len([*_scans(data)]) == 1):
                data = _until_marker(data)
            data = _whole_segments(data.rstrip(b"\xff"))
            picture, difference = load_twice(opener, *(io.BytesIO(data + more) for more in (_END, _OTHER + _END)))
            # From the first row that differs on nothing is sure, although by chance some pixels may be the same.
            box = difference.getbbox()
            rows = 1.0 if box is None else box[1] / picture.height
            return picture, min(rows, _part_of_scans(data, picture))
        if issubclass(kind, GifImageFile):
            data = path.read_bytes()
            picture, difference = load_twice(opener, *(io.BytesIO(data + more * _BLOCK) for more in (b"\0", b"\x55")))
        else:
            picture, difference = load_twice(opener, path, path)
        part = part_alike(difference)
        if part == 0 and issubclass(kind, TiffImageFile):
            # Rather of a kind that libtiff does not know.
            raise OSError(_LIBTIFFS)
        return picture, part


def load_twice(
    opener: Callable[[Any], ImageFile.ImageFile], file: Path | IO[bytes], other: Path | IO[bytes]
) -> tuple[ImageFile.ImageFile, Image.Image]:
    """Return the first of two pictures, both loaded as far as they go, and where the bytes of their rows differ."""
    with _end_forgiven(), opener(file) as picture, opener(other) as judge:
        for image, fill in zip((picture, judge), _FILLS, strict=True):
            _load_over(image, fill)
        rows = (len(picture.tobytes()) // picture.height, picture.height)
        first, second = (Image.frombytes("L", rows, image.tobytes()) for image in (picture, judge))
        return picture, ImageChops.difference(first, second)


def part_alike(difference: Image.Image) -> float:
    """Return the part of the bytes that do not differ."""
    return difference.histogram()[0] / (difference.width * difference.height)


def _whole_segments(data: bytes) -> bytes:
    """Return a JPEG's data without a segment at their end that is not all there."""
    at = max(data.rfind(bytes((0xFF, marker))) for marker in _SEGMENTS)
    is_cut = at >= 0 and at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big")) > len(data)
    return data[:at] if is_cut else data


def _until_marker(data: bytes) -> bytes:
    """Return a JPEG's data up to the end of its first scan: a marker there ends what the decoder takes."""
    marker = _MARKER.search(data, next(_scans(data), len(data)) + 2)
    return data[: marker.start()] if marker else data


def _scans(data: bytes) -> Iterator[int]:
    """Yield where each scan of a JPEG begins.

    What is before the first may hold a small picture with scans of its own, what is behind the end another picture.
    """
    at = 2
    while (marker := _MARKER.search(data, at)) and data[marker.start() + 1] != _END_MARKER:
        at = marker.start()
        if data[at + 1] == _SCAN_MARKER:
            yield at
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))


def _part_of_scans(data: bytes, image: Image.Image) -> float:
    """Return the part of all coefficients whose last bits are in a scan that has begun (ITU-T T.81, B.2.3)."""
    done: set[tuple[int, int]] = set()
    for at in _scans(data):
        header = data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
        # What the last three bytes say is of no meaning where there is one kind of scans (ibid., B.2.4).
        first, last, bits = header[-3:] if "progressive" in image.info else (0, 63, 0)
        if not bits & 0xF:
            done.update((component, number) for component in header[1:-3:2] for number in range(first, last + 1))
    return min(1.0, len(done) / (64 * len(image.getbands())))


def _load_over(image: ImageFile.ImageFile, fill: int) -> None:
    """Load a picture; where the file has no pixels, it keeps this colour."""
    prepare = image.load_prepare

    def prepare_and_fill() -> None:
        prepare()
        colour: Any = fill if image.im.bands == 1 else (fill,) * image.im.bands
        image.im.paste(colour, (0, 0, *image.im.size))

    image.__dict__["load_prepare"] = prepare_and_fill
    try:
        image.load()
    except OSError as error:
        # After the first strip that libtiff cannot read the picture is as loaded as it will be.
        if _LIBTIFFS not in str(error) or image.tile:
            raise


@contextlib.contextmanager
def _end_forgiven() -> Iterator[None]:
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
