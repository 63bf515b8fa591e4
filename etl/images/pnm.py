"""PBM to PPM: samples of one or two bytes on any scale, for which Pillow takes a hundred times as long, or in text."""

import io
import re
import sys
from array import array

from PIL import Image, ImageFile
from PIL.PpmImagePlugin import PpmImageFile, PpmPlainDecoder

__all__ = ["PpmImageFile"]

_PIECE_BYTES = 4 * 1024**2
_TEXT_BYTES = 64 * 1024
_COMMENT = re.compile(rb"#[^\r\n]*[\r\n]")


class ScaledDecoder(ImageFile.PyDecoder):
    """Samples from 0 to the last of its arguments, to the 8 bits of their mode, or 16 of ``I``."""

    _pulls_fd = True

    def decode(self, buffer: Image.DecoderInput) -> tuple[int, int]:  # noqa: ARG002 -- reads the file
        """Read all rows.  Raises `OSError` where some are missing, unless Pillow is told to put up with that."""
        assert self.fd is not None
        top: int = self.args[-1]
        white, mode = (65535, "I") if self.mode == "I" else (255, "L")
        stored, size = ("L", 1) if top < 256 else ("I;16B", 2)
        across = self.state.xsize * Image.getmodebands(self.mode)
        step = max(1, _PIECE_BYTES // (across * size))
        data = bytearray()
        for row in range(0, self.state.ysize, step):
            piece = self.fd.read(across * size * min(step, self.state.ysize - row))
            if down := len(piece) // (across * size):
                samples = Image.frombytes(stored[:4], (across, down), piece[: across * size * down], "raw", stored)
                if mode == "I":
                    samples = samples.convert("I")
                # Of wide numbers Pillow cuts off what is behind the point, others it rounds.
                scaled = samples.point(lambda value: value * (white / top) + (size - 1) / 2)
                data += scaled.convert(mode).tobytes()
        there = len(data) // (across * (4 if mode == "I" else 1))
        if there < self.state.ysize and not ImageFile.LOAD_TRUNCATED_IMAGES:
            raise OSError("the file is truncated")
        self.state.ysize = there
        self.set_as_raw(bytes(data), "I;32N" if mode == "I" else self.mode)
        return -1, 0


class TextDecoder(ScaledDecoder, PpmPlainDecoder):
    """The same as numbers of text, with comments between them."""

    def decode(self, buffer: Image.DecoderInput) -> tuple[int, int]:
        """Read all rows.  Raises what the other does, and `ValueError` or `OverflowError` for what is no number."""
        if self.mode == "1":
            return PpmPlainDecoder.decode(self, buffer)
        assert self.fd is not None
        samples, rest = array("B" if self.args[-1] < 256 else "H"), b""
        count = self.state.xsize * self.state.ysize * Image.getmodebands(self.mode)
        while len(samples) < count and (read := self.fd.read(_TEXT_BYTES)):
            text, mark, comment = _COMMENT.sub(b" ", rest + read).partition(b"#")
            numbers = text.split()
            rest = mark + comment if mark or text[-1:].isspace() else numbers.pop()
            if len(rest) > _TEXT_BYTES:
                raise ValueError("Token too long")
            samples.extend(map(int, numbers))
        if rest.isdigit():
            samples.append(int(rest))
        if sys.byteorder == "little":
            samples.byteswap()
        self.fd = io.BytesIO(samples.tobytes())
        return super().decode(buffer)


Image.register_decoder("ppm", ScaledDecoder)
Image.register_decoder("ppm_plain", TextDecoder)
