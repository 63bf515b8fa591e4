"""Every format, mode and fault that an archive may hold, as real files, judged by the pixels that come out."""

import hashlib
import io
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pypdfium2
import pytest
from PIL import Image, ImageCms, ImageDraw
from PIL.PngImagePlugin import PngInfo
from support.workbench import encoded

from etl.errors import CorruptImageError, ImageTooLargeError, LocalFileError, NotAnImageError
from etl.images import animation
from etl.images.decode import Picture, decode, encode_working_copy, make_working_copy, working_copy_image

WIDTH, HEIGHT = 64, 32
RED, GREEN, BLUE = (220, 30, 30), (30, 200, 40), (30, 40, 210)
Colour = tuple[int, int, int]


def run(path: Path, longest_edge: int = 64, max_pixels: int = 10_000_000) -> Picture:
    picture = decode(path, longest_edge=longest_edge, max_pixels=max_pixels)
    assert picture.image.mode == "RGB"
    return picture


def halves(mode: str, left: Any, right: Any, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """A picture with two flat halves."""
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def assert_halves(picture: Picture, left: Colour, right: Colour, tolerance: int = 6) -> None:
    width, height = picture.image.size
    for x, wanted in ((width // 8, left), (width - width // 8 - 1, right)):
        pixel = picture.image.getpixel((x, height // 2))
        assert isinstance(pixel, tuple)
        assert all(abs(a - b) <= tolerance for a, b in zip(pixel, wanted, strict=True)), (pixel, wanted)


def gray(value: int) -> Colour:
    return (value, value, value)


def tiff(order: str, photometric: int, bits: int, sample_format: int, data: bytes, compression: int = 1) -> bytes:
    """A minimal one-strip gray TIFF of WIDTH x HEIGHT."""
    tags = [
        (256, 4, WIDTH), (257, 4, HEIGHT), (258, 3, bits), (259, 3, compression), (262, 3, photometric),
        (273, 4, 8), (277, 3, 1), (278, 4, HEIGHT), (279, 4, len(data)), (339, 3, sample_format),
    ]  # fmt: skip
    data += b"\0" * (len(data) % 2)
    directory = struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        directory += struct.pack(order + "HHI", tag, kind, 1)
        directory += struct.pack(order + "I", value) if kind == 4 else struct.pack(order + "HH", value, 0)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return head + data + directory + bytes(4)


def rows(order: str, code: str, left: float, right: float) -> bytes:
    half = WIDTH // 2
    return struct.pack(f"{order}{WIDTH}{code}", *[left] * half, *[right] * half) * HEIGHT


@pytest.mark.parametrize(
    ("suffix", "mime", "options"),
    [
        ("JPEG", "image/jpeg", {"quality": 95, "subsampling": 0}),
        ("MPO", "image/jpeg", {"quality": 95, "save_all": True}),
        ("PNG", "image/png", {}),
        ("WEBP", "image/webp", {"lossless": True}),
        ("TIFF", "image/tiff", {"compression": "tiff_lzw"}),
        ("TIFF", "image/tiff", {}),
        ("GIF", "image/gif", {}),
        ("BMP", "image/bmp", {}),
        ("JPEG2000", "image/jp2", {}),
    ],
)
def test_accepted_formats_are_told_by_their_bytes(
    tmp_path: Path, suffix: str, mime: str, options: dict[str, Any]
) -> None:
    """Every accepted format decodes to its colours under a name that lies about it."""
    path = tmp_path / "picture.txt"
    if suffix == "MPO":
        options = options | {"append_images": [halves("RGB", GREEN, GREEN)]}
    halves("RGB", RED, BLUE).save(path, suffix, **options)
    picture = run(path)
    assert (picture.mime, picture.width, picture.height) == (mime, WIDTH, HEIGHT)
    assert_halves(picture, RED, BLUE, 10)


@pytest.mark.parametrize("size", [(1500, 1000), (3000, 2000)])
@pytest.mark.parametrize("suffix", ["JPEG", "TIFF", "PNG"])
def test_large_pictures_shrink_to_the_longest_edge_and_keep_their_size_on_record(
    tmp_path: Path, suffix: str, size: tuple[int, int]
) -> None:
    """The working size is exact on every path of the shrinking; the original's size is what is reported."""
    path = tmp_path / "picture"
    halves("RGB", RED, BLUE, size).save(path, suffix)
    picture = run(path, longest_edge=1024)
    assert picture.image.size == (1024, 683)
    assert (picture.width, picture.height) == size
    assert_halves(picture, RED, BLUE)


def test_small_pictures_are_not_enlarged(tmp_path: Path) -> None:
    """A picture within the limit keeps its pixels."""
    halves("RGB", RED, BLUE).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", longest_edge=1024).image.size == (WIDTH, HEIGHT)


def test_a_hair_thin_picture_keeps_one_pixel(tmp_path: Path) -> None:
    """Extreme aspect ratios shrink to a side of 1, not of 0."""
    for suffix in ("JPEG", "PNG"):
        Image.new("RGB", (9000, 3), RED).save(tmp_path / "a", suffix)
        assert run(tmp_path / "a").image.size == (64, 1)


# Modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "left", "right", "wanted_left", "wanted_right", "suffix"),
    [
        ("1", 0, 1, gray(0), gray(255), "PNG"),
        ("1", 0, 1, gray(0), gray(255), "TIFF"),
        ("L", 60, 190, gray(60), gray(190), "PNG"),
        ("LA", (0, 255), (0, 0), gray(0), gray(255), "PNG"),
        ("LA", (90, 255), (0, 127), gray(90), gray(128), "TIFF"),
        ("RGBA", (*RED, 255), (*RED, 0), RED, gray(255), "PNG"),
        ("RGBA", (0, 0, 255, 255), (0, 0, 255, 127), (0, 0, 255), (128, 128, 255), "TIFF"),
        ("RGBA", (*RED, 255), (*RED, 0), RED, gray(255), "WEBP"),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0, 0), (255, 0, 0), (0, 255, 255), "TIFF"),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0, 0), (255, 0, 0), (0, 255, 255), "JPEG"),
        ("YCbCr", (76, 85, 255), (29, 255, 107), (254, 0, 0), (0, 0, 254), "TIFF"),
        ("LAB", (255, 128, 128), (136, 176, 128), gray(255), (201, 89, 127), "TIFF"),
    ],
)
@pytest.mark.parametrize("longest_edge", [64, 16])
def test_modes_become_the_rgb_that_was_meant(
    tmp_path: Path, mode: str, left: Any, right: Any, wanted_left: Colour, wanted_right: Colour, suffix: str,
    longest_edge: int,
) -> None:  # fmt: skip
    """Bilevel, gray, alpha over white, CMYK, YCbCr and LAB give the right colours, shrunk or not."""
    halves(mode, left, right).save(tmp_path / "a", suffix)
    assert_halves(run(tmp_path / "a", longest_edge), wanted_left, wanted_right, 10)


