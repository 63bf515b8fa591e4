"""Bitmaps whose colours lie in bits of their own choice (BI_BITFIELDS): 4-4-4, 10-10-10 and the like.

Pillow knows the masks of 5-5-5, 5-6-5 and 8-8-8 alone.
"""

import re
from typing import Any

from PIL import Image, ImageFile, ImageMath
from PIL.BmpImagePlugin import BmpImageFile

_MASKS = 54
"""Where the three masks begin, whether in the header or behind it."""

_OTHER_MASKS = re.compile(r"bitfields layout|compression \(6\)")
"""What Pillow says of them; the compression is that of Windows CE, which has masks with one more for alpha."""

_BITS = {16: "I;16", 32: "I;32"}


class MaskedBmpImageFile(BmpImageFile):
    """A BMP with any masks."""

    format = "BMP"
    _masks: tuple[int, ...] = ()

    def _bitmap(self, header: int = 0, offset: int = 0) -> None:
        try:
            super()._bitmap(header, offset)
        except OSError as error:
            if not _OTHER_MASKS.search(str(error)):
                raise
            self._take_masks(offset, error)

    def _take_masks(self, offset: int, error: OSError) -> None:
        assert self.fp is not None
        self.fp.seek(14)
        header = self.fp.read(4 + 48)
        size, bits, height = header[0], int.from_bytes(header[14:16], "little"), _signed(header[8:12])
        self._masks = tuple(int.from_bytes(header[40 + at : 44 + at], "little") for at in (0, 4, 8))
        if bits not in _BITS or not (any(self._masks) and all(map(_is_run, self._masks))):
            raise error
        self._size, self._mode = (self.size[0], abs(height)), "I"
        stride = (self.size[0] * bits + 31) // 32 * 4
        pixels = offset or max(14 + size, _MASKS + 12)
        args = (_BITS[bits], stride, 1 if height < 0 else -1)
        self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), pixels, args)]

    def load_end(self) -> None:
        """Take the colours out of the numbers that were loaded; opacity that is nowhere is none."""
        if self._masks:
            numbers = self.copy()
            picture = Image.merge("RGB", [_band(numbers, mask) for mask in self._masks])
            self._masks, self._mode, self.im = (), "RGB", picture.im
        elif self.mode == "RGBA" and self.getchannel("A").getextrema() == (0, 0):
            # As programs write it that know none.
            self._mode, self.im = "RGB", self.convert("RGB").im


def _band(numbers: Image.Image, mask: int) -> Image.Image:
    if not mask:
        return Image.new("L", numbers.size)
    shift = (mask & -mask).bit_length() - 1
    top = mask >> shift

    def level(args: dict[str, Any]) -> Any:
        value = args["numbers"] >> shift & top
        # Of a wide band the upper eight bits, or else the product below would not fit.
        if (more := top.bit_length() - 8) > 0:
            return value >> more
        return (value * 255 + top // 2) / top

    band: Image.Image = ImageMath.lambda_eval(level, numbers=numbers)
    return band.convert("L")


def _is_run(mask: int) -> bool:
    """Return whether the bits of a mask stand side by side, if there are any."""
    return mask == 0 or (mask // (mask & -mask) + 1).bit_count() == 1


def _signed(field: bytes) -> int:
    return int.from_bytes(field, "little", signed=True)
