"""From a working copy to the pixels that the model's image processor would make of it, without torch or transformers.

A processor resizes, crops, rescales and normalises.  The first two are done here, in processes that start in a
tenth of a second, and bit for bit as the processor does them: both call Pillow.  The last two are a look-up by the
256 values of a byte and happen on the device (`etl.caption.pictures.normalise`), so that a quarter of the bytes travel.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from etl.errors import UnsupportedProcessorError
from etl.images.working_copies import open_working_copy


def crop_aspect(image: Image.Image, max_aspect: float) -> Image.Image:
    """Return the picture with its long side cut around the centre to ``max_aspect`` times the short one.

    Processors enlarge the short side to the model's own size before they crop: for 30000 x 3 pixels that took
    57 s and 11 GB.  What is cut here lies outside the square that a centre crop would have kept.
    """
    width, height = image.size
    limit = max(1, int(min(width, height) * max_aspect))
    if max(width, height) <= limit:
        return image
    if width > height:
        left = (width - limit) // 2
        return image.crop((left, 0, left + limit, height))
    top = (height - limit) // 2
    return image.crop((0, top, width, top + limit))


@dataclass(frozen=True)
class PixelPlan:
    """How pictures become pixels.  All sizes are pixels.

    Attributes:
        shortest_edge: the short side after resizing.
        crop_height, crop_width: of the result: cut around the centre, or black around what is smaller.
        resample: Pillow's number of the filter.
        max_aspect: pictures longer than this ratio are cropped around their centre first.
        pad: colour that makes pictures square before they are resized, LLaVA's own way; ``None`` to crop instead.
    """

    shortest_edge: int
    crop_height: int
    crop_width: int
    resample: int
    max_aspect: float
    pad: tuple[int, int, int] | None = None

    @classmethod
    def of(cls, image_processor: Any, max_aspect: float) -> "PixelPlan":
        """Return the plan of a transformers image processor.

        Raises `UnsupportedProcessorError`, with the reason, for one that does anything else than CLIP's and LLaVA's do.
        """
        from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

        kind = type(image_processor)
        if kind not in (CLIPImageProcessorPil, LlavaImageProcessorPil):
            raise UnsupportedProcessorError(f"its image processor is {kind.__name__}, neither CLIP's nor LLaVA's")
        pads = bool(image_processor.do_pad)
        if pads and kind is not LlavaImageProcessorPil:
            raise UnsupportedProcessorError("its image processor pads pictures to the largest of a batch")
        size = dict(image_processor.size or {})
        if not image_processor.do_resize or set(size) != {"shortest_edge"}:
            raise UnsupportedProcessorError(f"its image processor does not resize by the shortest edge but to {size}")
        edge = size["shortest_edge"]
        crop = {"height": edge, "width": edge}
        if image_processor.do_center_crop:
            crop = dict(image_processor.crop_size or {})
        if set(crop) != {"height", "width"} or not (pads or image_processor.do_center_crop):
            raise UnsupportedProcessorError("its image processor does not crop pictures to one size")
        resample = image_processor.resample
        if not isinstance(resample, int):
            raise UnsupportedProcessorError(f"its image processor resizes with {resample}, which Pillow does not know")
        colour = None
        if pads:
            red, green, blue = (int(mean * 255) for mean in image_processor.image_mean or (0, 0, 0))
            colour = (red, green, blue)
        return cls(edge, crop["height"], crop["width"], int(resample), max_aspect, colour)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the pixels."""
        return self.crop_height, self.crop_width, 3

    def prepare(self, picture: Image.Image, text: str = "") -> bytes:  # noqa: ARG002 -- for plans that read it
        """Return the picture as RGB bytes, row by row; their number is the product of ``shape``."""
        picture = crop_aspect(picture, self.max_aspect)
        if self.pad is not None:
            picture = _square(picture, self.pad)
        width, height = picture.size
        edge = self.shortest_edge
        target = (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)
        picture = picture.resize(target, Image.Resampling(self.resample))
        left, top = (target[0] - self.crop_width) // 2, (target[1] - self.crop_height) // 2
        return picture.crop((left, top, left + self.crop_width, top + self.crop_height)).tobytes()


def pixels(path: Path, plan: PixelPlan) -> bytes:
    """Return what the plan makes of a working copy.

    Raises `WorkingCopyError` when it is missing or damaged.
    """
    return plan.prepare(open_working_copy(path))


def _square(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    width, height = picture.size
    if width == height:
        return picture
    edge = max(width, height)
    square = Image.new("RGB", (edge, edge), colour)
    square.paste(picture, ((edge - width) // 2, (edge - height) // 2))
    return square
