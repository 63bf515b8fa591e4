"""TIFFs whose samples Pillow has no mode for, taken apart: strips and tiles are decompressed to bytes, and these cut.

Integers of any depth, floating-point numbers of two to eight bytes, palettes of 16 bits, extra samples, inks with
opacity, CIELAB.
"""

import io
from array import array
from collections.abc import Iterator

from PIL import Image, ImageMath

from etl.errors import CorruptImageError
from etl.images import tiff
from etl.images import tiff_tags as tag
from etl.images.tiff_directory import Stored, Tags
from etl.images.tiff_numbers import CODES, numbers_of, real, sliced, summed, unpacked
from etl.images.tiff_writing import tiff_of

_INVERTED, _GRAY, _RGB, _PALETTE, _INKS, _LAB, _ICC_LAB = 0, 1, 2, 3, 5, 8, 9
_GRAYS = (_INVERTED, _GRAY)
_COLOURS = {_INVERTED: 1, _GRAY: 1, _RGB: 3, _PALETTE: 1, _INKS: 4, _LAB: 3, _ICC_LAB: 3}
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, (0, 4)
_PREMULTIPLIED, _OPACITY, _CORELS_OPACITY = 1, 2, 999
_BYTEWISE = (1, 5, 8, 32773, 32946, 34925, 50000)
"""Compressions of bytes, whatever these mean: none, LZW, Deflate, PackBits, LZMA, Zstandard."""

_SEPARATE = 2
_FLIPPED = bytes(byte ^ 128 for byte in range(256))
_MOST = 65536
"""Colours of a palette; of smaller ones Pillow knows."""

_WIDE_PALETTE = (_MOST, _MOST, _MOST, 16, _UNSIGNED)
"""Their number in red, green and blue, bits and format of what points at them."""


_WHITE, _BRIGHTEST = 1.01, 16.0
"""Of floating-point colours, where 1 is white; what is brighter than the second is on a scale that nobody tells."""


def is_needed(image: Stored) -> bool:
    """Return whether Pillow cannot open the picture's small TIFFs, or misreads them."""
    tags = image.tag_v2
    is_wide_gray = tags.get(tag.PHOTOMETRIC) in _GRAYS and image.bits == [32] and _format(tags) == _UNSIGNED
    if tags.get(tag.PLANAR) == _SEPARATE and (tags.get(tag.EXTRA_SAMPLES) or tags.get(tag.PHOTOMETRIC) == _LAB):
        return True
    is_readable = not is_wide_gray and not tiff.is_sparse(image) and tiff.is_known(image)
    return tags.get(tag.COMPRESSION, 1) in _BYTEWISE and not is_readable


def pictures(image: Stored, layout: tiff.Layout) -> Iterator[Image.Image]:
    """Yield the picture in pieces, as `etl.images.tiff.pictures` does; gray to be stretched as ``F``.

    Raises `CorruptImageError` for what is not supported.
    """
    samples = _Samples(image, layout)
    samples.find_brightest(tiff.pieces(image, layout))
    for piece in tiff.pieces(image, layout):
        yield samples.assembled(piece)


