"""PBM to PPM, and samples of one or two bytes on any scale: Pillow's own decoder takes a hundred times as long."""

from PIL import Image, ImageFile
from PIL.PpmImagePlugin import PpmImageFile

__all__ = ["PpmImageFile"]

_PIECE_BYTES = 4 * 1024**2


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
                scaled = samples.point(lambda value: value * (white / top) + 0.5)
                data += scaled.convert(mode).tobytes()
        there = len(data) // (across * (4 if mode == "I" else 1))
        if there < self.state.ysize and not ImageFile.LOAD_TRUNCATED_IMAGES:
            raise OSError("the file is truncated")
        self.state.ysize = there
        self.set_as_raw(bytes(data), "I;32N" if mode == "I" else self.mode)
        return -1, 0


Image.register_decoder("ppm", ScaledDecoder)
