"""The boxes of a JPEG 2000 and its codestream's main header: how samples become colours.

ISO/IEC 15444-1, annexes A and I; 15444-2, annex M.
"""

import itertools
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from etl.errors import CorruptImageError

_HEADER_BYTES = 4 * 1024**2
"""Of all boxes that say how samples become colours: the largest are profiles of presses."""

_MAX_CHANNELS = 4
INK, CMY, CMYK, LAB, SRGB, SYCC, NO_SPACE = 0, 11, 12, 14, 16, 18, -1
_BILEVEL, _GRAY = 15, 17
_COLOURS = {INK: 1, CMY: 3, CMYK: 4, LAB: 3, _BILEVEL: 1, SRGB: 3, _GRAY: 1, SYCC: 3}
_AS_IN_JPEG = 3
"""YCbCr(2), which differs from sYCC in what its numbers mean beyond black and white, which bytes do not hold."""

_OTHER_SPACES = range(25)
"""Enumerated colour spaces that there are; a number beyond them means nothing, and the count of channels decides."""

_ICC_COLOURS = {b"GRAY": 1, b"RGB ": 3, b"CMYK": 4}
COLOUR, OPACITY, PREMULTIPLIED = 0, 1, 2
"""Types of channels."""

_SOC, _SIZ, _COD, _COC, _SOT, _EOC = 0xFF4F, 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFFD9


@dataclass(frozen=True, slots=True, kw_only=True)
class Codestream:
    """What the main header says.

    Attributes:
        area: of the picture on its grid: left, top, right, bottom.
        tile: left and top of the first tile, width and height of each.
        depths: bits of each component.
        steps: distance of its samples, across and down.
        levels: how often the picture may be halved.
        part: of the tiles' bytes that is there, up to 1.
        missing: bytes of the last of their parts that are not there.
    """

    area: tuple[int, int, int, int]
    tile: tuple[int, int, int, int]
    depths: list[int]
    steps: list[tuple[int, int]]
    levels: int
    part: float
    missing: int

    def size(self, halvings: int) -> tuple[int, int]:
        """Return width and height after so many halvings."""
        left, top, right, bottom = (_halved(edge, halvings) for edge in self.area)
        return right - left, bottom - top

    def is_read_right(self, halvings: int) -> bool:
        """Return whether Pillow finds the samples of components that are coarser than the picture.

        It takes for granted that each tile's size is a multiple of their steps.
        """
        return all(
            _is_covered(self.area[at], self.area[at + 2], self.tile[at], self.tile[at + 2], step[at], halvings)
            for step in set(self.steps)
            for at in (0, 1)
        )


@dataclass(kw_only=True)
class Boxes:
    """What the boxes say.

    Attributes:
        space: the enumerated colour space, or ``NO_SPACE``.
        profile: the embedded profile.
        colours: channels of the colour space; 0 when it is not known.
        ranges: of LAB: range and offset of each channel.
        channels: index, type and association of each channel that is defined.
        palette: its columns.
        columns: component and column of each channel; the column is ``None`` where the component is the channel.
    """

    space: int = NO_SPACE
    profile: bytes | None = None
    colours: int = 0
    ranges: tuple[int, ...] = ()
    channels: list[tuple[int, int, int]] = field(default_factory=list)
    palette: list[list[int]] = field(default_factory=list)
    columns: list[tuple[int, int | None]] = field(default_factory=list)


def _halved(edge: int, halvings: int) -> int:
    """Return where an edge of an area is after so many halvings."""
    return -(-edge >> halvings)