class _Samples:
    """How a pixel is stored, and how it becomes colours."""

    def __init__(self, image: Stored, layout: tiff.Layout) -> None:
        self._image, self._layout, self._tags = image, layout, image.tag_v2
        self._kind: int = self._tags.get(tag.PHOTOMETRIC, -1)
        self._bits, self._format = image.bits[0], _format(self._tags)
        self._count = len(image.bits) // layout.planes
        self._brightest = 0.0
        self._little = self._tags.prefix == b"II"
        # Where nothing is said of a fourth sample, viewers take it for opacity.
        is_four = (self._kind, len(image.bits)) == (_RGB, 4)
        self._extra: tuple[int, ...] = self._tags.get(tag.EXTRA_SAMPLES) or (_OPACITY if is_four else 0,)
        palette = self._tags.get(tag.COLOUR_MAP, ())
        self._palette = [[value >> 8 for value in palette[at : at + _MOST]] for at in range(0, len(palette), _MOST)]
        depths = (16, 32, 64) if self._format == _FLOAT else range(1, 65)
        if (
            self._kind not in _COLOURS
            or len(image.bits) < _COLOURS[self._kind]
            or len(set(image.bits)) > 1
            or not self._format
            or (self._format == _SIGNED and self._kind not in (*_GRAYS, _LAB))
            or self._bits not in depths
            or (self._bits % 8 and (self._tags.get(tag.PREDICTOR, 1) != 1 or self._format == _SIGNED))
            or (self._kind == _INKS and self._tags.get(tag.INK_SET, 1) != 1)
            or (self._kind == _PALETTE and (*map(len, self._palette), self._bits, self._format) != _WIDE_PALETTE)
        ):
            raise CorruptImageError("the TIFF stores its pixels in a way that is not supported")

    def find_brightest(self, pieces: Iterator[tiff.Piece]) -> None:
        """Look through floating-point colours for what is brighter than white.

        Raises `CorruptImageError` where they are on a scale that nobody tells.
        """
        if self._format != _FLOAT or self._kind != _RGB:
            return
        for piece in pieces:
            for plane in self._planes(piece)[:3]:
                high = plane.getextrema()[1]
                assert isinstance(high, float)
                if not high <= _BRIGHTEST:
                    raise CorruptImageError("the TIFF has floating-point colours on a scale that is not supported")
                self._brightest = max(self._brightest, high)

    def assembled(self, piece: tiff.Piece) -> Image.Image:
        """Return the piece as a picture."""
        return self._coloured(self._planes(piece))

    def _planes(self, piece: tiff.Piece) -> list[Image.Image]:
        width = self._tags.get(tag.TILE_WIDTH, self._layout.width)
        size = (self._layout.width, piece.height)
        planes = [Image.new("F" if self._is_real else "L", size) for _ in range(self._wanted)]
        if self._kind == _PALETTE:
            planes[0] = Image.new("I", size)
        per_plane = len(piece.strips) // self._layout.planes
        for number, strip in enumerate(piece.strips):
            plane, place = divmod(number, per_plane)
            down, across = divmod(place, self._layout.across)
            rows = piece.rows if tag.TILE_WIDTH in self._tags else min(piece.rows, piece.height - down * piece.rows)
            data = self._unpredicted(self._bytes(strip, width, rows), width)
            for sample in range(self._count):
                at = plane if self._layout.planes > 1 else sample
                if at < self._wanted:
                    planes[at].paste(self._plane(data, sample, (width, rows)), (across * width, down * piece.rows))
        return planes

    @property
    def _wanted(self) -> int:
        """Planes that are of use: the colours and the first extra sample if that is opacity."""
        return _COLOURS[self._kind] + (self._extra[0] in (_PREMULTIPLIED, _OPACITY, _CORELS_OPACITY))

    @property
    def _is_real(self) -> bool:
        """Whether planes are of real numbers."""
        return self._format == _FLOAT or self._image.mode == "F"

    @property
    def _is_offset(self) -> bool:
        """Whether the darkest is the lowest of negative numbers."""
        return self._format == _SIGNED and self._kind != _LAB

    # Bytes -------------------------------------------------------------------------------------------------------

    def _bytes(self, strip: bytes, width: int, rows: int) -> bytes:
        """Return a strip or tile without its compression."""
        row_bytes = (width * self._count * self._bits + 7) // 8
        if not strip:
            # Left out: nothing but zeros.
            return bytes(row_bytes * rows)
        if self._tags.get(tag.COMPRESSION, 1) != 1:
            tags = {tag.WIDTH: row_bytes, tag.HEIGHT: rows, tag.BITS: (8,), tag.PHOTOMETRIC: 1, tag.SAMPLES: 1}
            # Tables where planes are JPEGs, of one sample each.
            tags |= {one: self._tags[one] for one in (tag.COMPRESSION, tag.JPEG_TABLES) if one in self._tags}
            with Image.open(io.BytesIO(tiff_of(self._tags.prefix, tags, [strip], rows)), formats=["TIFF"]) as image:
                strip = image.tobytes()
        if len(strip) < row_bytes * rows:
            raise CorruptImageError("the TIFF is broken: a strip ends before its last row")
        return strip[: row_bytes * rows]

    def _unpredicted(self, data: bytes, width: int) -> bytes:
        """Undo the predictor: each sample is stored as its difference to that of the pixel before."""
        predictor = self._tags.get(tag.PREDICTOR, 1)
        if predictor == 1:
            return data
        size, count = self._bits // 8, self._count
        if predictor == 3:
            # Bytes of all samples of a row: first all highest ones, and so on.
            row = width * count * size
            whole = bytearray(len(data))
            for at in range(0, len(data), row):
                line = summed(array("B", data[at : at + row]), count)
                for byte in range(size):
                    place = size - 1 - byte if self._little else byte
                    whole[at + place : at + row : size] = line[byte * width * count : (byte + 1) * width * count]
            return bytes(whole)
        if predictor != 2 or size not in CODES:
            raise CorruptImageError("the TIFF stores its pixels in a way that is not supported")
        numbers = numbers_of(size, data, self._little)
        for at in range(0, len(numbers), width * count):
            numbers[at : at + width * count] = summed(numbers[at : at + width * count], count)
        return numbers_of(size, numbers.tobytes(), self._little).tobytes()

    def _plane(self, data: bytes, sample: int, size: tuple[int, int]) -> Image.Image:
        """Return one sample of each pixel, in 8 bits or as a real number."""
        if self._bits % 8:
            values = unpacked(data, self._bits, size[0] * self._count, size[1])
            return Image.frombytes("L", size, values[sample :: self._count])
        width = self._bits // 8
        if self._format == _FLOAT:
            return real(sliced(data, width, sample, self._count), width, self._little, size)
        if self._is_real:
            # The highest four bytes, and zeros where there are fewer.
            parts = [data[sample * width + at :: width * self._count] for at in range(width)]
            highest = (parts[::-1] if self._little else parts)[:4]
            if self._is_offset:
                highest[0] = highest[0].translate(_FLIPPED)
            whole = bytearray(4 * len(parts[0]))
            for at, part in enumerate(highest):
                whole[at::4] = part
            return Image.frombytes("F", size, bytes(whole), "raw", "F;32B")
        if self._kind == _PALETTE and sample == 0:
            raw = "I;16" if self._little else "I;16B"
            return Image.frombytes("I;16", size, sliced(data, width, sample, self._count), "raw", raw).convert("I")
        high = data[sample * width + (width - 1 if self._little else 0) :: width * self._count]
        return Image.frombytes("L", size, high.translate(_FLIPPED) if self._is_offset else high)

    # Colours -----------------------------------------------------------------------------------------------------

    def _coloured(self, planes: list[Image.Image]) -> Image.Image:
        colours = _COLOURS[self._kind]
        if self._kind in _GRAYS and self._is_real:
            if len(planes) > 1:
                raise CorruptImageError("the TIFF stores its pixels in a way that is not supported")
            return planes[0]
        if self._format == _FLOAT:
            if self._kind == _INKS:
                raise CorruptImageError("the TIFF stores its pixels in a way that is not supported")
            planes = [self._scaled(plane, number) for number, plane in enumerate(planes)]
        elif self._kind == _PALETTE:
            planes[:1] = [planes[0].point(table, "L") for table in self._palette]
            colours = 3
        elif self._kind == _LAB:
            planes[1:3] = [plane.point(lambda value: value ^ 128) for plane in planes[1:3]]
        if self._kind == _INVERTED:
            planes[0] = planes[0].point(lambda value: 255 - value)
        mode = {1: "L", 3: "LAB" if self._kind in (_LAB, _ICC_LAB) else "RGB", 4: "CMYK"}[colours]
        if len(planes) == colours:
            return Image.merge(mode, planes) if colours > 1 else planes[0]
        is_premultiplied = self._extra[0] == _PREMULTIPLIED
        if mode in ("L", "RGB"):
            return Image.merge(mode + ("a" if is_premultiplied else "A"), planes)
        picture = Image.merge(mode, planes[:-1])
        if is_premultiplied and mode == "CMYK":
            return picture
        # On white paper.
        page = Image.new(mode, picture.size, (255, 128, 128) if mode == "LAB" else (0, 0, 0, 0))
        page.paste(picture, mask=planes[-1])
        return page

    def _scaled(self, plane: Image.Image, number: int) -> Image.Image:
        """Return a plane of real numbers in 8 bits: 0 to 1, or what CIELAB has."""
        scale, zero = 255.0, 0.0
        if self._kind in (_LAB, _ICC_LAB) and number < 3:
            scale, zero = (2.55, 0.0) if number == 0 else (1.0, 128.0)
        elif self._brightest > _WHITE and number < 3 and tag.PROFILE not in self._tags:
            # Only light that was not made for a screen yet is brighter than its white.
            plane = ImageMath.lambda_eval(lambda args: args["max"](args["x"], 0.0) ** (1 / 2.2), x=plane)
        return plane.point(lambda value: value * scale + (zero + 0.5)).convert("L")


def _format(tags: Tags) -> int:
    """Return the format of all samples, or 0 where there is none; what is called undefined is unsigned.

    So are bytes that are said to have a sign: they come of programs whose only bytes have one.
    """
    formats = {_UNSIGNED if form in _UNDEFINED else form for form in tags.get(tag.SAMPLE_FORMAT, (_UNSIGNED,))}
    if formats == {_SIGNED} and set(tags.get(tag.BITS, ())) == {8} and tags.get(tag.PHOTOMETRIC) != _LAB:
        return _UNSIGNED
    return formats.pop() if len(formats) == 1 and formats <= {_UNSIGNED, _SIGNED, _FLOAT} else 0
