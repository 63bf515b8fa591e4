"""What others, without our code, see in a file: a small sRGB picture over white, or nothing.

libvips and Pillow, and MuPDF where ``pymupdf`` is installed: a judge, no dependency.

    python -m benchmarks.images.judges LONGEST_EDGE

reads paths from standard input, a line each, and answers each with a line of JSON: judge -> ``[width, height, base64 of
RGB]`` or ``null``.
"""

import base64
import contextlib
import importlib
import importlib.util
import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pyvips
from PIL import Image, ImageCms, ImageOps

MAX_PIXELS = 200_000_000


def by_vips(path: str, longest_edge: int) -> Image.Image:
    """Return what libvips sees: turned, colours managed, transparency over white."""
    image = pyvips.Image.new_from_file(path)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError("too large")
    image = image.autorot()
    if image.get_typeof("icc-profile-data"):
        with contextlib.suppress(pyvips.Error):
            image = image.icc_transform("srgb", embedded=True, intent="perceptual")
    if image.bands == 1 and image.format not in ("uchar", "char"):
        # As we do on purpose.
        low, high = image.min(), image.max()
        image = ((image - low) * (255 / ((high - low) or 1))).copy(interpretation="b-w")
    image = image.colourspace("srgb")
    if image.hasalpha():
        image = image.flatten(background=[255] * (image.bands - 1))
    image = image.cast("uchar")
    image = image.thumbnail_image(longest_edge, height=longest_edge, size="down")
    if image.bands == 1:
        image = image.bandjoin([image, image])
    return Image.frombytes("RGB", (image.width, image.height), image.extract_band(0, n=3).write_to_memory())


def by_pillow(path: str, longest_edge: int) -> Image.Image:
    """Return what Pillow sees: the first frame, turned, the profile applied, transparency over white."""
    with Image.open(path) as opened:
        profile = opened.info.get("icc_profile")
        opened.load()
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I") or image.mode == "F":
            low, high = image.getextrema()
            image = image.convert("F").point(lambda value: (value - low) * (255 / ((high - low) or 1))).convert("L")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            page = Image.new("RGBA", image.size, "white")
            page.alpha_composite(image)
            image = page.convert("RGB")
        if profile and image.mode in ("RGB", "CMYK", "L"):
            with contextlib.suppress(ImageCms.PyCMSError, OSError):
                source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
                image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        image = image.convert("RGB")
        image.thumbnail((longest_edge, longest_edge))
        return image


def by_mupdf(path: str, longest_edge: int) -> Image.Image:
    """Return what MuPDF sees: the first page."""
    mupdf = importlib.import_module("pymupdf")
    mupdf.TOOLS.mupdf_display_errors(False)
    with mupdf.open(path) as document:
        page = document[0]
        scale = longest_edge / max(page.rect.width, page.rect.height)
        if not document.is_pdf and (pictures := page.get_image_info()):
            scale = min(scale, pictures[0]["width"] / page.rect.width)
        shown = page.get_pixmap(matrix=mupdf.Matrix(scale, scale), colorspace=mupdf.csRGB, alpha=False)
        return Image.frombytes("RGB", (shown.width, shown.height), shown.samples)


JUDGES: dict[str, Callable[[str, int], Image.Image]] = {"vips": by_vips, "Pillow": by_pillow}
if importlib.util.find_spec("pymupdf"):
    JUDGES["MuPDF"] = by_mupdf


def seen(judge: Callable[[str, int], Image.Image], path: str, longest_edge: int) -> list[Any] | None:
    """Return the judge's picture for JSON."""
    try:
        image = judge(path, longest_edge)
    except Exception:
        return None
    return [*image.size, base64.b64encode(image.tobytes()).decode()]


def main() -> None:
    """Answer until standard input ends."""
    warnings.simplefilter("ignore")
    pyvips.cache_set_max(0)
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    longest_edge = int(sys.argv[1])
    # MuPDF speaks there, too.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        path = line.rstrip("\n")
        seen_by = {name: seen(judge, path, longest_edge) for name, judge in JUDGES.items()}
        print(json.dumps(seen_by), file=answers, flush=True)


if __name__ == "__main__":
    main()
