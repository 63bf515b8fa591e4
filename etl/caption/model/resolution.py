"""How large a model sees a picture, and how many of its tokens that takes."""

import contextlib
from typing import Any

from PIL import Image

from etl.caption.model.checkpoint import one_line
from etl.errors import ModelError

LONGEST_SHAPE = 100.0
"""Pictures longer than this ratio are cropped for every model: processors fail on a line, or make it gigantic."""

_TILING = ("crop_to_patches", "do_image_splitting", "do_pan_and_scan", "image_grid_pinpoints", "max_image_tiles")
"""Settings of image processors that cut a picture into tiles, as many and as arranged as its shape asks for."""


def image_tokens(processor: Any, width: int, height: int) -> int:
    """Return how many tokens a picture of so many pixels takes in the prompt.

    Raises `ModelError` for a processor that fails on a plain picture.
    """
    # The processors' own reckoning is quicker, but some have none, and some cannot do theirs.
    with contextlib.suppress(Exception):
        [count] = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"]
        return int(count)
    blank = Image.new("RGB", (width, height))
    try:
        ids = processor(images=[[blank]], text=[processor.image_token], add_special_tokens=False)["input_ids"]
    # Whatever a configuration with impossible values ends in: numbers below one, unknown filters, no memory.
    except Exception as error:
        raise ModelError(f"the model's processor fails on a plain picture: {one_line(error)}") from error
    return len(ids[0])


def keeps_shape(images: Any) -> bool:
    """Return whether an image processor lets pictures be long or high, and does not squash or cut all to one shape."""
    if any(getattr(images, name, None) for name in _TILING):
        return True
    size = dict(getattr(images, "size", None) or {})
    return not (getattr(images, "do_center_crop", None) or size.keys() == {"height", "width"})


def limit_pixels(name: str, images: Any, least: int, most: int) -> None:
    """Have an image processor make pictures of at least and at most so many pixels; 0 leaves its own limit.

    Raises `ModelError` for one that knows no such limits.
    """
    if not (least or most):
        return
    size = dict(images.size or {})
    keys = next((keys for keys in _LIMITS if size.keys() == set(keys)), None)
    if keys is None or not getattr(images, "merge_size", None):
        raise ModelError(
            f"{name} sees pictures in sizes of its own; only for models such as Qwen3-VL can they be chosen: leave "
            "--model-min-pixels and --model-max-pixels out"
        )
    size |= {key: value for key, value in zip(keys, (least, most), strict=True) if value}
    if size[keys[0]] > size[keys[1]]:
        raise ModelError(
            f"{name} cannot see at least {size[keys[0]]} and at most {size[keys[1]]} pixels; change --model-min-pixels "
            "or --model-max-pixels"
        )
    images.size = size


def advice(name: str, images: Any, longest_edge: int) -> str | None:
    """Return what to do for small print, where a model sees more of a picture than working copies of this edge have."""
    size = dict(getattr(images, "size", None) or {})
    most = next((size[key] for low, key in _LIMITS if size.keys() == {low, key}), 0)
    if not getattr(images, "merge_size", None) or most <= longest_edge**2:
        return None
    return (
        f"{name} sees pictures of up to {most:,} pixels; working copies have at most {longest_edge} on their longest "
        "edge: for small print, fetch into another state with a larger --longest-edge"
    )


_LIMITS = (("shortest_edge", "longest_edge"), ("min_pixels", "max_pixels"))
"""What processors that count all pixels of a picture call their limits; the older name is misleading."""
