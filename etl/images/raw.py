"""Raw data of cameras that are no TIFFs: the JPEG that the camera put beside them for people to look at.

Of DNG, CR2, NEF, ARW and PEF, which are TIFFs, `etl.images.tiff_choice` takes it.
"""

import struct
from typing import IO

from PIL import ContainerIO
from PIL.JpegImagePlugin import JpegImageFile

from etl.errors import CorruptImageError
from etl.images.formats import format_of
from etl.images.jpeg2000_boxes import walk
from etl.images.sniff import HEAD_BYTES

_LEAST = 1000
"""Pixels of the longer side; what is smaller is a thumbnail."""

_RAF_JPEG_AT = 84
_RW2_JPEG, _MOST_TAGS = 0x2E, 1000
_CANON, _PREVIEW = bytes.fromhex("85c0b687820f11e08111f4ce462b6a48"), bytes.fromhex("eaf42b5e1c984b88b9fbb7dc406e4d16")
"""Names of Canon's own boxes."""


class _PreviewImageFile(JpegImageFile):
    def _place(self, file: IO[bytes]) -> tuple[int, int]:
        """Return where in the file the JPEG begins, and its bytes."""
        raise NotImplementedError

    def _open(self) -> None:
        assert self.fp is not None
        known = format_of(self.fp.read(HEAD_BYTES))
        if known is None or known.name != self.format:
            raise SyntaxError("no raw data")
        at, size = self._place(self.fp)
        self.fp.seek(at)
        if self.fp.read(3) != b"\xff\xd8\xff":
            raise CorruptImageError("the file is a camera's raw data, with no preview")
        self.fp = ContainerIO.ContainerIO(self.fp, at, size)
        super()._open()
        if max(self.size) < _LEAST:
            raise CorruptImageError(
                f"the file is a camera's raw data, with no preview larger than {max(self.size)} pixels"
            )


class RafImageFile(_PreviewImageFile):
    """Fujifilm's."""

    format = "RAF"

    def _place(self, file: IO[bytes]) -> tuple[int, int]:
        file.seek(_RAF_JPEG_AT)
        at, size = struct.unpack(">II", file.read(8))
        return at, size


class Rw2ImageFile(_PreviewImageFile):
    """Panasonic's and Leica's: a directory as in a TIFF."""

    format = "RW2"

    def _place(self, file: IO[bytes]) -> tuple[int, int]:
        file.seek(4)
        file.seek(int.from_bytes(file.read(4), "little"))
        count = int.from_bytes(file.read(2), "little")
        for tag, _, size, at in struct.iter_unpack("<HHII", file.read(12 * min(count, _MOST_TAGS))):
            if tag == _RW2_JPEG:
                return at, size
        return 0, 0


class Cr3ImageFile(_PreviewImageFile):
    """Canon's: boxes of ISO/IEC 14496-12 (https://github.com/lclevy/canon_cr3)."""

    format = "CR3"

    def _place(self, file: IO[bytes]) -> tuple[int, int]:
        place = (0, 0)
        for name, start, end in walk(file, 0, file.seek(0, 2)):
            inner = walk(file, start, end) if name == b"moov" else [(name, start, end)]
            for kind, at, to in inner:
                file.seek(at)
                owner = file.read(16) if kind == b"uuid" else b""
                if owner == _CANON:
                    self._take_exif(file, at + 16, to)
                elif owner == _PREVIEW:
                    file.seek(at + 24 + 8 + 12)
                    place = (at + 24 + 8 + 16, int.from_bytes(file.read(4)))
        return place

    def _take_exif(self, file: IO[bytes], start: int, end: int) -> None:
        for name, at, to in walk(file, start, end):
            if name == b"CMT1":
                file.seek(at)
                self.info["exif"] = b"Exif\0\0" + file.read(min(to - at, 0xFFFF))
