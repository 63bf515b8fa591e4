"""The picture formats of the demo: everything that archives serve, each a way to decode wrongly."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

_ORIENTATION = 0x0112
_TURN_CLOCKWISE = 6
"""EXIF: the stored pixels must be turned by 90 degrees clockwise to stand upright."""


@dataclass(frozen=True)
class PictureFormat:
    """One way to write a picture.

    Attributes:
        name: for people.
        suffix: of file names, with its dot.
        mime: content type.
        encode: from an upright RGB picture to the bytes of a file.
    """

    name: str
    suffix: str
    mime: str
    encode: Callable[[Image.Image], bytes]


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned(picture: Image.Image) -> bytes:
    """Return a JPEG whose pixels lie on their side; only who honours its EXIF tag sees it upright."""
    exif = Image.Exif()
    exif[_ORIENTATION] = _TURN_CLOCKWISE
    return _saved(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=92, exif=exif)


FORMATS = (
    PictureFormat("JPEG", ".jpg", "image/jpeg", lambda picture: _saved(picture, "JPEG", quality=92)),
    PictureFormat("PNG", ".png", "image/png", lambda picture: _saved(picture, "PNG")),
    PictureFormat("WebP", ".webp", "image/webp", lambda picture: _saved(picture, "WEBP", quality=90)),
    PictureFormat("TIFF", ".tif", "image/tiff", lambda picture: _saved(picture, "TIFF")),
    PictureFormat("PDF", ".pdf", "application/pdf", lambda picture: _saved(picture, "PDF", quality=92)),
    PictureFormat("turned JPEG", ".jpg", "image/jpeg", _turned),
    PictureFormat(
        "CMYK JPEG", ".jpg", "image/jpeg", lambda picture: _saved(picture.convert("CMYK"), "JPEG", quality=92)
    ),
    PictureFormat("TIFF LZW", ".tif", "image/tiff", lambda picture: _saved(picture, "TIFF", compression="tiff_lzw")),
    PictureFormat(
        "palette PNG",
        ".png",
        "image/png",
        lambda picture: _saved(picture.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    ),
    PictureFormat(
        "TIFF JPEG", ".tif", "image/tiff", lambda picture: _saved(picture, "TIFF", compression="jpeg", quality=92)
    ),
    PictureFormat(
        "TIFF CMYK Deflate",
        ".tif",
        "image/tiff",
        lambda picture: _saved(picture.convert("CMYK"), "TIFF", compression="tiff_adobe_deflate"),
    ),
    PictureFormat("JPEG 2000", ".jp2", "image/jp2", lambda picture: _saved(picture, "JPEG2000")),
    PictureFormat("GIF", ".gif", "image/gif", lambda picture: _saved(picture, "GIF")),
    PictureFormat("BMP", ".bmp", "image/bmp", lambda picture: _saved(picture, "BMP")),
)
