"""The directories of a TIFF, of either byte order and size, and which of its pictures is meant.

Pillow opens a file's first directory, whatever that is, and no big-endian BigTIFF.  TIFF 6.0; BigTIFF; Adobe's DNG.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from etl.errors import CorruptImageError
from etl.images import tiff_tags as tag

RAW_PHOTOMETRICS = (32803, 34892)
"""What a sensor saw: a mosaic of colours, or linear samples."""

_REDUCED, _MASK = 1, 4
"""Bits of NewSubfileType."""

_LOGARITHMS = (34676, 34677)
"""Compressions of logarithms of light (Ward, "LogLuv encoding", 1998)."""

_KINDS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 11: "f", 12: "d", 13: "L", 16: "Q", 17: "q", 18: "Q"}
_RATIONAL, _SIGNED_RATIONAL, _BYTES = 5, 10, (2, 7)
_LISTS = (tag.BITS, tag.COLOUR_MAP, tag.SUB_DIRECTORIES, tag.EXTRA_SAMPLES, tag.SAMPLE_FORMAT)
"""Tags whose value is a tuple even where it has one number, as Pillow has it; other single numbers stand alone."""

MOST_SAMPLES = 64
_MOST_DIRECTORIES = 64
_MOST_TAGS = 4096
_MOST_BYTES = 64 * 1024**2
"""Of the values of all directories: 4 million strips."""


class Tags(dict[int, Any]):
    """A directory: values by tag, as Pillow has them, and the byte order of the file, ``II`` or ``MM``."""

    def __init__(self, prefix: bytes) -> None:
        super().__init__()
        self.prefix = prefix


@dataclass(frozen=True, slots=True)
class Directories:
    """All of a file: the main ones in their order, then those below them; and whether Pillow can read them.

    ``pages`` is how many of the main ones are pictures of their own.
    """

    all: list[Tags]
    are_plain: bool
    pages: int

    @property
    def is_raw(self) -> bool:
        """Whether the file is what a camera's sensor saw."""
        return tag.DNG_VERSION in self.all[0] or any(
            tags.get(tag.PHOTOMETRIC) in RAW_PHOTOMETRICS or tag.CR2_SLICES in tags for tags in self.all
        )

    def meant(self) -> Tags:
        """Return the first that is neither a small version of another nor a mask, or else the first."""
        return next((tags for tags in self.all if not _is_aside(tags)), self.all[0])


def read_directories(file: IO[bytes]) -> Directories:
    """Return the directories of an opened TIFF.

    Raises `CorruptImageError` where the first lies outside the file, and `struct.error` or `ValueError` where it is
    broken in another way.  What is broken behind it is passed over.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(16).ljust(16, b"\0")
    order = "<" if head[:2] == b"II" else ">"
    is_big = 43 in (head[2], head[3])
    reader = _Reader(file, order, is_big, size, {})
    first = reader.number(head[8:16] if is_big else head[4:8])
    if not 8 <= first < size:
        raise CorruptImageError("the TIFF points to a place that is not in the file")
    found = [*reader.chain(first)]
    pages = sum(not _is_aside(tags) for tags in found)
    below = [at for tags in found for at in tags.get(tag.SUB_DIRECTORIES, ()) if isinstance(at, int)]
    for at in below[:_MOST_DIRECTORIES]:
        found += reader.chain(at)
    return Directories(found, order == "<" or not is_big, pages)


def _is_aside(tags: Tags) -> bool:
    kind = tags.get(tag.SUBFILE, 0)
    return bool(isinstance(kind, int) and kind & (_REDUCED | _MASK)) or tags.get(tag.OLD_SUBFILE) == 2


@dataclass(slots=True)
class _Reader:
    """Reads directories.

    Attributes:
        file, size: the file, and its bytes.
        order: of bytes, as `struct` has it.
        is_big: whether offsets have eight bytes.
        seen: how many bytes the values of each directory have, by its place.
    """

    file: IO[bytes]
    order: str
    is_big: bool
    size: int
    seen: dict[int, int]

    def number(self, data: bytes) -> int:
        return int.from_bytes(data, "little" if self.order == "<" else "big")

    def chain(self, at: int) -> Iterator[Tags]:
        """Yield a directory and those that follow it; none twice."""
        while 8 <= at < self.size and at not in self.seen and len(self.seen) < _MOST_DIRECTORIES:
            try:
                tags, at = self._directory(at)
            except (struct.error, ValueError):
                if not self.seen or (at in self.seen and len(self.seen) == 1):
                    raise
                return
            yield tags

    def _directory(self, at: int) -> tuple[Tags, int]:
        """Return a directory, and where the next is."""
        count_size, entry_size, value_size = (8, 20, 8) if self.is_big else (2, 12, 4)
        self.seen[at] = 0
        self.file.seek(at)
        count = self.number(self.file.read(count_size))
        if count > _MOST_TAGS:
            raise ValueError("too many tags")
        entries = self.file.read(count * entry_size)
        following = self.number(self.file.read(value_size))
        tags = Tags(b"II" if self.order == "<" else b"MM")
        for start in range(0, count * entry_size, entry_size):
            name, kind = struct.unpack_from(self.order + "HH", entries, start)
            numbers = self.number(entries[start + 4 : start + 4 + value_size])
            inline = entries[start + entry_size - value_size : start + entry_size]
            value = self._value(at, kind, numbers, inline)
            if value is not None:
                tags[name] = value if name in _LISTS or not isinstance(value, tuple) or len(value) != 1 else value[0]
        return tags, following

    def _value(self, directory: int, kind: int, count: int, inline: bytes) -> Any:
        """Return a tag's value; ``None`` for one of a type that there is not, or outside the file."""
        code = _KINDS.get(kind, "")
        is_ratio = kind in (_RATIONAL, _SIGNED_RATIONAL)
        size = count * (8 if is_ratio else struct.calcsize("=" + code) if code else 1)
        if not (code or is_ratio or kind in _BYTES) or size > self.size:
            return None
        if size <= len(inline):
            data = inline[:size]
        else:
            self.seen[directory] += size
            if sum(self.seen.values()) > _MOST_BYTES:
                raise ValueError("too many values")
            self.file.seek(min(self.number(inline), self.size))
            data = self.file.read(size)
        if len(data) < size:
            return None
        if is_ratio:
            parts = struct.unpack(f"{self.order}{2 * count}{'L' if kind == _RATIONAL else 'l'}", data)
            return tuple(top / (bottom or 1) for top, bottom in zip(parts[::2], parts[1::2], strict=True))
        return struct.unpack(f"{self.order}{count}{code}", data) if code else data


