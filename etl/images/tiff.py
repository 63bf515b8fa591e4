"""TIFFs in pieces, and what Pillow misreads in them.

A TIFF stores its pixels in strips or tiles that are compressed one by one.  Some of them under the tags of the
whole (colour map, predictor, JPEG tables and all) make a small TIFF of their own, which Pillow decodes as it would
have decoded the whole.
"""

import io
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from etl.errors import CorruptImageError, TruncatedImageError
from etl.images import tiff_tags as tag
from etl.images.tiff_directory import Stored
from etl.images.tiff_writing import tiff_of

Picture = TiffImageFile | Stored
"""A picture that Pillow has opened, or that it cannot open as it lies in its file."""

PIECE_BYTES = 4 * 1024**2
"""Decoded size of a piece, unless a single strip or row of tiles that cannot be cut has more."""

_PEAK_BYTES = {"1": 2, "L": 1, "P": 5, "I;16": 6, "I;16B": 6, "F": 16}
"""Bytes per pixel while a picture is decoded, the copy in a mode that can be averaged included; else 4."""

_KEPT = (
    tag.WIDTH, tag.BITS, tag.COMPRESSION, tag.PHOTOMETRIC, tag.SAMPLES, tag.PLANAR, tag.TILE_WIDTH, tag.TILE_HEIGHT,
    292, 293,  # options of Group 3 and 4
    tag.PREDICTOR, tag.COLOUR_MAP, tag.EXTRA_SAMPLES, tag.SAMPLE_FORMAT, tag.JPEG_TABLES,
    tag.COEFFICIENTS, 530, 531, 532,  # YCbCr subsampling, positioning, reference black and white
)  # fmt: skip
"""Tags (TIFF 6.0) that say how pixels are stored, and are the same for a part of them."""

_RAW, _OLD_JPEG, _JPEG, _DEFLATE = 1, 6, 7, (8, 32946)
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Of each byte, what has its bits in the other order."""

_YCBCR, _SEPARATE = 6, 2

# Pillow does not know big-endian 16-bit gray where 0 means white, nor logarithms of light, which libtiff makes bytes.
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))
for _order, _kind, _mode in itertools.product((b"II", b"MM"), (32844, 32845), ("L", "RGB")):
    TiffImagePlugin.OPEN_INFO[_order, _kind, (1,), 1, (8,) * len(_mode), ()] = (_mode, _mode)

_READ_BYTES = 1024**2

_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
"""Raw modes of big-endian files as libtiff hands them over: in the machine's order, which Pillow overlooks."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a TIFF's pixels are.

    Attributes:
        width, height: of the picture, as it is stored.
        rows: of a strip or tile; the last strip may have fewer.
        across: tiles beside each other; 1 for strips.
        planes: how often the picture's area is covered: once, or once for each sample.
        places: offset and size in bytes of each strip or tile, by plane, then row, then column.
        row_bytes: of a row of pixels before compression, if strips can be cut between rows; else 0.
        memory_per_row: what decoding a row of pixels takes, in bytes.
    """

    width: int
    height: int
    rows: int
    across: int
    planes: int
    places: list[tuple[int, int]]
    row_bytes: int
    memory_per_row: int


@dataclass(frozen=True)
class Piece:
    """Strips or tiles that make a picture: rows, rows of one strip or tile, and the bytes in the order of `Layout`."""

    height: int
    rows: int
    strips: list[bytes]


def memory(image: TiffImageFile) -> int:
    """Return roughly how many bytes it takes to decode the picture at once."""
    width, height = image.size
    return width * height * _PEAK_BYTES.get(image.mode, 4)


def is_misread(image: Picture) -> bool:
    """Return whether Pillow takes the picture for another, or for none, where it is stored without compression.

    Of samples in planes it takes the low bytes of 16 bits for pixels, of YCbCr it does not know subsampling, and of
    palettes not that the first pixel may be in the lowest bits of a byte.
    """
    tags = image.tag_v2
    is_odd = tags.get(tag.PLANAR) == _SEPARATE or tags.get(tag.PHOTOMETRIC) == _YCBCR
    return tags.get(tag.COMPRESSION, _RAW) == _RAW and (is_odd or tags.get(tag.FILL_ORDER, 1) != 1)


def is_sparse(image: Picture) -> bool:
    """Return whether strips or tiles were left out, as makers of maps do."""
    return 0 in _numbers(image.tag_v2.get(tag.TILE_OFFSETS, image.tag_v2.get(tag.STRIP_OFFSETS)))


def is_known(image: Stored) -> bool:
    """Return whether Pillow has a mode for the picture's pixels."""
    if len(image.bits) > TiffImagePlugin.MAX_SAMPLESPERPIXEL:
        return False
    try:
        with Image.open(io.BytesIO(_small_tiff(image, Piece(1, 1, [b""]))), formats=["TIFF"]):
            return True
    except UnidentifiedImageError:
        return False


