"""Writes TIFFs that Pillow cannot write: any byte order, sample layout and place of strips."""

import struct
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, SAMPLES = 256, 257, 258, 259, 262, 273, 277
ROWS_PER_STRIP, SIZES, PLANAR, PREDICTOR, COLOUR_MAP, EXTRA_SAMPLES, SAMPLE_FORMAT = 278, 279, 284, 317, 320, 338, 339
SUBSAMPLING, ORIENTATION, SUB_DIRECTORIES = 530, 274, 330

_LONGS = (WIDTH, HEIGHT, OFFSETS, ROWS_PER_STRIP, SIZES, SUB_DIRECTORIES)


def tiff_of(
    tags: Mapping[int, int | Sequence[int]],
    strips: list[bytes],
    *,
    order: str = "<",
    repeat: int = 1,
    strips_last: bool = False,
    tail: bytes = b"",
) -> bytes:
    """Return a TIFF with these tags and strips (offsets and sizes are added); the strips are named ``repeat`` times.

    ``order`` is "<" or ">"; ``tail`` follows as bytes that belong to nothing.
    """
    sizes = [len(strip) for strip in strips]
    pixels = b"".join(strips)
    pixels += bytes(len(pixels) % 2)

    def directory(at: int, strips_at: int) -> bytes:
        offsets = [strips_at + sum(sizes[:number]) for number in range(len(sizes))]
        return _directory({**tags, OFFSETS: offsets * repeat, SIZES: sizes * repeat}, order, at)

    directory_at = 8 if strips_last else 8 + len(pixels)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HL", 42, directory_at)
    if strips_last:
        return head + directory(8, 8 + len(directory(8, 8))) + pixels + tail
    return head + pixels + directory(directory_at, 8) + tail


Stored = tuple[Mapping[int, int | Sequence[int]], list[bytes]]


def tiffs_of(pictures: Sequence[Stored], *, order: str = "<", below: bool = False) -> bytes:
    """Return a TIFF of several pictures, each by its tags and strips, one after the other.

    With ``below`` all but the first lie in directories below the first one.
    """
    data = (b"II" if order == "<" else b"MM") + struct.pack(order + "HL", 42, 0)
    places: list[int] = []
    next_at = 4
    for tags, strips in pictures[::-1] if below else pictures:
        offsets = []
        for strip in strips:
            offsets.append(len(data))
            data += strip + bytes(len(strip) % 2)
        all_tags = {**tags, OFFSETS: offsets, SIZES: list(map(len, strips))}
        if below and len(places) == len(pictures) - 1:
            all_tags[SUB_DIRECTORIES] = places[::-1]
        places.append(len(data))
        directory = _directory(all_tags, order, len(data))
        if not below or len(places) == len(pictures):
            data = data[:next_at] + struct.pack(order + "L", len(data)) + data[next_at + 4 :]
            next_at = len(data) + 2 + 12 * len(all_tags)
        data += directory
    return data


def big_tiff_of(tags: Mapping[int, int | Sequence[int]], strips: list[bytes], *, order: str = "<") -> bytes:
    """Return a BigTIFF with these tags and strips."""
    data = (b"II" if order == "<" else b"MM") + struct.pack(order + "HHHQ", 43, 8, 0, 0)
    offsets = []
    for strip in strips:
        offsets.append(len(data))
        data += strip
    entries, outside = b"", b""
    all_tags = {**tags, OFFSETS: offsets, SIZES: list(map(len, strips))}
    outside_at = len(data) + 8 + 20 * len(all_tags) + 8
    for tag, value in sorted(all_tags.items()):
        numbers = [value] if isinstance(value, int) else list(value)
        packed = struct.pack(f"{order}{len(numbers)}Q", *numbers)
        if len(packed) > 8:
            outside += packed
            packed = struct.pack(order + "Q", outside_at + len(outside) - len(packed))
        entries += struct.pack(order + "HHQ", tag, 16, len(numbers)) + packed
    directory = struct.pack(order + "Q", len(all_tags)) + entries + bytes(8) + outside
    return data[:8] + struct.pack(order + "Q", len(data)) + data[16:] + directory


def _directory(tags: dict[int, int | Sequence[int]], order: str, at: int) -> bytes:
    entries, outside = b"", b""
    for tag, value in sorted(tags.items()):
        numbers = [value] if isinstance(value, int) else list(value)
        kind, code = (4, "L") if tag in _LONGS else (3, "H")
        data = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(data) > 4:
            place = at + 6 + 12 * len(tags) + len(outside)
            outside += data
            data = struct.pack(order + "L", place)
        entries += struct.pack(order + "HHL", tag, kind, len(numbers)) + data.ljust(4, b"\0")
    return struct.pack(order + "H", len(tags)) + entries + bytes(4) + outside


def rows_of(data: bytes, row_bytes: int, rows: int) -> list[bytes]:
    """Cut pixels into strips of so many rows."""
    return [data[start : start + row_bytes * rows] for start in range(0, len(data), row_bytes * rows)]