@pytest.mark.parametrize("suffix", ["PNG", "GIF"])
def test_palettes_keep_colour_and_transparency(tmp_path: Path, suffix: str) -> None:
    """A palette picture's colours are looked up, and its transparent entry is white."""
    image = Image.new("P", (WIDTH, HEIGHT), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (WIDTH // 2, 0, WIDTH, HEIGHT))
    image.save(tmp_path / "plain", suffix)
    assert_halves(run(tmp_path / "plain", 16), RED, BLUE)
    image.save(tmp_path / "clear", suffix, transparency=1)
    assert_halves(run(tmp_path / "clear", 16), RED, gray(255))


def test_partly_transparent_palette_entries_are_mixed_with_white(tmp_path: Path) -> None:
    """PNG palettes with an alpha value for each entry are composed over white."""
    image = Image.new("P", (WIDTH, HEIGHT), 0)
    image.putpalette([0, 0, 0, *BLUE])
    image.paste(1, (WIDTH // 2, 0, WIDTH, HEIGHT))
    image.save(tmp_path / "a.png", transparency=bytes([127, 255]))
    assert_halves(run(tmp_path / "a.png"), gray(128), BLUE)


def test_a_colour_key_is_transparent(tmp_path: Path) -> None:
    """A PNG's single transparent colour (tRNS) shows white."""
    halves("RGB", RED, BLUE).save(tmp_path / "a.png", transparency=BLUE)
    assert_halves(run(tmp_path / "a.png"), RED, gray(255))


@pytest.mark.parametrize(
    ("low", "high"), [(0, 65535), (0, 4095), (1000, 3000)], ids=["16 bits", "12 bits in 16", "narrow"]
)
@pytest.mark.parametrize("kind", ["png", "tiff-le", "tiff-be", "tiff-signed"])
@pytest.mark.parametrize("longest_edge", [64, 16])
def test_wide_gray_uses_the_range_that_is_there(
    tmp_path: Path, low: int, high: int, kind: str, longest_edge: int
) -> None:
    """16-bit gray is neither saturated nor nearly black, whatever part of the range it uses."""
    path = tmp_path / "a"
    if kind == "png":
        image = Image.new("I;16", (WIDTH, HEIGHT))
        image.putdata([low if x < WIDTH // 2 else high for _ in range(HEIGHT) for x in range(WIDTH)])
        image.save(path, "PNG")
    elif kind == "tiff-signed":
        path.write_bytes(tiff("<", 1, 16, 2, rows("<", "h", low // 2 - 500, high // 2 - 500)))
    else:
        order = "<" if kind == "tiff-le" else ">"
        path.write_bytes(tiff(order, 1, 16, 1, rows(order, "H", low, high)))
    assert_halves(run(path, longest_edge), gray(0), gray(255), 1)


def test_the_middle_of_a_wide_range_is_middle_gray(tmp_path: Path) -> None:
    """Scaling is linear over the range used."""
    data = struct.pack(f"<{WIDTH}H", *[0] * 16, *[2048] * 32, *[4095] * 16) * HEIGHT
    (tmp_path / "a").write_bytes(tiff("<", 1, 16, 1, data))
    pixel = run(tmp_path / "a").image.getpixel((32, 16))
    assert pixel == gray(128)


@pytest.mark.parametrize(("value", "wanted"), [(65535, 255), (32768, 128), (0, 0)])
def test_wide_gray_without_contrast_keeps_its_level(tmp_path: Path, value: int, wanted: int) -> None:
    """A blank 16-bit page stays as light or dark as it was."""
    Image.new("I;16", (WIDTH, HEIGHT), value).save(tmp_path / "a.png")
    assert_halves(run(tmp_path / "a.png"), gray(wanted), gray(wanted), 1)


@pytest.mark.parametrize(
    ("left", "right", "wanted"),
    [
        (0.0, 1.0, (0, 255)),
        (-5.0, 1e30, (0, 255)),
        (math.nan, 0.5, (128, 128)),
        (math.inf, -math.inf, (0, 0)),
    ],
)
def test_float_gray_survives_any_value(tmp_path: Path, left: float, right: float, wanted: tuple[int, int]) -> None:
    """Float pictures are scaled by their finite range; NaN and infinities do no harm."""
    (tmp_path / "a").write_bytes(tiff("<", 1, 32, 3, rows("<", "f", left, right)))
    assert_halves(run(tmp_path / "a"), gray(wanted[0]), gray(wanted[1]), 1)


def test_a_hole_in_a_float_picture_is_dark_and_the_rest_keeps_its_range(tmp_path: Path) -> None:
    """NaN pixels beside real ones take the lowest value and do not spread when the picture shrinks."""
    values = [math.nan] * 16 + [0.2] * 16 + [0.7] * 16 + [math.inf] * 16
    (tmp_path / "a").write_bytes(tiff("<", 1, 32, 3, struct.pack(f"<{WIDTH}f", *values) * HEIGHT))
    image = run(tmp_path / "a", 16).image
    assert [image.getpixel((x, 4)) for x in (1, 6, 10, 14)] == [gray(0), gray(0), gray(255), gray(0)]


def _packed(left: int, right: int) -> bytes:
    return bytes([left] * 4 + [right] * 4) * HEIGHT


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("bits", "sample_format", "make"),
    [
        (1, 1, lambda _: _packed(0, 255)),
        (8, 1, lambda _: bytes([0] * 32 + [255] * 32) * HEIGHT),
        (16, 1, lambda order: rows(order, "H", 0, 60000)),
        (32, 3, lambda order: rows(order, "f", 0.0, 1.0)),
    ],
    ids=["1", "8", "16", "float"],
)
def test_tiffs_where_zero_is_white_are_inverted(
    tmp_path: Path, order: str, zipped: bool, bits: int, sample_format: int, make: Callable[[str], bytes]
) -> None:
    """PhotometricInterpretation 0 (scans of microfilm) gives a positive at every depth, compressed or not."""
    data = make(order)
    packed = tiff(order, 0, bits, sample_format, zlib.compress(data) if zipped else data, 8 if zipped else 1)
    (tmp_path / "a").write_bytes(packed)
    assert_halves(run(tmp_path / "a"), gray(255), gray(0), 1)


def test_a_fax_page_is_black_on_white(tmp_path: Path) -> None:
    """Group 4 TIFFs, the usual form of scanned text, keep their polarity."""
    halves("1", 0, 1).save(tmp_path / "a", "TIFF", compression="group4")
    assert_halves(run(tmp_path / "a"), gray(0), gray(255), 1)


# Profiles and orientation ----------------------------------------------------------------------------------------


def swapped_profile() -> bytes:
    """An sRGB profile whose red and blue primaries are exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for entry in range(128 + 4, 128 + 4 + 12 * int.from_bytes(profile[128:132], "big"), 12):
        name = bytes(profile[entry : entry + 4])
        if name in (b"rXYZ", b"bXYZ"):
            profile[entry : entry + 4] = b"bXYZ" if name == b"rXYZ" else b"rXYZ"
    return bytes(profile).replace("sRGB built-in".encode("utf-16-be"), "swapped rgb..".encode("utf-16-be"))


def _cmyk_profile() -> bytes:
    """A small CMYK profile (ICC lut8) whose black is black, and whose other inks are all the same green."""
    lab_black, lab_green, lab_white = (0, 128, 128), (191, 62, 197), (255, 128, 128)
    points = [lab_black if index & 1 else lab_green if index else lab_white for index in range(16)]
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + bytes(v for p in points for v in p) + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut + bytes(-len(lut) % 4)})


def _linear_gray_profile() -> bytes:
    """A gray profile whose numbers are amounts of light."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv" + bytes(4) + struct.pack(">IHH", 1, 256, 0)})


def _profile(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"inks\0" + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061),
        **tags,
    }
    offset, directory, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        directory += name + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12s4s4sI4s4sQI3i", offset + len(body), bytes(4), 0x02400000, kind, space, pcs,
        bytes(12), b"acsp", bytes(4), 0, bytes(4), bytes(4), 0, 0, 63190, 65536, 54061,
    )  # fmt: skip
    return head.ljust(128, b"\0") + directory + body


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "TIFF"])
def test_an_embedded_profile_is_applied(tmp_path: Path, suffix: str) -> None:
    """Colours are those that the profile means, not the bare numbers."""
    halves("RGB", (255, 0, 0), (0, 0, 255)).save(tmp_path / "a", suffix, icc_profile=swapped_profile())
    assert_halves(run(tmp_path / "a"), (0, 0, 255), (255, 0, 0), 8)


@pytest.mark.parametrize("suffix", ["JPEG", "TIFF"])
def test_cmyk_goes_through_its_profile(tmp_path: Path, suffix: str) -> None:
    """CMYK with a profile takes its colours from there."""
    inks = halves("CMYK", (0, 0, 0, 0), (255, 0, 0, 0))
    inks.save(tmp_path / "a", suffix, icc_profile=_cmyk_profile())
    picture = run(tmp_path / "a")
    assert_halves(picture, gray(255), (43, 213, 20), 12)
    inks.save(tmp_path / "b", suffix)
    assert_halves(run(tmp_path / "b"), gray(255), (0, 255, 255))


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "TIFF"])
def test_gray_goes_through_its_profile(tmp_path: Path, suffix: str) -> None:
    """Tones are those that the profile means."""
    halves("L", 60, 190).save(tmp_path / "a", suffix, icc_profile=_linear_gray_profile())
    assert_halves(run(tmp_path / "a"), gray(133), gray(223))


