"""A large TIFF averaged down while it is decoded, so that the memory for it does not grow with its size."""

from collections.abc import Iterator

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from etl.errors import CorruptImageError
from etl.images import colour, tiff, tiff_samples
from etl.images.tiff_directory import Stored

LARGE_BYTES = 64 * 1024**2
"""Memory for decoding at once from which pieces pay; below, it is no more than a decoder process has anyway."""

_FROM_BELOW = (3, 4, 6, 7)
"""EXIF orientations whose first stored row comes last in the upright picture, as a row or a column."""

_TURNED = (5, 6, 7, 8)
"""EXIF orientations whose stored rows are columns of the upright picture."""


def wants_pieces(image: TiffImageFile) -> bool:
    """Return whether the picture should be decoded by `reduced`, because it is large or Pillow misreads it whole."""
    return tiff.memory(image) > LARGE_BYTES or tiff.is_misread(image)


def reduced(image: tiff.Picture, factor: int, orientation: int) -> Image.Image:
    """Return the picture, which must not be loaded yet, upright and averaged over ``factor`` x ``factor`` pixels.

    The same pixels come out as of `etl.images.colour.reducible` and Pillow's ``reduce`` on the whole.  Where pixels
    are in one strip that cannot be cut, the picture is decoded at once and only averaged piece by piece.

    Raises `CorruptImageError` when pixels are missing, and whatever Pillow raises.
    """
    layout = tiff.layout_of(image)
    if layout is None:
        if isinstance(image, Stored) or tiff.is_misread(image):
            raise CorruptImageError("the TIFF stores its pixels in an order that is not supported")
        image.load()
        # What Pillow loads whole, it has turned.
        width, height, orientation = *image.size, 1
    else:
        width, height = layout.width, layout.height
    from_below, turned = orientation in _FROM_BELOW, orientation in _TURNED
    # Blocks begin at the corner of the upright picture, as they would in the whole.
    first = (height % factor or factor) if from_below else factor
    floor = _lowest(_bands(_pictures(image, layout), factor, first)) if image.mode == "F" else None
    columns, rows = -(-width // factor), -(-height // factor)
    small: Image.Image | None = None
    done = 0
    for band in _bands(_pictures(image, layout), factor, first):
        part = Image.Image.reduce(colour.upright(colour.reducible(band, floor), orientation), factor)
        length = part.width if turned else part.height
        at = rows - done - length if from_below else done
        if small is None:
            small = Image.new(part.mode, (rows, columns) if turned else (columns, rows))
        small.paste(part, (at, 0) if turned else (0, at))
        done += length
    assert small is not None
    assert done == rows
    return small


def _lowest(pictures: Iterator[Image.Image]) -> float:
    """Return the lowest finite value of float pictures; 0 when there is none."""
    lows = map(colour.lowest_finite, pictures)
    return min((low for low in lows if low is not None), default=0.0)


def _bands(pictures: Iterator[Image.Image], factor: int, first: int) -> Iterator[Image.Image]:
    """Cut pictures that lie below each other into ones that hold whole blocks of ``factor`` rows.

    The first block has ``first`` rows, and the last what is left.
    """
    block: Image.Image | None = None
    due = first
    for picture in pictures:
        width, height = picture.size
        top = 0
        if due < factor:
            top = min(due, height)
            block = _stacked(block, picture.crop((0, 0, width, top)))
            due -= top
            if due:
                continue
            yield block
            block, due = None, factor
        bottom = height - (height - top) % factor
        step = max(1, tiff.PIECE_BYTES // (4 * width * factor)) * factor
        for upper in range(top, bottom, step):
            yield picture.crop((0, upper, width, min(upper + step, bottom)))
        if bottom < height:
            block = picture.crop((0, bottom, width, height))
            due = factor - block.height
    if block is not None:
        yield block


def _stacked(upper: Image.Image | None, lower: Image.Image) -> Image.Image:
    if upper is None:
        return lower
    # A crop beyond the border keeps the palette, which a new picture would lack.
    both = upper.crop((0, 0, upper.width, upper.height + lower.height))
    both.paste(lower, (0, upper.height))
    return both


def _pictures(image: tiff.Picture, layout: tiff.Layout | None) -> Iterator[Image.Image]:
    if layout is None:
        assert isinstance(image, TiffImageFile)
        return iter([image])
    if isinstance(image, Stored) and tiff_samples.is_needed(image):
        return tiff_samples.pictures(image, layout)
    return tiff.pictures(image, layout)
