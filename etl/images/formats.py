"""The accepted picture formats: a line of the table here is all that one more needs.

Cheap to import, and names what opens a format instead of importing it: ingest knows pictures of a directory by it, and
every decoder process starts with it.
"""

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFormat:
    """A format that originals may have.

    Attributes:
        name: for people.
        mime: its type on record.
        suffixes: of its files' names, in lower case.
        magic: matches the first `etl.images.sniff.HEAD_BYTES` of its files.
        opener: ``module:name`` of the class of Pillow that opens it, or else of a function that is given a file's path
            and the longest edge that is wanted, and returns its first page upright in RGB, of about that size.
    """

    name: str
    mime: str
    suffixes: tuple[str, ...]
    magic: re.Pattern[bytes]
    opener: str

    @property
    def by_pillow(self) -> bool:
        """Whether Pillow opens it."""
        return self.opener.startswith("PIL.")


def _format(name: str, mime: str, suffixes: str, magic: bytes, opener: str) -> ImageFormat:
    return ImageFormat(
        name=name, mime=mime, suffixes=tuple(suffixes.split()), magic=re.compile(magic, re.DOTALL), opener=opener
    )


FORMATS = (
    _format("JPEG", "image/jpeg", ".jpg .jpeg .jpe", rb"\xff\xd8\xff", "PIL.JpegImagePlugin:JpegImageFile"),
    _format("PNG", "image/png", ".png", rb"\x89PNG\r\n\x1a\n", "PIL.PngImagePlugin:PngImageFile"),
    _format("TIFF", "image/tiff", ".tif .tiff", rb"II[*+]\0|MM\0[*+]", "PIL.TiffImagePlugin:TiffImageFile"),
    _format("WebP", "image/webp", ".webp", rb"RIFF.{4}WEBP", "PIL.WebPImagePlugin:WebPImageFile"),
    _format("GIF", "image/gif", ".gif", rb"GIF8", "PIL.GifImagePlugin:GifImageFile"),
    # Two letters could begin any text; the reserved fields of a BMP header are zero.
    _format("BMP", "image/bmp", ".bmp", rb"BM.{4}\0{4}", "PIL.BmpImagePlugin:BmpImageFile"),
    _format(
        "JPEG 2000", "image/jp2", ".jp2", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
        "PIL.Jpeg2KImagePlugin:Jpeg2KImageFile",
    ),
    # Last: ISO 32000-1, note 13 of annex H, accepts its marker anywhere in the first 1024 bytes.
    _format("PDF", "application/pdf", ".pdf", rb".*?%PDF-", "etl.images.pdf:first_page"),
)  # fmt: skip
"""In the order in which Pillow tries them where the first bytes tell nothing."""


def format_of(head: bytes) -> ImageFormat | None:
    """Return the accepted format that a file which begins with these bytes has, or ``None``."""
    return next((known for known in FORMATS if known.magic.match(head)), None)


@functools.cache
def suffixes() -> tuple[str, ...]:
    """Return how names of pictures end, in lower case."""
    return tuple(suffix for known in FORMATS for suffix in known.suffixes)