def test_a_profile_that_gives_noise_is_passed_over(tmp_path: Path) -> None:
    """Primaries that are all zero: Little CMS opens such a profile, and nothing comes out of it."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for name in (b"rXYZ", b"gXYZ", b"bXYZ"):
        at = int.from_bytes(profile[profile.find(name) + 4 : profile.find(name) + 8], "big")
        profile[at + 8 : at + 20] = bytes(12)
    noise = bytes(profile).replace("sRGB built-in".encode("utf-16-be"), "no primaries.".encode("utf-16-be"))
    halves("RGB", RED, BLUE).save(tmp_path / "a", "PNG", icc_profile=noise)
    assert_halves(run(tmp_path / "a"), RED, BLUE)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_broken_or_foreign_profile_is_passed_over(tmp_path: Path, mode: str) -> None:
    """A profile that cannot be read, or is for another colour space, never costs the picture."""
    colours = {"RGB": (RED, BLUE), "L": (0, 255), "CMYK": ((0, 0, 0, 255), (0, 0, 0, 0))}[mode]
    wanted = (RED, BLUE) if mode == "RGB" else (gray(0), gray(255))
    for profile in (b"no profile at all", _cmyk_profile()[:200], swapped_profile() if mode != "RGB" else b"x" * 500):
        halves(mode, *colours).save(tmp_path / "a", "TIFF", icc_profile=profile)
        assert_halves(run(tmp_path / "a"), *wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["JPEG", "TIFF", "PNG", "WEBP"])
def test_exif_orientation_is_undone(tmp_path: Path, suffix: str, orientation: int) -> None:
    """All eight orientations come out upright, with the upright size on record."""
    upright = Image.new("RGB", (WIDTH, HEIGHT), GREEN)
    ImageDraw.Draw(upright).rectangle((0, 0, 15, 15), RED)
    ImageDraw.Draw(upright).rectangle((48, 0, 63, 15), BLUE)
    t = Image.Transpose
    stored = {
        1: upright, 2: upright.transpose(t.FLIP_LEFT_RIGHT), 3: upright.transpose(t.ROTATE_180),
        4: upright.transpose(t.FLIP_TOP_BOTTOM), 5: upright.transpose(t.TRANSPOSE), 6: upright.transpose(t.ROTATE_90),
        7: upright.transpose(t.TRANSVERSE), 8: upright.transpose(t.ROTATE_270),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a", suffix, exif=exif, **({} if suffix in ("PNG", "TIFF") else {"quality": 95}))
    picture = run(tmp_path / "a", 32)
    assert (picture.width, picture.height) == (WIDTH, HEIGHT)
    assert picture.image.size == (32, 16)
    for place, wanted in (((4, 4), RED), ((28, 4), BLUE), ((16, 12), GREEN)):
        pixel = picture.image.getpixel(place)
        assert isinstance(pixel, tuple)
        assert all(abs(a - b) < 40 for a, b in zip(pixel, wanted, strict=True)), (place, pixel, wanted)


def test_broken_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    """EXIF rubbish is ignored."""
    halves("RGB", RED, BLUE).save(tmp_path / "a", "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\x00")
    assert_halves(run(tmp_path / "a"), RED, BLUE, 10)


@pytest.mark.parametrize("suffix", ["TIFF", "GIF", "WEBP", "PNG"])
def test_of_several_frames_the_first_is_taken(tmp_path: Path, suffix: str) -> None:
    """Pages and animations give their first picture."""
    options = {"lossless": True} if suffix == "WEBP" else {}
    first, second = halves("RGB", RED, BLUE), halves("RGB", GREEN, GREEN)
    first.save(tmp_path / "a", suffix, save_all=True, append_images=[second], **options)
    assert_halves(run(tmp_path / "a"), RED, BLUE)


# PDF -------------------------------------------------------------------------------------------------------------


def test_a_pdf_gives_its_first_page_at_the_longest_edge(tmp_path: Path) -> None:
    """The first page is rendered, on white, at the working size; junk before the marker is allowed."""
    pages = [halves("RGB", RED, BLUE, (400, 200)), halves("RGB", GREEN, GREEN)]
    pdf = encoded(pages[0], "PDF", save_all=True, append_images=pages[1:])
    for junk in (b"", b"\r\njunk\n"):
        (tmp_path / "a.jpg").write_bytes(junk + pdf)
        picture = run(tmp_path / "a.jpg", 128)
        assert (picture.mime, picture.width, picture.height) == ("application/pdf", 128, 64)
        assert_halves(picture, RED, BLUE, 10)


def test_an_empty_pdf_page_is_white_and_an_empty_document_corrupt(tmp_path: Path) -> None:
    """Pages have a white ground; a document needs a page."""
    with pypdfium2.PdfDocument.new() as document:
        document.new_page(300, 600)
        document.save(tmp_path / "page.pdf")
    picture = run(tmp_path / "page.pdf", 100)
    assert picture.image.size == (50, 100)
    assert_halves(picture, gray(255), gray(255), 0)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\nand nothing else\n")
    with pytest.raises(CorruptImageError, match="PDF"):
        run(tmp_path / "broken.pdf")


# Faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "mode", "options"),
    [
        ("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "L", {}), ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}), ("PNG", "P", {}), ("PNG", "I;16", {}), ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("TIFF", "RGB", {}), ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "RGB", {"compression": "packbits"}),
        ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}), ("TIFF", "RGB", {"compression": "jpeg"}),
        ("TIFF", "1", {"compression": "group4"}), ("GIF", "P", {}), ("BMP", "RGB", {}), ("JPEG2000", "RGB", {}),
        ("JPEG2000", "RGB", {"irreversible": True, "quality_layers": [40, 20]}), ("PDF", "RGB", {}), ("PDF", "1", {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95, 0.998])
def test_cut_files_are_corrupt(tmp_path: Path, suffix: str, mode: str, options: dict[str, Any], share: float) -> None:
    """A file that ends before its last pixel never passes as a picture, in any format."""
    noise = Image.effect_noise((240, 160), 80).convert("L" if mode == "I;16" else "RGB").convert(mode)
    data = encoded(noise, suffix, **options)
    (tmp_path / "a").write_bytes(data[: max(24, int(len(data) * share))])
    with pytest.raises(CorruptImageError):
        run(tmp_path / "a")


def _pdf_with_early_trailer(jpeg: bytes) -> bytes:
    """A PDF that can be opened from its first half, as those for fast web view can, with its picture at the end."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Resources<</XObject<</I 5 0 R>>>>/Contents 4 0 R>>",
        b"<</Length 26>>stream\nq 300 0 0 200 0 0 cm /I Do Q\nendstream",
    ]
    trailer = b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n0\n%%EOF\n"
    picture = (
        b"<</Type/XObject/Subtype/Image/Width 300/Height 200/ColorSpace/DeviceRGB/BitsPerComponent 8"
        b"/Filter/DCTDecode/Length %d>>stream\n%s\nendstream" % (len(jpeg), jpeg)
    )
    bodies = [b"%d 0 obj\n%s\nendobj\n" % (number, body) for number, body in enumerate([*objects, picture], 1)]
    return b"%PDF-1.4\n" + b"".join(bodies[:-1]) + trailer + bodies[-1] + trailer


