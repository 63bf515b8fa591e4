"""Which picture of a TIFF is shown, where Pillow would open another, or none; of a camera's raw data its preview."""

import struct
from dataclasses import dataclass
from typing import IO

from PIL import ContainerIO, Image, UnidentifiedImageError

from etl.errors import CorruptImageError
from etl.images import tiff_samples
from etl.images import tiff_tags as tag
from etl.images.tiff_directory import RAW_PHOTOMETRICS, Directories, Stored, Tags, mended, read_directories

_OLD_JPEG, _JPEG = 6, 7
_NOT_READ = {
    33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34933: "PNG", 34934: "JPEG XR",
    50001: "WebP", 50002: "JPEG XL",
}  # fmt: skip
"""Compressions that the libtiff of Pillow does not have."""

_TRUE_COLOURS, _INKS = (2, 6), 5


@dataclass(frozen=True, slots=True)
class Choice:
    """The picture that is meant: as the file stores it, or as a JPEG file within it; and its EXIF orientation.

    ``None`` stands for what Pillow opens, if it opens the right one, or finds out what is wrong.  ``pages`` says how
    many pictures of their own the file has.
    """

    picture: Stored | IO[bytes] | None
    orientation: int = 1
    pages: int = 1


def chosen(file: IO[bytes], longest_edge: int) -> Choice:
    """Return the picture of an opened TIFF.

    Of raw data only a preview will do that has ``longest_edge`` or half the size of what the sensor saw.

    Raises `CorruptImageError` where there is none.
    """
    try:
        directories = read_directories(file)
        if directories.is_raw:
            return _preview(file, directories, longest_edge)
        tags = directories.meant()
        if tags.get(tag.PHOTOMETRIC) == _INKS and tags.get(tag.INK_SET, 1) != 1:
            raise CorruptImageError("the TIFF is printed with other inks than cyan, magenta, yellow and black")
        if (unread := _NOT_READ.get(tags.get(tag.COMPRESSION, 1))) is not None:
            raise CorruptImageError(f"the TIFF is compressed as {unread}, which is not supported; save it with LZW")
        picture = Stored(file, mended(tags))
        if tags.get(tag.COMPRESSION) == _OLD_JPEG and (jpeg := _jpeg(file, tags)) is not None:
            with Image.open(jpeg, formats=["JPEG"]) as image:
                # Else it is a JPEG's header alone, for strips that lie elsewhere, which libtiff puts together.
                if image.size == picture.size and _is_within(tags, jpeg):
                    return Choice(jpeg, _orientation(tags), directories.pages)
        is_plain = directories.are_plain and tags is directories.all[0] and picture.tag_v2 == tags
        if is_plain and not tiff_samples.is_needed(picture) and _is_opened(file):
            return Choice(None, pages=directories.pages)
    # Of broken files Pillow tells what is wrong.
    except (struct.error, ValueError, TypeError, IndexError, UnidentifiedImageError):
        return Choice(None)
    return Choice(picture, _orientation(tags), directories.pages)


def _is_opened(file: IO[bytes]) -> bool:
    """Return whether Pillow opens the file: values that lie beyond its end make it give up the whole directory."""
    file.seek(0)
    try:
        with Image.open(file, formats=["TIFF"]):
            return True
    except UnidentifiedImageError:
        return False


def _orientation(tags: Tags) -> int:
    value = tags.get(tag.ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _preview(file: IO[bytes], directories: Directories, longest_edge: int) -> Choice:
    """Return the largest picture that is made for people."""
    best: tuple[int, Stored | IO[bytes]] = (0, file)
    seen = 1
    for tags in directories.all:
        sides = (tags.get(tag.WIDTH, 0), tags.get(tag.HEIGHT, 0))
        jpeg = _jpeg(file, tags) if tags.get(tag.PHOTOMETRIC) not in RAW_PHOTOMETRICS else None
        if jpeg is not None:
            try:
                with Image.open(jpeg, formats=["JPEG"]) as image:
                    best = max(best, (max(image.size), jpeg), key=lambda one: one[0])
            # The raw data themselves may be a JPEG, of a kind without loss.
            except (OSError, SyntaxError, ValueError):
                seen = max(seen, *sides)
        elif tags.get(tag.PHOTOMETRIC) in _TRUE_COLOURS:
            best = max(best, (max(sides), Stored(file, mended(tags))), key=lambda one: one[0])
        else:
            seen = max(seen, *sides)
    if best[0] < min(longest_edge, seen // 2) or best[0] == 0:
        raise CorruptImageError(f"the file is a camera's raw data, with no preview larger than {best[0]} pixels")
    return Choice(best[1], _orientation(directories.all[0]))


def _is_within(tags: Tags, jpeg: ContainerIO.ContainerIO[bytes]) -> bool:
    """Return whether the first strip lies in the JPEG file, if there are strips."""
    strips = tags.get(tag.STRIP_OFFSETS, jpeg.offset)
    first: int = strips[0] if isinstance(strips, tuple) else strips
    return jpeg.offset <= first < jpeg.offset + jpeg.length


def _jpeg(file: IO[bytes], tags: Tags) -> ContainerIO.ContainerIO[bytes] | None:
    """Return the whole JPEG file that the directory points at, if it does."""
    places = [(tags.get(tag.JPEG_AT), tags.get(tag.JPEG_SIZE))]
    if tags.get(tag.COMPRESSION) in (_OLD_JPEG, _JPEG):
        places.append((tags.get(tag.STRIP_OFFSETS), tags.get(tag.STRIP_SIZES)))
    for at, size in places:
        if isinstance(at, int) and isinstance(size, int) and at > 0:
            file.seek(at)
            if file.read(3) == b"\xff\xd8\xff":
                return ContainerIO.ContainerIO(file, at, size)
    return None
