"""From pixels to what the vision tower is given, on the device that the pixels lie on."""

from typing import Any

import torch
from PIL import Image


class Normaliser:
    """Rescales and normalises as an image processor does: by a table of what it makes of each value of a byte.

    So the result is the processor's own, bit for bit, whatever it computes in; `etl.caption.pictures.pixels` says which
    processors can be taken apart like this.
    """

    def __init__(self, table: torch.Tensor) -> None:
        """``table`` has shape [3, 256] and holds float32: the outcome by channel and value."""
        self._tables = {(table.device, table.dtype): table}
        self._table = table

    @classmethod
    def of(cls, image_processor: Any) -> "Normaliser":
        """Return the normaliser of a transformers image processor, by running it over all values."""
        ramp = Image.frombytes("RGB", (256, 1), bytes(value for value in range(256) for _ in range(3)))
        done = image_processor(images=ramp, do_resize=False, do_center_crop=False, do_pad=False, return_tensors="pt")
        return cls(done["pixel_values"].reshape(3, 256).to(torch.float32))

    def __call__(self, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return pixel values [B, 3, h, w] of this dtype for pixels [B, h, w, 3] of uint8, on their device."""
        key = (pixels.device, dtype)
        if key not in self._tables:
            self._tables[key] = self._table.to(*key)
        count, height, width, channels = pixels.shape
        values = torch.empty((count, channels, height, width), device=pixels.device, dtype=dtype)
        # One channel at a time: indices take four bytes for each of the pixels' one.
        for channel, column in enumerate(self._tables[key]):
            index = pixels[..., channel].reshape(-1).to(torch.int32)
            values[:, channel] = column.index_select(0, index).view(count, height, width)
        return values