def test_a_cut_pdf_that_still_opens_is_corrupt(tmp_path: Path) -> None:
    """Where the renderer would show a white page for a picture that never came, the file is corrupt."""
    data = _pdf_with_early_trailer(encoded(Image.new("RGB", (300, 200), RED), quality=95) + bytes(2000))
    (tmp_path / "a").write_bytes(data)
    assert_halves(run(tmp_path / "a"), RED, RED)
    for length in (len(data) - 60, len(data) - 2500):
        (tmp_path / "a").write_bytes(data[:length])
        with pytest.raises(CorruptImageError, match="cut short"):
            run(tmp_path / "a")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"\xef\xbb\xbf\n <!-- x --> <HTML lang=fr>", "HTML"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?><Error/>', "XML"),
        (b'{"error": "rate limited"}', "JSON.*rate limited"),
        (b"Not found", "text.*Not found"),
        (b"BM is how this text begins", "text"),
        (b"PK\x03\x04" + bytes(30), "ZIP"),
        (b"\0\0\0\x1cftypxyz " + bytes(30), "xyz"),
        (b"\0\0\0\x1cftypxy\x1b\0" + bytes(30), r"xy\\x1b\\x00"),
        (bytes([1, 2, 3, 254] * 100), "01 02 03 fe"),
    ],
)
def test_what_is_no_picture_is_said_to_be_what_it_looks_like(tmp_path: Path, data: bytes, message: str) -> None:
    """The message of `NotAnImageError` names what was sent instead."""
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(NotAnImageError, match=message):
        run(tmp_path / "a.jpg")


