"""JPEG 2000 with more than 8 bits: without it, Pillow would turn the brightest pixels black.

Of several components Pillow rounds each sample to 8 bits, and what it rounds up to 256 becomes 0.  Where a codestream
says that a component has one bit more than it has, its samples come to lie in the middle half of what Pillow thinks is
their range, and none is rounded up so far.
"""

import io
import struct
from typing import IO

from PIL import Image

from etl.errors import CorruptImageError
from etl.images.jpeg2000_boxes import Codestream

_SIZ, _QCD, _QCC, _SOT, _SOD = 0xFF51, 0xFF5C, 0xFF5D, 0xFF90, 0xFF93
_NO_QUANTIZATION = 0


def is_needed(stream: Codestream) -> bool:
    """Return whether Pillow would round."""
    return len(stream.depths) > 1 and max(stream.depths) > 8


def deeper(file: IO[bytes], start: int, end: int, stream: Codestream) -> IO[bytes]:
    """Return the codestream with one bit more for each component that has more than 8.

    Raises `CorruptImageError` where it says in a way of its own how its samples are stored.
    """
    file.seek(start)
    data = bytearray(file.read(end - start))
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == _SOT:
            break
        if marker == _SIZ:
            for component, depth in enumerate(stream.depths):
                data[at + 40 + 3 * component] += depth > 8
        elif marker in (_QCD, _QCC):
            first = at + (4 if marker == _QCD else 5 + (len(stream.depths) > 256))
            if marker == _QCC and len(set(depth > 8 for depth in stream.depths)) > 1:
                raise CorruptImageError("the JPEG 2000 has components of a kind that is not supported")
            _requantize(data, first, at + 2 + length)
        at += 2 + length
    while at + 12 <= len(data) and struct.unpack_from(">H", data, at)[0] == _SOT:
        inner, size = at + 12, struct.unpack_from(">L", data, at + 6)[0]
        while inner + 4 <= len(data) and (marker := struct.unpack_from(">H", data, inner)[0]) != _SOD:
            if marker in (_QCD, _QCC):
                raise CorruptImageError("the JPEG 2000 has tiles of a kind that is not supported")
            inner += 2 + struct.unpack_from(">H", data, inner + 2)[0]
        at += size or len(data)
    return io.BytesIO(data)


def narrowed(bands: list[Image.Image], stream: Codestream) -> list[Image.Image]:
    """Return the samples of such a codestream over their whole range."""
    return [
        band.point([2 * (value - 64) for value in range(256)]) if depth > 8 else band
        for band, depth in zip(bands, stream.depths, strict=True)
    ]


def _requantize(data: bytearray, at: int, end: int) -> None:
    """Keep the size of steps, which follows from the depth, and the number of bits that are stored (annex E.1)."""
    style = data[at] & 31
    if style == _NO_QUANTIZATION:
        return
    if data[at] < 32 or max(data[at + 1 : end : 2], default=0) >> 3 == 31:
        raise CorruptImageError("the JPEG 2000 has a quantization that is not supported")
    data[at] -= 32
    for step in range(at + 1, end, 2):
        data[step] += 8