# One picture -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored:
    """A picture of a TIFF, with the names that Pillow's opened ones have.

    Attributes:
        fp: the file.
        tag_v2: its directory.
    """

    fp: IO[bytes]
    tag_v2: Tags

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as it is stored."""
        width, height = self.tag_v2.get(tag.WIDTH), self.tag_v2.get(tag.HEIGHT)
        if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
            raise CorruptImageError("the TIFF is broken: it does not say how large it is")
        return width, height

    @property
    def bits(self) -> list[int]:
        """Of each sample of a pixel."""
        bits, samples = self.tag_v2.get(tag.BITS, (1,)), self.tag_v2.get(tag.SAMPLES, 1)
        if not isinstance(samples, int) or not 0 < samples <= MOST_SAMPLES:
            raise CorruptImageError("the TIFF has a number of samples that is not supported")
        return list(bits[:samples]) if len(bits) >= samples else [bits[0]] * samples

    @property
    def mode(self) -> str:
        """``F`` for gray whose tones are to be stretched; of others roughly what they need of memory."""
        is_gray = self.tag_v2.get(tag.PHOTOMETRIC) in (0, 1)
        has_sign = self.tag_v2.get(tag.SAMPLE_FORMAT, (1,))[0] in (2, 3)
        # What calls itself bytes with a sign are plain bytes, of programs whose only bytes have one.
        if is_gray and (self.bits[0] in (24, 32, 64) or (has_sign and self.bits[0] != 8)):
            return "F"
        return "I;16" if is_gray and self.bits[0] == 16 else "RGBA"


def mended(tags: Tags) -> Tags:
    """Return the directory as it was meant: tiles under the tags of tiles, a map of 16 bits, a kind of colour."""
    mended = Tags(tags.prefix)
    mended.update(tags)
    if tag.TILE_WIDTH in tags and tag.TILE_OFFSETS not in tags and tag.STRIP_OFFSETS in tags:
        mended[tag.TILE_OFFSETS] = mended.pop(tag.STRIP_OFFSETS)
        mended[tag.TILE_SIZES] = mended.pop(tag.STRIP_SIZES, ())
    colours = tags.get(tag.COLOUR_MAP)
    if colours and max(colours) < 256:
        mended[tag.COLOUR_MAP] = tuple(257 * value for value in colours)
    if tags.get(tag.COMPRESSION) in _LOGARITHMS:
        # libtiff makes bytes for a screen of them where these are asked for.
        mended |= {tag.BITS: (8,) * tags.get(tag.SAMPLES, 1), tag.SAMPLE_FORMAT: (1,) * tags.get(tag.SAMPLES, 1)}
    if not all(0 < part < 1 for part in tags.get(tag.COEFFICIENTS, ())):
        # Without them the usual ones count.
        del mended[tag.COEFFICIENTS]
    if tag.PHOTOMETRIC not in tags and tags.get(tag.SAMPLES) in (3, 4):
        mended[tag.PHOTOMETRIC] = 2 if tags[tag.SAMPLES] == 3 or tag.INK_SET not in tags else 5
    return mended