def _is_covered(first: int, last: int, origin: int, tile: int, step: int, halvings: int) -> bool:
    """Return whether along one axis a component has in each tile as many samples as Pillow thinks."""
    if step == 1:
        return True
    edges = [first, *range(origin + tile, last, tile), last]
    fine = [_halved(edge, halvings) for edge in edges]
    coarse = [_halved((edge + step - 1) // step, halvings) for edge in edges]
    pairs = zip(itertools.pairwise(fine), itertools.pairwise(coarse), strict=True)
    return all(to_coarse - from_coarse == (to - since) // step for (since, to), (from_coarse, to_coarse) in pairs)


def read_boxes(file: IO[bytes]) -> tuple[Boxes, int, int]:
    """Return what the boxes say, and where the codestream begins and ends."""
    boxes = Boxes()
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(2) == struct.pack(">H", _SOC):
        return boxes, 0, end
    for name, start, stop in walk(file, 0, end):
        if name == b"jp2c":
            return boxes, start, stop
        if name == b"jp2h":
            for inner, at, to in walk(file, start, stop):
                if to - at > _HEADER_BYTES:
                    raise CorruptImageError("the JPEG 2000 is broken: a box of its header is too large")
                file.seek(at)
                _read_box(boxes, inner, file.read(to - at))
    raise CorruptImageError("the JPEG 2000 is broken: it has no codestream")


def walk(file: IO[bytes], at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of each box; one that reaches beyond the end is cut."""
    while at + 8 <= end:
        file.seek(at)
        length, name = struct.unpack(">L4s", file.read(8))
        head = 8
        if length == 1:
            head, length = 16, int.from_bytes(file.read(8))
        length = length or end - at
        if length < head:
            raise CorruptImageError("the file is broken: a box is shorter than its own header")
        yield name, at + head, min(at + length, end)
        at += length


def _read_box(boxes: Boxes, name: bytes, data: bytes) -> None:
    if name == b"colr" and not boxes.colours:
        _read_colour(boxes, data)
    elif name == b"cdef":
        boxes.channels = list(struct.iter_unpack(">HHH", data[2 : 2 + 6 * int.from_bytes(data[:2])]))
    elif name == b"cmap":
        boxes.columns = [(component, column if kind else None) for component, kind, column in _cmap(data)]
    elif name == b"pclr":
        entries, columns = struct.unpack_from(">HB", data)
        values = data[3 + columns :]
        if max(data[3 : 3 + columns], default=0) & 0x7F > 7 or not 0 < entries * columns <= len(values):
            raise CorruptImageError("the JPEG 2000 has a palette of a kind that is not supported")
        boxes.palette = [list(values[column : entries * columns : columns]) for column in range(columns)]


def _cmap(data: bytes) -> Iterator[tuple[int, int, int]]:
    return struct.iter_unpack(">HBB", data[: len(data) // 4 * 4])


def _read_colour(boxes: Boxes, data: bytes) -> None:
    """Take the colour space of the first box that is understood, as readers do."""
    method, value = data[0], int.from_bytes(data[3:7])
    value = SYCC if value == _AS_IN_JPEG else value
    if method == 1 and value in _COLOURS:
        boxes.space, boxes.colours = value, _COLOURS[value]
        if value == LAB and len(data) > 7:
            boxes.ranges = struct.unpack_from(">6L", data, 7)
    elif method == 1 and value in _OTHER_SPACES:
        raise CorruptImageError(f"the JPEG 2000 has a colour space that is not supported ({value})")
    elif method in (2, 3) and data[19:23] in _ICC_COLOURS:
        boxes.profile, boxes.colours = data[3:], _ICC_COLOURS[data[19:23]]


def read_codestream(file: IO[bytes], start: int, end: int) -> Codestream:
    """Return what the main header of the codestream says."""
    file.seek(start + 2)
    depths: list[int] = []
    steps: list[tuple[int, int]] = []
    levels = 32
    while True:
        marker, length = struct.unpack(">HH", file.read(4))
        if marker == _SOT:
            break
        data = file.read(max(0, length - 2))
        if marker == _SIZ:
            right, bottom, left, top, *tile = struct.unpack_from(">8L", data, 2)
            depths = [(depth & 0x7F) + 1 for depth in data[36::3]]
            steps = list(zip(data[37::3], data[38::3], strict=True))
        elif marker in (_COD, _COC):
            levels = min(levels, data[5 if marker == _COD else 2 + (len(steps) > 256)])
    if not 0 < len(steps) <= _MAX_CHANNELS or not all(tile[:2]) or not all(map(all, steps)):
        raise CorruptImageError("the JPEG 2000 has a number or size of components that is not supported")
    tiles = -(-(right - tile[2]) // tile[0]) * -(-(bottom - tile[3]) // tile[1])
    part, missing = _part_there(file, file.tell() - 4, end, tiles)
    return Codestream(
        area=(left, top, right, bottom),
        tile=(tile[2], tile[3], tile[0], tile[1]),
        depths=depths,
        steps=steps,
        levels=levels,
        part=part,
        missing=missing,
    )


def _part_there(file: IO[bytes], at: int, end: int, tiles: int) -> tuple[float, int]:
    """Return the part of all tiles' bytes that is there from here on, and how many bytes of the last are not."""
    there: dict[int, float] = {}
    parts: dict[int, int] = {}
    is_closed = False
    while at + 2 <= end and not is_closed:
        file.seek(at)
        marker, _, tile, length, _, count = struct.unpack(">HHHLBB", file.read(12).ljust(12, b"\0"))
        is_closed = marker == _EOC
        if marker != _SOT or 0 < length < 12:
            break
        # Without a length it goes on to the end marker.
        length = length or max(1, end - 2 - at)
        there[tile] = there.get(tile, 0.0) + min(1.0, (end - at) / length)
        parts[tile] = max(count, parts.get(tile, 0))
        at += length
    # What is said of their number is not always right; where it is left open, there is at least one more.
    number = {tile: 1 if is_closed else parts[tile] or math.ceil(there[tile]) + 1 for tile in there}
    return sum(min(1.0, there[tile] / number[tile]) for tile in there) / tiles, max(0, at - end)