def test_formats_outside_the_list_are_refused(tmp_path: Path) -> None:
    """Pillow's other parsers are never given a stranger's bytes."""
    for suffix in ("ICO", "TGA", "EPS", "PCX", "SGI"):
        halves("RGB", RED, BLUE).save(tmp_path / "a", suffix)
        with pytest.raises(NotAnImageError):
            run(tmp_path / "a")


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    """A header beyond the pixel limit is enough to refuse, far beyond it too, and the limit itself is allowed."""

    def header(width: int, height: int) -> bytes:
        body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))

    for width in (10_001, 60_000):
        (tmp_path / "a.png").write_bytes(header(width, 10_000) + struct.pack(">I", 0) + b"IDAT" + bytes(4))
        with pytest.raises(ImageTooLargeError, match="100,000,000"):
            run(tmp_path / "a.png", max_pixels=100_000_000)
    halves("RGB", RED, BLUE).save(tmp_path / "b.png")
    assert run(tmp_path / "b.png", max_pixels=WIDTH * HEIGHT).width == WIDTH
    with pytest.raises(ImageTooLargeError):
        run(tmp_path / "b.png", max_pixels=WIDTH * HEIGHT - 1)


def test_random_damage_never_escapes_the_error_tree(tmp_path: Path) -> None:
    """Flipped bytes give a picture or an `ImageError`, never a foreign exception."""
    for suffix in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "PDF"):
        whole = encoded(halves("RGB", RED, BLUE), suffix)
        for seed in range(12):
            data = bytearray(whole)
            for step in range(8):
                data[(seed * 7919 + step * 104729) % min(len(data), 400)] ^= 1 + (seed * 37 + step * 11) % 255
            (tmp_path / "a").write_bytes(data)
            try:
                run(tmp_path / "a")
            except (CorruptImageError, NotAnImageError, ImageTooLargeError):
                continue


