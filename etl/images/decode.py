"""An original in any accepted format -> the working copy that the model will see.

Runs inside a decoder process (`etl.images.decoder_worker`): the files come from strangers.
"""

import functools
import hashlib
import io
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile, Jpeg2KImagePlugin, JpegImagePlugin, TiffImagePlugin, features

from etl.domain.items import DecodedImage, WorkingCopy
from etl.domain.statuses import ImageFlag
from etl.errors import LocalFileError, TruncatedImageError
from etl.images import (
    animation,
    colour,
    jpeg2000,
    leniency,
    tiff,
    tiff_choice,
    truncated,
)
from etl.images import tiff_bands as bands
from etl.images import tiff_tags as tag
from etl.images.flags import image_flags
from etl.images.formats import FORMATS, ImageFormat, format_of
from etl.images.refusals import errors_mapped, missing
from etl.images.resize import shrink
from etl.images.sniff import HEAD_BYTES
from etl.images.tiff_directory import Stored

JPEG_QUALITY = 90
"""Of working copies: at 1024 px the vision tower's 336 px input hides what it loses, at a third of the size of 95."""

_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
"""Formats whose frames are one picture's; pages of a TIFF are not."""

_MIN_IS_WHITE = 0


@dataclass(frozen=True)
class Picture:
    """A decoded original.

    Attributes:
        image: upright RGB, no longer than the limit that was asked for.
        mime: the type that the bytes have.
        width, height: of the original in pixels, upright; of a PDF's page as it was rendered.
        flags: what decoding alone can tell: that something was missing.
    """

    image: Image.Image
    mime: str
    width: int
    height: int
    flags: frozenset[ImageFlag] = frozenset()


def decode(path: Path, *, longest_edge: int, max_pixels: int, accept_truncated: float = 1.0) -> Picture:
    """Decode the first picture or page of the file to upright RGB with at most ``longest_edge`` pixels a side.

    One that ends too early, or is damaged, is accepted if it has at least the part ``accept_truncated`` of its pixels.

    Raises:
        LocalFileError: the file cannot be read.
        NotAnImageError: its bytes are of no accepted format.
        DecoderMissingError: they are of one whose package is not installed.
        ImageTooLargeError: its header announces more than ``max_pixels``; nothing was decoded.
        TruncatedImageError: it is cut short, or damaged from some point on.
        CorruptImageError: it is broken or of an unsupported kind of its format.
        DecoderLimitError: memory ran out.
    """
    head = _read_head(path)
    known = format_of(head)
    with errors_mapped(known, path, max_pixels):
        if known is not None and not known.installed:
            raise missing(known)
        if known is not None and known.mime == "image/tiff":
            return _decode_tiff(path, known, longest_edge, accept_truncated)
        if known is None or known.by_pillow:
            return _decode_picture(path, known, longest_edge, accept_truncated)
        image = _resize(pkgutil.resolve_name(known.opener)(path, longest_edge), longest_edge)
        return Picture(image, known.mime, *image.size, flags=_pages(image.info.get("pages", 1)))


def make_working_copy(
    picture_file: Path, *, longest_edge: int, max_pixels: int, accept_truncated: float = 1.0
) -> tuple[DecodedImage, bytes]:
    """Decode the file; return what became of it, and the bytes of its working copy.  Raises what `decode` raises."""
    picture = decode(picture_file, longest_edge=longest_edge, max_pixels=max_pixels, accept_truncated=accept_truncated)
    data = encode_working_copy(picture.image)
    width, height = picture.image.size
    working = WorkingCopy(hashlib.sha256(data).hexdigest(), len(data), width, height, longest_edge)
    flags = picture.flags | image_flags(picture.image, picture.width, picture.height)
    return DecodedImage(picture.mime, picture.width, picture.height, working, tuple(sorted(flags))), data