def mend_byte_order(image: TiffImageFile) -> None:
    """Let Pillow read the compressed pixels of an opened, big-endian picture in the order that they will have."""
    image.tile = [
        tile._replace(args=(_NATIVE[tile.args[0]], *tile.args[1:]))
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple) and tile.args[0] in _NATIVE
        else tile
        for tile in image.tile
    ]


def pictures(image: Picture, layout: Layout) -> Iterator[Image.Image]:
    """Yield the picture in pieces of whole rows, from top to bottom as they are stored: not turned.

    Raises `CorruptImageError` when strips are missing, and whatever Pillow raises.
    """
    for piece in pieces(image, layout):
        try:
            picture = Image.open(io.BytesIO(_small_tiff(image, piece)), formats=["TIFF"])
        except UnidentifiedImageError as error:
            raise CorruptImageError("the TIFF stores its pixels in a way that is not supported") from error
        with picture:
            assert isinstance(picture, TiffImageFile)
            mend_byte_order(picture)
            picture.load()
            yield picture


def layout_of(image: Picture) -> Layout | None:
    """Return how the pixels are stored; ``None`` when they cannot be had in pieces, or not by the book."""
    tags = image.tag_v2
    width, height, compression = tags[tag.WIDTH], tags[tag.HEIGHT], tags.get(tag.COMPRESSION, _RAW)
    tiled = tag.TILE_OFFSETS in tags
    if compression == _OLD_JPEG or tiled == (tag.STRIP_OFFSETS in tags):
        return None
    samples = tags.get(tag.SAMPLES, 1)
    planes = samples if tags.get(tag.PLANAR) == _SEPARATE else 1
    if tiled:
        rows, strip_width = tags.get(tag.TILE_HEIGHT, 0), tags.get(tag.TILE_WIDTH, 0)
    else:
        rows, strip_width = min(tags.get(tag.ROWS_PER_STRIP, height), height), width
    if rows < 1 or strip_width < 1:
        return None
    across, down = -(-width // strip_width), -(-height // rows)
    row_bytes = _row_bytes(image, strip_width, samples // planes)
    if compression == _RAW and row_bytes:
        # As Pillow does: what files say of these sizes is often wrong, and not needed.
        heights = [rows if tiled else min(rows, height - row * rows) for row in range(down)]
        sizes = [row_bytes * rows_there for rows_there in heights for _ in range(across)] * planes
    else:
        sizes = _numbers(tags.get(tag.TILE_SIZES if tiled else tag.STRIP_SIZES))
    offsets = _numbers(tags.get(tag.TILE_OFFSETS if tiled else tag.STRIP_OFFSETS))
    if not len(offsets) == len(sizes) == across * down * planes:
        return None
    divisible = not tiled and row_bytes > 0 and (compression == _RAW or compression in _DEFLATE)
    if down == 1 and not divisible and not is_misread(image) and isinstance(image, TiffImageFile):
        return None
    memory_per_row = across * strip_width * _PEAK_BYTES.get(image.mode, 4)
    places = list(zip(offsets, sizes, strict=True))
    return Layout(
        width=width,
        height=height,
        rows=rows,
        across=across,
        planes=planes,
        places=places,
        row_bytes=row_bytes if divisible else 0,
        memory_per_row=memory_per_row,
    )


def _numbers(value: Any) -> list[int]:
    return list(value) if isinstance(value, tuple) else [] if value is None else [value]


def _row_bytes(image: Picture, width: int, samples: int) -> int:
    """Return the bytes of a row of pixels before compression; 0 where they share their colour and cannot be counted."""
    if image.tag_v2.get(tag.PHOTOMETRIC) == _YCBCR:
        return 0
    bits: tuple[int, ...] = image.tag_v2.get(tag.BITS, (1,))
    return (width * sum(bits[:samples] if len(bits) >= samples else bits[:1] * samples) + 7) // 8


def pieces(image: Picture, layout: Layout) -> Iterator[Piece]:
    most_rows = max(1, PIECE_BYTES // layout.memory_per_row)
    if layout.rows > most_rows and layout.row_bytes:
        yield from _parts_of_strips(image, layout, most_rows)
        return
    per_plane = len(layout.places) // layout.planes
    most_bytes = max(1, *(size for _, size in layout.places)) * layout.across * layout.planes
    rows_of_strips = max(1, min(most_rows // layout.rows, PIECE_BYTES // most_bytes))
    count = rows_of_strips * layout.across
    for first in range(0, per_plane, count):
        top = first // layout.across * layout.rows
        planes = range(first, len(layout.places), per_plane)
        last = min(first + count, per_plane) - first
        places = [place for start in planes for place in layout.places[start : start + last]]
        height = min(rows_of_strips * layout.rows, layout.height - top)
        yield Piece(height, layout.rows, [_read(image, *place) for place in places])


def _parts_of_strips(image: Picture, layout: Layout, most_rows: int) -> Iterator[Piece]:
    """Yield strips cut into parts of at most so many rows."""
    per_plane = len(layout.places) // layout.planes
    for number in range(per_plane):
        height = min(layout.rows, layout.height - number * layout.rows)
        heights = [min(most_rows, height - top) for top in range(0, height, most_rows)]
        sizes = [rows * layout.row_bytes for rows in heights]
        cut = _cut if image.tag_v2.get(tag.COMPRESSION, _RAW) == _RAW else _inflated
        planes = [cut(image, *place, sizes) for place in layout.places[number::per_plane]]
        for rows, *strips in zip(heights, *planes, strict=True):
            yield Piece(rows, rows, strips)


def _cut(image: Picture, offset: int, _: int, sizes: list[int]) -> Iterator[bytes]:
    """Yield parts of these sizes of a strip that is not compressed."""
    for size in sizes:
        yield _read(image, offset, size)
        offset += size if offset else 0


def _inflated(image: Picture, offset: int, size: int, sizes: list[int]) -> Iterator[bytes]:
    """Yield parts, which have these sizes when they are inflated, of a Deflate strip as Deflate strips.

    They are stored in Deflate's own way of not compressing: only so is a predictor undone.
    """
    inflater = zlib.decompressobj()
    end, unread = offset + size, b""
    for wanted in sizes:
        part = bytearray()
        while len(part) < wanted:
            if not unread:
                unread = _read(image, offset, min(_READ_BYTES, end - offset))
                offset += len(unread)
            is_end = not unread
            inflated = inflater.decompress(unread, wanted - len(part))
            unread = inflater.unconsumed_tail
            part += inflated
            if is_end and not inflated:
                raise CorruptImageError("the TIFF is broken: a strip ends before its last row")
        yield zlib.compress(part, 0)


def _read(image: Picture, offset: int, size: int) -> bytes:
    """Return a part of the file, its bits in the usual order; nothing for a strip or tile that was left out."""
    assert image.fp is not None
    if not offset:
        return b""
    # Looked at before: room for what is to be read is made at once.
    if image.fp.seek(0, 2) < offset + size:
        raise TruncatedImageError("the TIFF is cut short: a strip or tile reaches beyond the end of the file")
    image.fp.seek(offset)
    data = image.fp.read(size)
    is_reversed = image.tag_v2.get(tag.FILL_ORDER, 1) != 1 and image.tag_v2.get(tag.COMPRESSION) != _JPEG
    return data.translate(_REVERSED) if is_reversed else data


def _small_tiff(image: Picture, piece: Piece) -> bytes:
    """Return the piece as a TIFF."""
    tags = image.tag_v2
    strips = piece.strips
    values: dict[int, Any] = {number: tags[number] for number in _KEPT if number in tags} | {tag.HEIGHT: piece.height}
    if is_misread(image):
        # Compressed pixels go through libtiff, which knows better.
        values[tag.COMPRESSION], strips = _DEFLATE[0], [zlib.compress(strip, 0) for strip in strips]
    return tiff_of(tags.prefix, values, strips, piece.rows)