@pytest.mark.parametrize("name", ["missing.jpg", "."])
def test_an_unreadable_path_is_a_file_error(tmp_path: Path, name: str) -> None:
    """What is not there, or is a directory, is told apart from a bad picture."""
    with pytest.raises(LocalFileError):
        run(tmp_path / name)


# Working copies --------------------------------------------------------------------------------------------------


def test_the_working_copy_is_a_plain_jpeg_in_the_cache(tmp_path: Path) -> None:
    """The cached file is what `WorkingCopy` says, without metadata, and made twice it is the same."""
    exif = Image.Exif()
    exif[0x0112] = 6
    halves("RGB", RED, BLUE, (400, 200)).save(tmp_path / "a.jpg", exif=exif, comment=b"secret")
    decoded, data = make_working_copy(tmp_path / "a.jpg", longest_edge=100, max_pixels=1_000_000)
    working = decoded.working
    assert (decoded.mime, decoded.width, decoded.height) == ("image/jpeg", 200, 400)
    assert (working.width, working.height, working.longest_edge) == (50, 100, 100)
    assert (working.sha256, working.size) == (hashlib.sha256(data).hexdigest(), len(data))
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (50, 100))
        assert not image.getexif()
        assert not {"exif", "comment", "icc_profile", "progressive"} & set(image.info)
    assert make_working_copy(tmp_path / "a.jpg", longest_edge=100, max_pixels=1_000_000) == (decoded, data)


