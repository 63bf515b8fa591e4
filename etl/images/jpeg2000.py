"""JPEG 2000: the codestream alone goes to Pillow, and the boxes around it are read here.

Pillow, and OpenJPEG below it, pass over embedded profiles and channel definitions and refuse colour spaces that they
do not know; of the codestream alone they give the bare samples.
"""

import io
from typing import IO

from PIL import ContainerIO, Image, ImageChops, ImageFile, Jpeg2KImagePlugin

from etl.errors import CorruptImageError
from etl.images import jpeg2000_depth, truncated
from etl.images.jpeg2000_boxes import (
    CMY,
    COLOUR,
    INK,
    LAB,
    NO_SPACE,
    OPACITY,
    PREMULTIPLIED,
    SYCC,
    Boxes,
    Codestream,
    read_boxes,
    read_codestream,
)

_COARSE = ([(1, 1), (2, 2), (2, 2)], [(1, 1), (2, 1), (2, 1)])
_MOST_MISSING = 64
"""Bytes that may be missing, for each that is there."""


class _Section(ContainerIO.ContainerIO[bytes]):
    """A part of a file, for whose length Pillow would take that of the file."""

    def fileno(self) -> int:
        """Raise `OSError`: it has none of its own."""
        raise OSError("a part of a file")


def loaded(image: Jpeg2KImagePlugin.Jpeg2KImageFile, longest_edge: int) -> tuple[Image.Image, bytes | None, float]:
    """Return the opened picture's pixels, its profile, and the part of its data that is there.

    Where possible no more is decoded than twice ``longest_edge``.

    Raises `CorruptImageError` for a kind that is not supported, and whatever Pillow raises.
    """
    assert image.fp is not None
    boxes, start, end = read_boxes(image.fp)
    stream = read_codestream(image.fp, start, end)
    if stream.size(0) != image.size:
        raise CorruptImageError("the JPEG 2000 is broken: its header and its pixels are of different sizes")
    # Pillow finds no reduced tiles of a picture that does not begin where its grid does.
    is_whole_only = bool(boxes.palette) or stream.area[:2] != (0, 0)
    wanted = 0 if is_whole_only else (max(image.size) // longest_edge).bit_length() - 1
    halvings = max(0, min(wanted, stream.levels))
    while halvings and not stream.is_read_right(halvings):
        halvings -= 1
    if not stream.is_read_right(halvings):
        if stream.steps in _COARSE and stream.part == 1 and boxes.space in (SYCC, NO_SPACE) and not boxes.channels:
            from etl.images.jpeg2000_coarse import drawn

            image.fp.seek(start)
            return drawn(image.fp.read(end - start), image.size, stream.levels, longest_edge), boxes.profile, 1.0
        raise CorruptImageError("the JPEG 2000 has components of different sizes, in a way that is not supported")
    pixels, part = _samples(image.fp, start, end, stream, halvings)
    if jpeg2000_depth.is_needed(stream):
        pixels = Image.merge(pixels.mode, jpeg2000_depth.narrowed(list(pixels.split()), stream))
    return _coloured(pixels, boxes, stream), boxes.profile, part


def _samples(file: IO[bytes], start: int, end: int, stream: Codestream, halvings: int) -> tuple[Image.Image, float]:
    """Return what is stored of the picture, and the part of it that is there."""
    try:
        with _opened(file, start, end, stream, halvings) as image:
            image.load()
            return image, 1.0
    except OSError:
        pixels, part = _what_is_there(file, start, end, stream, halvings)
        if part < stream.part and halvings:
            # A tile may have fewer levels than the main header says.
            return _samples(file, start, end, stream, 0)
        if part == 0 and stream.part == 1:
            raise
        return pixels, part


def _what_is_there(
    file: IO[bytes], start: int, end: int, stream: Codestream, halvings: int
) -> tuple[Image.Image, float]:
    """Return the tiles that come before whatever OpenJPEG refuses: often less than a tile, or only their number."""
    file.seek(start)
    data = file.read(end - start)
    # In the place of what is missing, packets that are empty (ISO/IEC 15444-1, B.9), and the end marker.
    data += bytes(min(stream.missing, _MOST_MISSING * len(data))) + b"\xff\xd9"
    picture, difference = truncated.load_twice(
        lambda section: _opened(section, 0, len(data), stream, halvings), io.BytesIO(data), io.BytesIO(data)
    )
    return picture, min(stream.part, truncated.part_alike(difference))


def _opened(file: IO[bytes], start: int, end: int, stream: Codestream, halvings: int) -> ImageFile.ImageFile:
    section: IO[bytes] = _Section(file, start, end - start)
    if jpeg2000_depth.is_needed(stream):
        section = jpeg2000_depth.deeper(file, start, end, stream)
    image = Image.open(section, formats=["JPEG2000"])
    if halvings:
        assert isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile)
        args = image.tile[0].args
        assert isinstance(args, tuple)
        size = stream.size(halvings)
        # Not by its `reduce`, which rounds a size where OpenJPEG rounds it up.
        image._size = size
        image.tile = [image.tile[0]._replace(extents=(0, 0, *size), args=(args[0], halvings, *args[2:]))]
    return image


