"""The numbers of a TIFF's samples, from the bytes of its strips."""

import functools
import itertools
import math
import struct
from array import array

from PIL import Image

CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""Of `array`, for whole numbers of so many bytes."""


def numbers_of(size: int, data: bytes, little: bool) -> "array[int]":
    """Return whole numbers of ``size`` bytes each."""
    numbers = array(CODES[size], data)
    if size > 1 and little != (struct.pack("=H", 1)[0] == 1):
        numbers.byteswap()
    return numbers


def summed(row: "array[int]", count: int) -> "array[int]":
    """Return the running sums of each of ``count`` interleaved samples, in as many bits as they have."""
    mask = (1 << (8 * row.itemsize)) - 1
    for sample in range(count):
        sums = itertools.accumulate(row[sample::count], lambda one, other: (one + other) & mask)
        row[sample::count] = array(row.typecode, sums)
    return row


def sliced(data: bytes, width: int, sample: int, count: int) -> bytes:
    """Return the bytes of every ``count``-th number of ``width`` bytes, from that with the number ``sample`` on."""
    return array(CODES[width], data)[sample::count].tobytes()


def real(data: bytes, width: int, little: bool, size: tuple[int, int]) -> Image.Image:
    """Return floating-point numbers of ``width`` bytes as a picture of mode ``F``."""
    if width == 2:
        halves = numbers_of(2, data, little)
        table = _halves()
        return Image.frombytes("F", size, array("f", [table[half] for half in halves]).tobytes(), "raw", "F;32NF")
    return Image.frombytes("F", size, data, "raw", f"F;{8 * width}{'F' if little else 'BF'}")


@functools.cache
def _halves() -> "array[float]":
    """Return the value of each number of two bytes (IEEE 754)."""
    return array("f", struct.unpack("<65536e", array("H", range(65536)).tobytes()))


def unpacked(data: bytes, bits: int, per_row: int, rows: int) -> bytes:
    """Return samples that share bytes in 8 bits each; rows begin at bytes."""
    mask = (1 << bits) - 1
    scale = 255 / mask
    table = [round(value * scale) for value in range(mask + 1)] if bits <= 16 else []
    row_bytes = (per_row * bits + 7) // 8
    values = bytearray()
    for row in range(rows):
        line = data[row * row_bytes : (row + 1) * row_bytes].ljust(math.ceil(row_bytes / bits) * bits, b"\0")
        unpacked = bytearray()
        for at in range(0, len(line), bits):
            eight = int.from_bytes(line[at : at + bits])
            for shift in range(7 * bits, -1, -bits):
                value = eight >> shift & mask
                unpacked.append(table[value] if table else value >> (bits - 8))
        values += unpacked[:per_row]
    return bytes(values)
