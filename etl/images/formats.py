"""The accepted picture formats: a line of the table here is all that one more needs.

Cheap to import, and names what opens a format instead of importing it: ingest knows pictures of a directory by it, and
every decoder process starts with it.
"""

import functools
import importlib.util
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
        opener: ``module:name`` of the ``...ImageFile``, a plugin of Pillow's, that opens it, or else of a function that
            is given a file's path and the longest edge that is wanted, and returns its first page upright in RGB, of
            about that size, whose ``info`` may say how many ``pages`` there are.
        needs: the module without which it cannot be opened, where an installation may lack that.
        extra: of this program, that brings the module.
    """

    name: str
    mime: str
    suffixes: tuple[str, ...]
    magic: re.Pattern[bytes]
    opener: str
    needs: str = ""
    extra: str = ""

    @property
    def by_pillow(self) -> bool:
        """Whether Pillow opens it."""
        return self.opener.endswith("ImageFile")

    @property
    def installed(self) -> bool:
        """Whether what opens it is there."""
        return not self.needs or importlib.util.find_spec(self.needs) is not None


def _format(
    name: str, mime: str, suffixes: str, magic: bytes, opener: str, *, needs: str = "", extra: str = ""
) -> ImageFormat:
    return ImageFormat(
        name=name,
        mime=mime,
        suffixes=tuple(suffixes.split()),
        magic=re.compile(magic, re.DOTALL),
        opener=opener,
        needs=needs,
        extra=extra,
    )


FORMATS = (
    # An MPO is a JPEG with others behind it.
    _format(
        "JPEG", "image/jpeg", ".jpg .jpeg .jpe .jfif .pjpeg .pjp .mpo", rb"\xff\xd8",
        "PIL.JpegImagePlugin:JpegImageFile",
    ),
    _format("PNG", "image/png", ".png .apng", rb"\x89PNG\r\n\x1a\n", "PIL.PngImagePlugin:PngImageFile"),
    # Also raw data of cameras, of which the preview is shown.
    _format(
        "TIFF", "image/tiff", ".tif .tiff .btf .dng .cr2 .nef .nrw .arw .pef .srw", rb"II[*+]\0|MM\0[*+]",
        "PIL.TiffImagePlugin:TiffImageFile",
    ),
    _format("WebP", "image/webp", ".webp", rb"RIFF.{4}WEBP", "PIL.WebPImagePlugin:WebPImageFile"),
    _format("GIF", "image/gif", ".gif", rb"GIF8", "etl.images.gif:ComposedGifImageFile"),
    # Two letters could begin any text; the reserved fields of a BMP header are zero.
    _format("BMP", "image/bmp", ".bmp", rb"BM.{4}\0{4}", "etl.images.bmp:MaskedBmpImageFile"),
    # A BMP without its file's header: size of the other, width, height, one plane, bits of a pixel.
    _format(
        "DIB", "image/x-ms-dib", ".dib",
        rb"(\x0c\0{3}.{4}|[\x28\x34\x38\x40\x6c\x7c]\0{3}.{8})\x01\0[\x01\x04\x08\x10\x18\x20]\0",
        "PIL.BmpImagePlugin:DibImageFile",
    ),
    _format(
        "JPEG 2000", "image/jp2", ".jp2 .j2k .j2c .jpc .jpf .jpx .jph", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
        "PIL.Jpeg2KImagePlugin:Jpeg2KImageFile",
    ),
    _format("RAF", "image/x-fuji-raf", ".raf", rb"FUJIFILMCCD-RAW", "etl.images.raw:RafImageFile"),
    _format("RW2", "image/x-panasonic-rw2", ".rw2 .rwl", rb"IIU\0", "etl.images.raw:Rw2ImageFile"),
    _format("CR3", "image/x-canon-cr3", ".cr3", rb".{4}ftypcrx ", "etl.images.raw:Cr3ImageFile"),
    # Brands of ISO 23000-22 (MIAF), the first of them or one of those that it is compatible with.
    _format(
        "AVIF", "image/avif", ".avif .avifs", rb".{4}ftyp(avi[fs]|(mif1|msf1|miaf).{4}(.{4}){0,12}?avi[fs])",
        "etl.images.avif:AvifImageFile", needs="PIL._avif",
    ),
    _format(
        "HEIF", "image/heic", ".heic .heif .hif .heics .heifs", rb".{4}ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)",
        "etl.images.heif:HeifImageFile", needs="pillow_heif", extra="heif",
    ),
    _format(
        "JPEG XL", "image/jxl", ".jxl", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
        "etl.images.jxl:BoundedJXLImageFile", needs="pillow_jxl", extra="jxl",
    ),
    _format("PSD", "image/vnd.adobe.photoshop", ".psd", rb"8BPS\0\x01", "etl.images.psd:CompositePsdImageFile"),
    _format(
        "PNM", "image/x-portable-anymap", ".pbm .pgm .ppm .pnm", rb"P[1-6](\s+|#[^\r\n]*[\r\n])+\d",
        "etl.images.pnm:PpmImageFile",
    ),
    _format("PAM", "image/x-portable-arbitrarymap", ".pam", rb"P7\s*\n", "etl.images.pam:PamImageFile"),
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


@functools.cache
def accept_header() -> str:
    """Return what to ask servers for: the types that can be opened here, and anything else where there is none."""
    types = [known.mime for known in FORMATS if known.installed]
    return ", ".join([*types, "image/*;q=0.8", "*/*;q=0.5"])