def _coloured(image: Image.Image, boxes: Boxes, stream: Codestream) -> Image.Image:
    """Return the samples in the mode of their colour space, channels in its order."""
    if image.mode == "I;16" and not boxes.palette:
        return image
    bands = list(image.split())
    if boxes.palette:
        bands = _looked_up(bands, boxes, stream)
    else:
        bands = [_full(band, depth) for band, depth in zip(bands, stream.depths, strict=True)]
    colours = 1 if boxes.colours == 3 > len(bands) else boxes.colours or (1 if len(bands) < 3 else 3)
    order = list(range(colours))
    alpha = colours if len(bands) > colours and not boxes.channels else None
    for channel, kind, association in boxes.channels:
        if kind == COLOUR and 0 < association <= colours:
            order[association - 1] = channel
        elif kind in (OPACITY, PREMULTIPLIED) and association == 0:
            alpha = channel
    try:
        opacity = None if alpha is None else bands[alpha]
        bands = [bands[channel] for channel in order]
    except IndexError as error:
        raise CorruptImageError("the JPEG 2000 is broken: it names channels that it does not have") from error
    if boxes.space == LAB:
        return _lab(bands, boxes.ranges, stream.depths)
    return _merged(bands, opacity, boxes.space, stream)


def _merged(bands: list[Image.Image], opacity: Image.Image | None, space: int, stream: Codestream) -> Image.Image:
    # Pillow has done so where the second or third component is the first coarse one.
    done = stream.steps[0] == (1, 1) and set(stream.steps[:3]) != {(1, 1)}
    if done and space != SYCC and space != NO_SPACE:
        raise CorruptImageError("the JPEG 2000 has components of different sizes, in a way that is not supported")
    if space == SYCC and not done:
        bands = list(Image.merge("YCbCr", bands).convert("RGB").split())
    if space in (INK, CMY):
        bands = [ImageChops.invert(band) for band in bands]
    if len(bands) == 4:
        return Image.merge("CMYK", bands)
    if opacity is not None:
        return Image.merge("LA" if len(bands) == 1 else "RGBA", [*bands, opacity])
    return bands[0] if len(bands) == 1 else Image.merge("RGB", bands)


def _full(band: Image.Image, depth: int) -> Image.Image:
    """Return samples of fewer than 8 bits, which Pillow has moved up, over their whole range."""
    if depth >= 8:
        return band
    top = (1 << depth) - 1
    return band.point([(value >> (8 - depth)) * 255 // top for value in range(256)])


def _lab(bands: list[Image.Image], ranges: tuple[int, ...], depths: list[int]) -> Image.Image:
    """Return CIELAB (15444-2, M.11.7.4.1) as Pillow has it."""
    if not ranges:
        ranges = (100, 0, 170, 1 << (depths[1] - 1), 200, (1 << (depths[2] - 2)) + (1 << (depths[2] - 3)))
    low = [
        -span * offset / ((1 << depth) - 1)
        for span, offset, depth in zip(ranges[::2], ranges[1::2], depths, strict=False)
    ]
    for number, (scale, zero) in enumerate(((255 / 100, 0), (1, 128), (1, 128))):
        step = ranges[2 * number] / 255
        values = [round((value * step + low[number]) * scale + zero) for value in range(256)]
        bands[number] = bands[number].point(values)
    return Image.merge("LAB", bands)


def _looked_up(bands: list[Image.Image], boxes: Boxes, stream: Codestream) -> list[Image.Image]:
    """Return the palette's channels."""
    columns = boxes.columns or [(0, column) for column in range(len(boxes.palette))]
    channels = []
    for component, column in columns:
        if component >= len(bands) or (column is not None and column >= len(boxes.palette)):
            raise CorruptImageError("the JPEG 2000 is broken: it names columns that its palette does not have")
        band = bands[component]
        if column is not None:
            depth = stream.depths[component]
            if depth > 8 or band.mode != "L":
                raise CorruptImageError("the JPEG 2000 has a palette of a kind that is not supported")
            colours = boxes.palette[column]
            # Pillow has made 8 bits of fewer.
            band = band.point([colours[min(value >> (8 - depth), len(colours) - 1)] for value in range(256)])
        channels.append(band)
    return channels
