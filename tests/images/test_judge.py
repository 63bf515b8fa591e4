"""Working copies judged by libvips, another library with conventions of its own.

It is independent in how it reads modes, turns, manages colour, blends and shrinks; below that, both libraries build on
libjpeg, libtiff and Little CMS, so what those get wrong is not seen here.

libvips decodes in full, turns, converts to sRGB by its own colour management, lays transparency over white and shrinks
by its own filter.  Where its conventions are other ones on purpose, the reference is built from the raw values that it
reads: wide and float gray stretched over the range in use, inks without a profile as plain subtractive colours, and
YCbCr outside JPEG, which it leaves as it is.  Its binary wheel reads neither JPEG 2000 nor PDF nor BMP; for these the
picture itself, before it was written, is the reference.
"""

import functools
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import pyvips
from PIL import Image, ImageChops, ImageDraw, ImageStat

from etl.images import tiff
from etl.images import tiff_bands as bands
from etl.images.decode import make_working_copy

BOARD, SIZE = (900, 675), (720, 540)
EDGE = 320
"""Shrunk by a whole factor and a rest, as most pictures are."""

ALLOWED = 3.0
"""Mean absolute difference to the judge, of 255; most of it is what the working copy's JPEG costs coloured edges."""

PATCHES = (
    "#735244", "#c29682", "#627a9d", "#576c43", "#8580b1", "#67bdaa",
    "#d67e2c", "#505ba6", "#c15a63", "white", "#7a7a79", "black",
)  # fmt: skip
"""The colours of a photographer's test chart, in sRGB."""

pyvips.cache_set_max(0)


@functools.cache
def drawn() -> Image.Image:
    across = Image.linear_gradient("L").rotate(90).resize(BOARD)
    down = Image.linear_gradient("L").resize(BOARD)
    colours = Image.merge("RGB", (across, down, Image.radial_gradient("L").resize(BOARD)))
    picture = Image.blend(colours, across.convert("RGB"), 0.4)
    draw = ImageDraw.Draw(picture)
    for number, patch in enumerate(PATCHES):
        x, y = 60 + number % 6 * 135, 60 + number // 6 * 150
        draw.rectangle((x, y, x + 100, y + 110), patch)
    for number in range(3):
        draw.line((60, 390 + number * 80, 500, 370 + number * 90), ("white", "#343434", "white")[number], 12)
    draw.ellipse((570, 380, 820, 630), outline="navy", width=20)
    return picture.resize(SIZE)


def with_alpha(mode: str) -> Image.Image:
    picture = drawn().convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(SIZE))
    return picture.convert(mode)


@functools.cache
def in_mode(mode: str) -> Image.Image:
    if mode in ("LA", "RGBA"):
        return with_alpha(mode)
    picture = drawn()
    if mode == "1":
        return picture.convert("1", dither=Image.Dither.NONE)
    return picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=200) if mode == "P" else picture.convert(mode)


def judges(mode: str) -> Any:
    """The picture in the judge's hands: ``L``, ``LA``, ``RGB``, ``RGBA`` or ``CMYK``, with 16 bits where it says so."""
    mode, _, depth = mode.partition(" ")
    picture = in_mode(mode)
    image = pyvips.Image.new_from_memory(picture.tobytes(), *SIZE, len(picture.getbands()), "uchar")
    names = {"L": ("b-w", "grey16"), "LA": ("b-w", "grey16"), "CMYK": ("cmyk", "cmyk")}.get(mode, ("srgb", "rgb16"))
    if depth == "12":
        return (image.cast("ushort") * 15 + 200).cast("ushort").copy(interpretation=names[1])
    if depth == "16":
        return (image.cast("ushort") * 257).cast("ushort").copy(interpretation=names[1])
    if depth == "float":
        return (image / 100 - 1).cast("float").copy(interpretation="b-w")
    return image.copy(interpretation=names[0])


# References -----------------------------------------------------------------------------------------------------


def managed(image: Any) -> Any:
    """Colour management by the judge, transparency over white."""
    if image.get_typeof("icc-profile-data"):
        image = image.icc_transform("srgb", embedded=True, intent="perceptual")
    if image.hasalpha():
        image = image.flatten(background=[65535 if image.format == "ushort" else 255])
    return image.colourspace("srgb")


def stretched(image: Any) -> Any:
    """The range in use, from black to white."""
    low, high = image.min(), image.max()
    return ((image - low) * (255 / (high - low))).copy(interpretation="b-w")


def subtracted(image: Any) -> Any:
    """Inks as filters over white."""
    light = 255 - image
    return (light.extract_band(0, n=3) * light[3] / 255).copy(interpretation="srgb")


