"""Pillow taught to put up with broken metadata, as every viewer does: they are not the picture.

Imported for what it changes: how Pillow's plugins read PNG's ancillary chunks and what is before a JPEG's pixels.
"""

import contextlib
import os
import struct
import zlib
from typing import Any

from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin
from PIL.PngImagePlugin import PngStream

from etl.errors import CorruptImageError

_PROFILE_BYTES = 32 * 1024**2
"""Of an unpacked colour profile; the largest that printers' makers give away have a few MB."""

_PROFILE_HEAD = 14
"""Bytes before what a JPEG's segment has of its profile: name, number and how many there are."""

LOSSLESS = "lossless"
"""Key of ``info`` of JPEGs that were compressed without loss, which libjpeg cannot decode at a smaller size."""

MANY_SCANS = "scans"
"""Key of ``info`` of JPEGs whose first scan is not all of them."""

_ANCILLARY = 0x20
"""The bit of a chunk's name that makes it one without which the pixels can be shown (PNG 5.4)."""

_PASSED_OVER = (b"tEXt", b"zTXt", b"iTXt", b"pHYs")
"""Chunks that say nothing of the pixels, and are not even unpacked."""

_TURNED = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
"""What those of them are called that may say how the picture is turned."""


class _LenientPngStream(PngStream):
    """The chunks of a PNG, of which those that the pixels do not need may be broken."""

    def call(self, cid: bytes, pos: int, length: int) -> bytes:
        if not cid[0] & _ANCILLARY:
            return super().call(cid, pos, length)
        assert self.fp is not None
        may_turn = self.fp.read(min(length, max(map(len, _TURNED)))).startswith(_TURNED)
        self.fp.seek(pos)
        # What reaches beyond the file's end is passed over, too: then no chunk follows, of pixels or other.
        there = min(length, self.fp.seek(0, os.SEEK_END) - pos)
        self.fp.seek(pos)
        if cid in _PASSED_OVER and not may_turn:
            return self.fp.read(there)
        try:
            return super().call(cid, pos, length)
        # The last of these for chunks that Pillow does not know, and would read itself.
        except (ValueError, SyntaxError, IndexError, OSError, struct.error, zlib.error, AttributeError):
            self.fp.seek(pos)
            return self.fp.read(there)

    def chunk_CgBI(self, pos: int, length: int) -> bytes:  # noqa: ARG002 -- as Pillow calls it
        """Raise `CorruptImageError` for what Xcode makes of a PNG."""
        raise CorruptImageError("the PNG is of a kind that only Apple's devices read (CgBI); save it as a plain PNG")

    def crc(self, cid: bytes, data: bytes) -> None:
        # Where it is the header that is wrong and not its sum, rows of pixels begin with filters that there are not.
        if cid[0] & _ANCILLARY or cid == b"IHDR":
            self.crc_skip(cid, data)
        else:
            super().crc(cid, data)


_segments: dict[int, tuple[str, str, Any]] = JpegImagePlugin.MARKER


def _application_segment(image: JpegImagePlugin.JpegImageFile, marker: int) -> None:
    # Short segments; what is cut short is an OSError, and stays one.
    with contextlib.suppress(struct.error, IndexError, ValueError, SyntaxError):
        JpegImagePlugin.APP(image, marker)
    image.icclist = [part for part in image.icclist if len(part) > _PROFILE_HEAD]


def _frame_without_loss(image: JpegImagePlugin.JpegImageFile, marker: int) -> None:
    JpegImagePlugin.SOF(image, marker)
    image.info[LOSSLESS] = True


def _scan(image: JpegImagePlugin.JpegImageFile, _: int) -> None:
    assert image.fp is not None
    header = ImageFile._safe_read(image.fp, int.from_bytes(image.fp.read(2)) - 2)
    if header[:1] != bytes((image.layers,)) or "progressive" in image.info:
        image.info[MANY_SCANS] = True


PngImagePlugin.PngStream = _LenientPngStream  # type: ignore[misc]
PngImagePlugin.MAX_TEXT_CHUNK = _PROFILE_BYTES
JpegImagePlugin._accept = lambda prefix: prefix.startswith(b"\xff\xd8")
Image.register_open(JpegImagePlugin.JpegImageFile.format, JpegImagePlugin.jpeg_factory, JpegImagePlugin._accept)
# What is between segments libjpeg passes over, or does not.
for _number in range(0xFF01, 0xFFC0):
    _segments[_number] = ("", "", None)
_segments[0xFFDA] = ("SOS", "Start of scan", _scan)
_segments[0xFFC3] = ("SOF3", "Lossless", _frame_without_loss)
for _marker, (_name, _meaning, _handler) in _segments.items():
    if _handler is JpegImagePlugin.APP:
        _segments[_marker] = (_name, _meaning, _application_segment)
