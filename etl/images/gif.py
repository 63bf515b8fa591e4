"""GIFs as browsers show them: there is nothing where no frame has been, whatever the header calls background."""

from PIL import Image
from PIL.GifImagePlugin import GifImageFile

_TO_BACKGROUND = 2
"""What becomes of a frame when the next is shown."""


class ComposedGifImageFile(GifImageFile):
    """A GIF whose first frame may cover a part of it; Pillow would put the first colour around that."""

    def load_end(self) -> None:
        """Compose the first frame."""
        super().load_end()
        extent = self.dispose_extent
        if self.tell() or extent in (None, (0, 0, *self.size)) or "transparency" in self.info:
            return
        assert extent is not None
        whole = Image.new("RGBA", self.size).im
        whole.paste(self._crop(self.im.convert("RGBA", Image.Dither.NONE), extent), extent)
        self.im, self._mode = whole, "RGBA"
        if self.dispose and self.disposal_method == _TO_BACKGROUND:
            self.dispose = Image.new("RGBA", self.dispose.size).im