def from_luma(image: Any) -> Any:
    """YCbCr as JFIF has it (ITU-R BT.601, full range)."""
    matrix = pyvips.Image.new_from_array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])
    centred = image.copy(interpretation="multiband") - [0, 128, 128]
    bounded = (centred.recomb(matrix) > 255).ifthenelse(255, centred.recomb(matrix))
    return (bounded < 0).ifthenelse(0, bounded).copy(interpretation="srgb")


def reference(path: Path, size: tuple[int, int], convert: Callable[[Any], Any] = managed) -> Image.Image:
    image = convert(pyvips.Image.new_from_file(str(path)).autorot())
    image = image.resize(size[0] / image.width, vscale=size[1] / image.height, kernel="lanczos3")
    image = (image.rint() if image.format in ("float", "double") else image).cast("uchar")
    image = image.bandjoin([image, image]) if image.bands == 1 else image
    assert (image.width, image.height, image.bands) == (*size, 3)
    return Image.frombytes("RGB", size, image.write_to_memory())


def working_copy(path: Path) -> Image.Image:
    _, data = make_working_copy(path, longest_edge=EDGE, max_pixels=10**8)
    with Image.open(io.BytesIO(data)) as image:
        assert max(image.size) == EDGE
        return image.convert("RGB")


def difference(one: Image.Image, other: Image.Image) -> float:
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3


def assert_judged_right(path: Path, convert: Callable[[Any], Any] = managed) -> None:
    copy = working_copy(path)
    assert difference(copy, reference(path, copy.size, convert)) < ALLOWED


def assert_both_ways_judged_right(path: Path, convert: Callable[[Any], Any] = managed) -> None:
    """A TIFF decoded at once and in pieces, both against the same reference."""
    at_once = working_copy(path)
    right = reference(path, at_once.size, convert)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "LARGE_BYTES", 0)
        patch.setattr(tiff, "PIECE_BYTES", 100_000)
        pieces = Mock(wraps=bands.reduced)
        patch.setattr(bands, "reduced", pieces)
        in_pieces = working_copy(path)
    assert pieces.called
    found = {"at once": difference(at_once, right), "in pieces": difference(in_pieces, right)}
    assert max(found.values()) < ALLOWED, found


# Formats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode", "options", "convert"),
    [
        ("JPEG", "RGB", {"quality": 95}, managed),
        ("JPEG", "RGB", {"quality": 85, "progressive": True}, managed),
        ("JPEG", "L", {"quality": 95}, managed),
        ("JPEG", "CMYK", {"quality": 95}, subtracted),
        ("PNG", "1", {}, managed),
        ("PNG", "L", {}, managed),
        ("PNG", "LA", {}, managed),
        ("PNG", "P", {}, managed),
        ("PNG", "P", {"transparency": bytes(range(55, 255))}, managed),
        ("PNG", "P", {"transparency": 3}, managed),
        ("PNG", "RGB", {}, managed),
        ("PNG", "RGBA", {}, managed),
        ("WEBP", "RGB", {"quality": 95}, managed),
        ("WEBP", "RGBA", {"lossless": True}, managed),
        ("GIF", "P", {}, managed),
        ("GIF", "P", {"transparency": 3}, managed),
        ("TIFF", "P", {"compression": "tiff_lzw"}, managed),
        ("TIFF", "YCbCr", {}, from_luma),
        ("TIFF", "YCbCr", {"compression": "tiff_lzw"}, from_luma),
    ],
)
def test_every_format_and_mode_is_what_the_judge_sees(
    tmp_path: Path, kind: str, mode: str, options: dict[str, Any], convert: Callable[[Any], Any]
) -> None:
    """Files as Pillow writes them."""
    in_mode(mode).save(tmp_path / "a", kind, **options)
    assert_judged_right(tmp_path / "a", convert)


@pytest.mark.parametrize(
    ("mode", "convert"),
    [("RGB 16", managed), ("RGBA 16", managed), ("LA 16", managed), ("L 16", stretched), ("L 12", stretched)],
)
def test_png_with_wide_samples_is_what_the_judge_sees(tmp_path: Path, mode: str, convert: Callable[[Any], Any]) -> None:
    """16-bit PNGs as the judge writes them; gray is stretched over its range in use."""
    judges(mode).pngsave(str(tmp_path / "a"))
    assert_judged_right(tmp_path / "a", convert)


LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {},
    "tiled BigTIFF": {"bigtiff": True, "tile": True, "tile_width": 128, "tile_height": 64},
}
TIFF_MODES = {
    "L": managed, "LA": managed, "RGB": managed, "RGBA": managed, "CMYK": subtracted, "RGB 16": managed,
    "RGBA 16": managed, "L 16": stretched, "L 12": stretched, "L float": stretched,
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", TIFF_MODES)
@pytest.mark.parametrize("compression", ["none", "lzw", "deflate", "packbits"])
def test_every_kind_of_tiff_is_what_the_judge_sees(tmp_path: Path, layout: str, mode: str, compression: str) -> None:
    """Depths, layouts and compressions as libtiff writes them, with a predictor where there can be one."""
    has_predictor = compression in ("lzw", "deflate")
    predictor = "none" if not has_predictor else "float" if mode == "L float" else "horizontal"
    judges(mode).tiffsave(str(tmp_path / "a"), compression=compression, predictor=predictor, **LAYOUTS[layout])
    assert_both_ways_judged_right(tmp_path / "a", TIFF_MODES[mode])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"compression": "jpeg", "Q": 95}),
        ("RGB", {"compression": "jpeg", "Q": 80}),
        ("L", {"compression": "jpeg", "Q": 90}),
        ("L", {"compression": "lzw", "miniswhite": True}),
        ("L", {"bitdepth": 1, "predictor": "none", "compression": "none"}),
        ("L", {"bitdepth": 1, "predictor": "none", "compression": "ccittfax4"}),
        ("L", {"bitdepth": 1, "predictor": "none", "compression": "ccittfax4", "miniswhite": True}),
        ("L", {"bitdepth": 4, "predictor": "none", "compression": "lzw"}),
    ],
)
def test_jpeg_fax_and_inverted_tiffs_are_what_the_judge_sees(
    tmp_path: Path, layout: str, mode: str, options: dict[str, Any]
) -> None:
    """JPEG in TIFF with and without subsampling, Group 4, few bits, and files where 0 is white."""
    judges(mode).tiffsave(str(tmp_path / "a"), **options, **LAYOUTS[layout])
    assert_both_ways_judged_right(tmp_path / "a")


# Profiles and orientation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "kind"),
    [
        ("p3", "jpegsave"), ("p3", "pngsave"), ("p3", "webpsave"), ("p3", "tiffsave"),
        ("cmyk", "jpegsave"), ("cmyk", "tiffsave"),
    ],
)  # fmt: skip
def test_embedded_profiles_are_applied_as_the_judge_does(tmp_path: Path, profile: str, kind: str) -> None:
    """A wide-gamut and a press profile give the judge's colours in each format that can hold them."""
    image = judges("RGB").icc_transform(profile, input_profile="srgb")
    getattr(image, kind)(str(tmp_path / "a"), **({"Q": 95} if kind in ("jpegsave", "webpsave") else {}))
    assert difference(drawn(), plain_rgb(tmp_path / "a")) > ALLOWED
    assert_judged_right(tmp_path / "a")


def plain_rgb(path: Path) -> Image.Image:
    """The bare numbers, as who ignores profiles sees them."""
    with Image.open(path) as image:
        return image.convert("RGB")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("TIFF", "RGB", {}),
        ("TIFF", "RGB", {"compression": "jpeg", "quality": 95}),
        ("TIFF", "1", {"compression": "group4"}),
    ],
)
def test_every_orientation_is_turned_as_the_judge_does(
    tmp_path: Path, orientation: int, kind: str, mode: str, options: dict[str, Any]
) -> None:
    """EXIF orientations 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    in_mode(mode).save(tmp_path / "a", kind, exif=exif, **options)
    assert_judged_right(tmp_path / "a")


# Beyond the judge -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"), [("BMP", {}), ("JPEG2000", {}), ("JPEG2000", {"irreversible": True}), ("PDF", {"quality": 95})]
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_formats_that_the_judge_cannot_read_show_the_picture_that_was_written(
    tmp_path: Path, kind: str, options: dict[str, Any], mode: str
) -> None:
    """BMP, JPEG 2000 and PDF against what was drawn, shrunk by the judge."""
    picture = in_mode(mode)
    picture.save(tmp_path / "a", kind, **options)
    picture.save(tmp_path / "drawn", "PNG")
    copy = working_copy(tmp_path / "a")
    assert difference(copy, reference(tmp_path / "drawn", copy.size)) < ALLOWED


def test_the_judge_would_notice(tmp_path: Path) -> None:
    """Swapped channels, a lost gamma, a missing turn and a shift by four pixels are all beyond what is allowed."""
    picture = drawn()
    spoiled = {
        "swapped": Image.merge("RGB", picture.split()[::-1]),
        "gamma": picture.point(lambda value: round(255 * math.pow(value / 255, 1.1))),
        "mirrored": picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "shifted": ImageChops.offset(picture, 4, 4),
    }
    picture.save(tmp_path / "a", "PNG")
    for name, wrong in spoiled.items():
        wrong.save(tmp_path / "wrong", "PNG")
        copy = working_copy(tmp_path / "wrong")
        assert difference(copy, reference(tmp_path / "a", copy.size)) > ALLOWED, name
