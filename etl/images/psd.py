"""The composite picture of a Photoshop document; its layers are not read.

Adobe's "Photoshop File Formats Specification" is what sections and numbers are named after.
"""

import struct

from PIL import ImageFile, PsdImagePlugin
from PIL.PsdImagePlugin import PsdImageFile

from etl.errors import CorruptImageError, NotAnImageError

# Pillow does not know 16 bits a sample; the class below corrects what it makes of these.
PsdImagePlugin.MODES.setdefault((1, 16), ("L", 1))
PsdImagePlugin.MODES.setdefault((3, 16), ("RGB", 3))

_DEPTH_AT = 22
_MULTICHANNEL = 7
_VERSION_INFO = 1057
"""The image resource whose fifth byte tells whether there is a composite."""


class CompositePsdImageFile(PsdImageFile):
    """A Photoshop document as it was flattened for others when it was saved."""

    def _open(self) -> None:
        try:
            super()._open()
        except KeyError as error:
            colours, bits = error.args[0]
            raise CorruptImageError(
                f"the PSD has {bits} bits a sample (colour mode {colours}), which are not read; save it with 8 bits"
            ) from error
        version = next((data for number, _, data in self.resources if number == _VERSION_INFO), b"")
        if version[4:5] == b"\0":
            # Photoshop leaves a notice in its place, or white.
            raise NotAnImageError("a PSD that was saved without its composite; save it with maximised compatibility")
        assert self.fp is not None
        if self.mode == "RGBA" and not self._alpha_is_transparency():
            self._without_alpha()
        self.fp.seek(_DEPTH_AT)
        depth, colours = struct.unpack(">HH", self.fp.read(4))
        if colours == _MULTICHANNEL:
            # Pillow would show the first of them.
            raise CorruptImageError("the PSD has separate inks (multichannel), which are not read; save it as RGB")
        if depth == 16:
            self._widen()
        if self.mode == "1":
            # A set bit is black.
            self.tile = [tile._replace(args="1;I") for tile in self.tile]

    def _alpha_is_transparency(self) -> bool:
        """Whether the fourth channel belongs to the composite; else it is a selection that somebody saved."""
        if self._layers_position is None:
            return False
        assert self.fp is not None
        self.fp.seek(self._layers_position)
        return int.from_bytes(self.fp.read(2), "big", signed=True) < 0

    def _without_alpha(self) -> None:
        self._mode, self.tile = "RGB", self.tile[:3]

    def _widen(self) -> None:
        size = 2 * self.size[0] * self.size[1]
        first = self.tile[0].offset if self.tile else 0
        self.tile = [
            ImageFile._Tile(
                tile.codec_name,
                tile.extents,
                first + number * size if tile.codec_name == "raw" else tile.offset,
                f"{tile.args};16B",
            )
            for number, tile in enumerate(self.tile)
        ]
