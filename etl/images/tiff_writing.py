"""A small TIFF of some strips or tiles of a large one."""

import itertools
import struct
from typing import Any

from PIL.TiffImagePlugin import IFDRational

from etl.images import tiff_tags as tag

_SHORT, _LONG, _RATIONAL, _UNDEFINED, _FLOAT = 3, 4, 5, 7, 11
"""Types of tag values."""


def tiff_of(prefix: bytes, values: dict[int, Any], strips: list[bytes], rows: int) -> bytes:
    """Return a TIFF with these tags, and strips or tiles of so many rows: header, pixels, directory.

    ``prefix`` is its byte order, ``II`` or ``MM``.
    """
    order = "<" if prefix == b"II" else ">"
    sizes = [len(strip) for strip in strips]
    offsets = [8 + sum_before for sum_before in itertools.accumulate(sizes, initial=0)]
    end = offsets.pop()
    if tag.TILE_WIDTH in values:
        values = values | {tag.TILE_OFFSETS: offsets, tag.TILE_SIZES: sizes}
    else:
        values = values | {tag.STRIP_OFFSETS: offsets, tag.STRIP_SIZES: sizes, tag.ROWS_PER_STRIP: rows}
    directory_at = end + end % 2
    outside_at = directory_at + 2 + 12 * len(values) + 4
    entries, outside = b"", b""
    for number, value in sorted(values.items()):
        kind, count, data = _packed(order, value)
        if len(data) > 4:
            outside += data + bytes(len(data) % 2)
            data = struct.pack(order + "L", outside_at + len(outside) - len(data) - len(data) % 2)
        entries += struct.pack(order + "HHL", number, kind, count) + data.ljust(4, b"\0")
    head = prefix + struct.pack(order + "HL", 42, directory_at)
    directory = struct.pack(order + "H", len(values)) + entries + bytes(4) + outside
    return b"".join([head, *strips, bytes(end % 2), directory])


def _packed(order: str, value: Any) -> tuple[int, int, bytes]:
    """Return the type, count and bytes of a tag's value as Pillow gives it."""
    if isinstance(value, bytes):
        return _UNDEFINED, len(value), value
    numbers = value if isinstance(value, tuple | list) else (value,)
    count = len(numbers)
    if any(isinstance(number, IFDRational) for number in numbers):
        parts = [part for number in numbers for part in (int(number.numerator), int(number.denominator))]
        return _RATIONAL, count, struct.pack(f"{order}{2 * count}L", *parts)
    if any(isinstance(number, float) for number in numbers):
        return _FLOAT, count, struct.pack(f"{order}{count}f", *numbers)
    kind, code = (_LONG, "L") if max(numbers, default=0) > 0xFFFF else (_SHORT, "H")
    return kind, count, struct.pack(f"{order}{count}{code}", *numbers)