def encode_working_copy(image: Image.Image) -> bytes:
    """Return the RGB picture as the bytes of a baseline JPEG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    image.save(
        buffer,
        "JPEG",
        quality=JPEG_QUALITY,
        subsampling="4:2:0",
        optimize=False,
        progressive=False,
        exif=b"",
        icc_profile=None,
        comment=b"",
    )
    return buffer.getvalue()


def working_copy_image(picture: Image.Image, longest_edge: int = 1024) -> Image.Image:
    """Return an upright RGB picture as the model would see it: shrunk, and through the JPEG round trip."""
    data = encode_working_copy(_resize(_reduce(picture.convert("RGB"), longest_edge), longest_edge))
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        image.load()
        return image.copy()


def _read_head(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise LocalFileError(f"{path}: no such file" if not path.exists() else f"{path}: not a regular file")
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except (OSError, ValueError) as error:
        raise LocalFileError(f"{path}: {error}") from error


def _pages(number: int) -> frozenset[ImageFlag]:
    return frozenset({ImageFlag.PAGES} if number > 1 else ())


def _decode_tiff(path: Path, known: ImageFormat, longest_edge: int, accept_truncated: float) -> Picture:
    with path.open("rb") as file:
        choice = tiff_choice.chosen(file, longest_edge)
        if choice.picture is None:
            picture = _decode_picture(path, known, longest_edge, accept_truncated)
        else:
            picture = _decode_choice(choice.picture, choice.orientation, longest_edge, known.mime)
    return replace(picture, flags=picture.flags | _pages(choice.pages))


def _decode_choice(stored: Stored | IO[bytes], orientation: int, longest_edge: int, mime: str) -> Picture:
    """Decode a picture of a TIFF that Pillow does not find by itself."""
    if not isinstance(stored, Stored):
        picture = _decode_picture(stored, None, longest_edge, 1.0)
        width, height, image = picture.width, picture.height, colour.upright(picture.image, orientation)
    else:
        width, height = stored.size
        if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{width}x{height}")
        small = bands.reduced(stored, max(1, max(stored.size) // longest_edge), orientation)
        image = _finished(small, longest_edge, stored.tag_v2.get(tag.PROFILE), is_inverted=_is_min_is_white(stored))
    if orientation >= 5:
        width, height = height, width
    return Picture(image, mime, width, height)


def _finished(
    small: Image.Image, longest_edge: int, icc_profile: bytes | None, *, is_inverted: bool = False
) -> Image.Image:
    """Return averaged pixels in RGB and of the size that is wanted."""
    if small.mode in ("I", "F"):
        small = colour.stretch(small, min_is_white=is_inverted)
    return colour.to_rgb(_resize(colour.opaque(small), longest_edge), icc_profile)


def _decode_picture(
    path: Path | IO[bytes], known: ImageFormat | None, longest_edge: int, accept_truncated: float
) -> Picture:
    there = 1.0
    with _opened(path, known) as image:
        mime = (known or next(line for line in _built_in() if isinstance(image, _plugin(line)))).mime
        width, height = image.size
        icc_profile = image.info.get("icc_profile")
        _prepare(image, longest_edge)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and bands.wants_pieces(image):
            factor = max(1, max(image.size) // longest_edge)
            small, orientation = bands.reduced(image, factor, _orientation(image)), 1
        elif isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile):
            samples, icc_profile, there = jpeg2000.loaded(image, longest_edge)
            _check_part(there, accept_truncated, "the JPEG 2000 is cut short or damaged")
            small, orientation = _reduce(colour.reducible(samples), longest_edge), 1
        else:
            image, there = _loaded(image, path, known, longest_edge, accept_truncated)
            orientation = _orientation(image)
            pixels: Image.Image = image
            if image.format in _ANIMATED and getattr(image, "is_animated", False):
                pixels = animation.something_shown(image)
            small = _reduce(colour.reducible(pixels), longest_edge)
    rgb = _finished(small, longest_edge, icc_profile, is_inverted=_is_min_is_white(image))
    if orientation >= 5:
        width, height = height, width
    flags = frozenset({ImageFlag.TRUNCATED} if there < 1 else ())
    return Picture(colour.upright(rgb, orientation), mime, width, height, flags)


@functools.cache
def _plugin(known: ImageFormat) -> type[ImageFile.ImageFile]:
    """Return what Pillow opens the format with; imported by name, or else it would load its fifty others too."""
    plugin: type[ImageFile.ImageFile] = pkgutil.resolve_name(known.opener)
    if not plugin.__module__.startswith("PIL."):
        Image.register_open(plugin.format or "", plugin)
    return plugin


def _built_in() -> list[ImageFormat]:
    """Return the formats that Pillow tries where the first bytes tell nothing."""
    return [line for line in FORMATS if line.by_pillow and not line.extra and line.installed]


def _opened(file: Path | IO[bytes], known: ImageFormat | None) -> ImageFile.ImageFile:
    plugins = [_plugin(line) for line in ([known] if known else _built_in())]
    return Image.open(file, formats=[plugin.format or "" for plugin in plugins])


def _prepare(image: ImageFile.ImageFile, longest_edge: int) -> None:
    """Have an opened picture loaded no larger than it is wanted, and as Pillow alone would not."""
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        # Scaling in the DCT costs a third; thumbnail() would not do it at 3000 -> 1024.
        if leniency.LOSSLESS not in image.info:
            image.draft(image.mode, _fit(image.size, longest_edge, floor=True))
        _decode_into_place(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tiff.mend_byte_order(image)


def _loaded(
    image: ImageFile.ImageFile,
    path: Path | IO[bytes],
    known: ImageFormat | None,
    longest_edge: int,
    accept_truncated: float,
) -> tuple[ImageFile.ImageFile, float]:
    """Return the picture, loaded, and the part of its pixels that is there: at least what is accepted."""
    try:
        image.load()
        how = truncated.UNFINISHED
        if known is None or not isinstance(path, Path) or not truncated.looks_unfinished(image, path):
            return image, 1.0
    except OSError as error:
        how = truncated.how_broken(error)
        if known is None or not isinstance(path, Path) or not how:
            raise

    def again(file: Path | IO[bytes]) -> ImageFile.ImageFile:
        opened = _opened(file, known)
        _prepare(opened, longest_edge)
        return opened

    image, there = truncated.load(path, again, how)
    _check_part(there, accept_truncated, f"the {known.name} is {how}")
    return image, there


def _check_part(there: float, accepted: float, words: str) -> None:
    if there < accepted:
        raise TruncatedImageError(f"{words}: {int(there * 100)}% of its pixels are there")


def _decode_into_place(image: JpegImagePlugin.JpegImageFile) -> None:
    """Let libjpeg-turbo write colours as Pillow keeps them, four bytes a pixel, which saves a pass over the picture."""
    if image.mode == "RGB" and features.check_feature("libjpeg_turbo"):
        image.tile = [tile._replace(args=("RGBX", "")) for tile in image.tile]


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that is still to be applied, 1 to 8; 1 when the EXIF data are broken."""
    try:
        value = image.getexif().get(tag.ORIENTATION, 1)
    # The EXIF parser fails in as many ways as there are cameras; the picture itself is good.
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _is_min_is_white(image: Image.Image | Stored) -> bool:
    """Whether the file's lowest value means white; Pillow inverts such TIFFs up to 8 bits, but not wider ones."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile | Stored):
        return False
    return bool(image.tag_v2.get(tag.PHOTOMETRIC) == _MIN_IS_WHITE)


def _fit(size: tuple[int, int], longest_edge: int, *, floor: bool = False) -> tuple[int, int]:
    """Return the size scaled down so that its longer side is at most ``longest_edge``; never less than 1."""
    longest = max(size)
    if longest <= longest_edge:
        return size
    to_integer: Callable[[float], int] = int if floor else round
    width, height = (max(1, to_integer(side * longest_edge / longest)) for side in size)
    return width, height


def _reduce(image: Image.Image, longest_edge: int) -> Image.Image:
    """Average blocks of pixels as far as a whole factor goes: most of the work at a tenth of the filter's cost."""
    factor = max(image.size) // longest_edge
    # Not image.reduce(): on JPEG 2000 files that name is a property.
    return Image.Image.reduce(image, factor) if factor > 1 else image


def _resize(image: Image.Image, longest_edge: int) -> Image.Image:
    size = _fit(image.size, longest_edge)
    return image if size == image.size else shrink(image, size)