def test_working_copy_image_is_what_the_model_gets(tmp_path: Path) -> None:
    """A picture in memory and the same picture through a file and its working copy have the same pixels."""
    picture = Image.effect_noise((700, 500), 60).convert("RGB")
    picture.save(tmp_path / "a.png")
    _, data = make_working_copy(tmp_path / "a.png", longest_edge=300, max_pixels=1_000_000)
    with Image.open(io.BytesIO(data)) as copied:
        assert copied.tobytes() == working_copy_image(picture, 300).tobytes()
    assert encode_working_copy(picture) == encode_working_copy(picture.copy())


@pytest.mark.parametrize("name", ["XML:com.adobe.xmp", "Raw profile type exif"])
def test_a_png_is_turned_by_its_text_too(tmp_path: Path, name: str) -> None:
    """Orientation in XMP, and in the EXIF data that ImageMagick writes as text."""
    exif = Image.Exif()
    exif[0x0112] = 3
    data = exif.tobytes()
    words = PngInfo()
    if name.startswith("XML"):
        words.add_itxt(name, '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>')
    else:
        words.add_text(name, f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
    halves("RGB", RED, BLUE).save(tmp_path / "a", "PNG", pnginfo=words)
    assert_halves(run(tmp_path / "a"), BLUE, RED)


def _animation(path: Path, suffix: str, frames: list[Image.Image]) -> None:
    disposal = {"PNG": 1, "GIF": 2}.get(suffix, 0)
    frames[0].save(
        path, suffix, save_all=True, append_images=frames[1:], duration=100, disposal=disposal, lossless=True
    )


@pytest.mark.parametrize("suffix", ["GIF", "PNG", "WEBP", "AVIF"])
def test_of_an_animation_the_first_frame_that_shows_something_is_taken(tmp_path: Path, suffix: str) -> None:
    """Empty, black and nearly black frames before it are passed over; frames after it do not count."""
    shown, later = (halves("RGBA", (*left, 255), (*right, 255)) for left, right in ((RED, BLUE), (GREEN, RED)))
    empty, black = Image.new("RGBA", shown.size), Image.new("RGBA", shown.size, (0, 0, 0, 255))
    dim = halves("RGBA", (0, 0, 0, 255), (20, 20, 20, 255))
    _animation(tmp_path / "a", suffix, [empty, black, dim, shown, later])
    assert_halves(run(tmp_path / "a"), RED, BLUE, 10)
    _animation(tmp_path / "b", suffix, [shown, later])
    assert_halves(run(tmp_path / "b"), RED, BLUE, 10)
    _animation(tmp_path / "c", suffix, [dim, black, empty])
    assert_halves(run(tmp_path / "c"), gray(0), gray(20), 10)
    if suffix in ("GIF", "PNG"):
        flat = [Image.new("P", shown.size, index) for index in (1, 2, 1)]
        for frame in flat:
            frame.putpalette([0, 0, 0, *RED, *BLUE])
        flat[0].save(tmp_path / "d", suffix, save_all=True, append_images=flat[1:], duration=100)
        assert_halves(run(tmp_path / "d"), RED, RED)


def test_an_animation_is_not_looked_through_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands of empty frames, or of a broken one, the first is taken in little time."""
    frames = [Image.new("L", (8, 8), value % 9) for value in range(200)] + [halves("L", 0, 255, (8, 8))]
    _animation(tmp_path / "a", "GIF", frames)
    assert_halves(run(tmp_path / "a"), gray(0), gray(0))
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "b").write_bytes(data[: len(data) // 100])
    assert_halves(run(tmp_path / "b"), gray(0), gray(0))
    monkeypatch.setattr(animation, "MOST_FRAMES", 999)
    assert_halves(run(tmp_path / "a"), gray(0), gray(255))
    monkeypatch.setattr(animation, "MOST_PIXELS", 64 * 200)
    assert_halves(run(tmp_path / "a"), gray(0), gray(0))
