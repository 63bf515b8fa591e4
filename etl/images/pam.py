"""Netpbm's PAM: a header of words, then samples row by row (https://netpbm.sourceforge.net/doc/pam.html)."""

from PIL import ImageFile

from etl.images import pnm  # noqa: F401 -- for its decoder

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Samples of a pixel -> Pillow's mode."""

_MAX_LINES, _MAX_LINE = 100, 1000
"""Of a header, comments included."""


class PamImageFile(ImageFile.ImageFile):
    """A PAM of one to four samples a pixel."""

    format = "PAM"
    format_description = "Portable arbitrary map"

    def _open(self) -> None:
        fields = self._header()
        width, height, depth, top = (int(fields.get(name, b"0")) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
        if depth not in _MODES or min(width, height) < 1 or not 0 < top < 65536:
            raise ValueError(f"{depth} samples a pixel of up to {top}")
        assert self.fp is not None
        is_ink = depth == 4 and fields.get(b"TUPLTYPE", b"").startswith(b"CMYK")
        self._mode, self._size = "CMYK" if is_ink else _MODES[depth], (width, height)
        decoder, args = ("raw", self.mode) if top == 255 else ("ppm", (self.mode, top))
        self.tile = [ImageFile._Tile(decoder, (0, 0, width, height), self.fp.tell(), args)]

    def _header(self) -> dict[bytes, bytes]:
        assert self.fp is not None
        if self.fp.readline(_MAX_LINE).strip() != b"P7":
            raise SyntaxError("no PAM")
        fields: dict[bytes, bytes] = {}
        for _ in range(_MAX_LINES):
            name, _, value = self.fp.readline(_MAX_LINE).strip().partition(b" ")
            if name == b"ENDHDR":
                return fields
            if not name.startswith(b"#"):
                fields[name] = value
        raise ValueError("its header has no end")
