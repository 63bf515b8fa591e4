"""JPEG XL, for which pillow-jxl-plugin must be installed."""

import struct

from PIL import Image
from pillow_jxl import JpegXLImagePlugin
from pillow_jxl.JpegXLImagePlugin import JXLImageFile

from etl.confinement import room
from etl.errors import ImageTooLargeError

# Pictures are decoded side by side by processes, whose threads would be in each other's way.
JpegXLImagePlugin.DECODE_THREADS = 0

_PIXEL_BYTES = 10
"""That libjxl and the plugin take at least for a pixel."""

_PANIC = "PanicException"

_BARE = b"\xff\x0a"
_RATIOS = (None, (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_SIZE_BITS = (9, 13, 18, 30)


class BoundedJXLImageFile(JXLImageFile):  # type: ignore[misc]
    """A JPEG XL whose size is looked at first: the plugin decodes it all when it is opened."""

    def _open(self) -> None:
        assert self.fp is not None
        width, height = _size(_codestream(self.fp.read()))
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and width * height > limit:
            raise ImageTooLargeError(f"more than {limit:,} pixels: {width} x {height}")
        # The plugin does not say what was missing.
        if width * height * _PIXEL_BYTES > room():
            raise MemoryError
        self.fp.seek(0)
        try:
            super()._open()
        except BaseException as error:
            # What ends the decoder of the plugin, memory first of all, is no Exception.
            if type(error).__name__ != _PANIC:
                raise
            raise MemoryError from error
        if not self.jpeg:
            # libjxl has turned it already; what Exif says of that is not to count (ISO/IEC 18181-2).
            self.info.pop("exif", None)


def _codestream(data: bytes) -> bytes:
    """Return the first bytes of the pixels' stream, whether it is bare or in boxes."""
    at = 0
    while not data.startswith(_BARE, at) and at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        header = 8
        if size == 1:
            size, header = struct.unpack_from(">Q", data, at + 8)[0], 16
        if kind in (b"jxlc", b"jxlp"):
            return data[at + header + (4 if kind == b"jxlp" else 0) :][:32]
        at += max(size or len(data), header)
    return data[at : at + 32]


def _size(stream: bytes) -> tuple[int, int]:
    """Return width and height as the header of a stream says them (ISO/IEC 18181-1, SizeHeader)."""
    if not stream.startswith(_BARE):
        raise SyntaxError("no JPEG XL")
    bits, at = int.from_bytes(stream[2:], "little"), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return bits >> (at - count) & (1 << count) - 1

    is_small = take(1)

    def side() -> int:
        return (take(5) + 1) * 8 if is_small else take(_SIZE_BITS[take(2)]) + 1

    height = side()
    ratio = _RATIOS[take(3)]
    return (height * ratio[0] // ratio[1] if ratio else side()), height
