"""TIFFs decoded in pieces: the same pixels as at once, in little memory; and TIFFs that Pillow alone misreads."""

import functools
import math
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import pyvips
from PIL import Image, ImageChops, ImageCms, ImageDraw, ImageStat
from PIL.TiffImagePlugin import TiffImageFile
from support.tiff_files import (
    BITS,
    COLOUR_MAP,
    COMPRESSION,
    EXTRA_SAMPLES,
    HEIGHT,
    ORIENTATION,
    PHOTOMETRIC,
    PLANAR,
    PREDICTOR,
    ROWS_PER_STRIP,
    SAMPLE_FORMAT,
    SAMPLES,
    SUBSAMPLING,
    WIDTH,
    rows_of,
    tiff_of,
)

from etl.errors import CorruptImageError
from etl.images import tiff
from etl.images import tiff_bands as bands
from etl.images.decode import decode

Tags = dict[int, int | Sequence[int]]

W, H = 203, 157
EDGE = 60
"""So three by three pixels become one, and neither side is a multiple of three."""

MODES = ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB")
PLAIN = {  # mode: bits, photometric, sample format, extra samples
    "1": ([1], 1, 1, ()), "L": ([8], 1, 1, ()), "inverted": ([8], 0, 1, ()), "P": ([8], 3, 1, ()),
    "LA": ([8] * 2, 1, 1, (2,)), "RGB": ([8] * 3, 2, 1, ()), "RGBA": ([8] * 4, 2, 1, (2,)),
    "CMYK": ([8] * 4, 5, 1, ()), "16-bit gray": ([16], 1, 1, ()), "signed gray": ([16], 1, 2, ()),
    "16-bit RGB": ([16] * 3, 2, 1, ()), "float gray": ([32], 1, 3, ()),
}  # fmt: skip


def drawn(mode: str = "RGB", size: tuple[int, int] = (W, H)) -> Image.Image:
    """A picture with gradients, edges and patches, everywhere different."""
    across = Image.linear_gradient("L").rotate(90).resize(size)
    down = Image.linear_gradient("L").resize(size)
    picture = Image.merge("RGB", (across, down, Image.radial_gradient("L").resize(size)))
    draw = ImageDraw.Draw(picture)
    for number, colour in enumerate(("black", "white", "#c15a63", "#67bdaa", "#505ba6")):
        draw.rectangle((10 + 37 * number, 11 + 13 * number, 39 + 37 * number, 49 + 13 * number), colour)
    draw.line((5, size[1] - 9, size[0] - 20, 100), "white", 5)
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB") or picture
    if mode in ("LA", "RGBA"):
        picture.putalpha(down)
    return picture.convert("P", palette=Image.Palette.ADAPTIVE) if mode == "P" else picture.convert(mode)


@functools.cache
def samples(kind: str, order: str) -> tuple[bytes, list[int]]:
    """The pixels of a `PLAIN` kind, chunky, and the tag of its colour map."""
    if kind in ("16-bit gray", "signed gray", "float gray", "16-bit RGB"):
        values: Sequence[float] = drawn("RGB" if "RGB" in kind else "L").tobytes()
        code = {"1": "H", "s": "h", "f": "f"}[kind[0]]
        change = {"1": lambda v: v * 200 + 77, "s": lambda v: v * 100 - 9000, "f": lambda v: v / 100 - 1}[kind[0]]
        return struct.pack(f"{order}{len(values)}{code}", *map(change, values)), []
    picture = drawn("L" if kind == "inverted" else kind)
    palette = [256 * value for start in range(3) for value in (picture.getpalette() or [])[start::3]]
    return picture.tobytes(), palette


def plain(
    kind: str,
    *,
    order: str = "<",
    rows: int = 16,
    planar: bool = False,
    deflate: bool = False,
    orientation: int = 1,
    strips_last: bool = False,
) -> bytes:
    """A TIFF of a `PLAIN` kind, not compressed or with Deflate."""
    bits, photometric, sample_format, extra = PLAIN[kind]
    data, palette = samples(kind, order)
    size = bits[0] // 8
    planes = [data]
    if planar:
        planes = [
            b"".join(data[at : at + size] for at in range(number * size, len(data), size * len(bits)))
            for number in range(len(bits))
        ]
    strips = [strip for plane in planes for strip in rows_of(plane, len(plane) // H, rows)]
    tags: Tags = {
        WIDTH: W, HEIGHT: H, BITS: bits, COMPRESSION: 8 if deflate else 1, PHOTOMETRIC: photometric,
        SAMPLES: len(bits), ROWS_PER_STRIP: rows, ORIENTATION: orientation, PLANAR: 2 if planar else 1,
        SAMPLE_FORMAT: [sample_format] * len(bits),
    }  # fmt: skip
    tags |= {EXTRA_SAMPLES: extra} if extra else {}
    palette += [0] * (768 - len(palette)) if palette else []
    tags |= {COLOUR_MAP: palette} if palette else {}
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    return tiff_of(tags, strips, order=order, strips_last=strips_last)


def run(path: Path, edge: int = EDGE) -> Image.Image:
    return decode(path, longest_edge=edge, max_pixels=10**9).image


def greatest_difference(one: Image.Image, other: Image.Image) -> int:
    assert one.size == other.size
    return int(max(high for _, high in ImageStat.Stat(ImageChops.difference(one, other)).extrema))


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3


@pytest.fixture
def assert_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Image.Image]:
    """Return a function that decodes a file at once and in pieces, and compares."""

    def check(path: Path) -> Image.Image:
        monkeypatch.setattr(bands, "LARGE_BYTES", 10**12)
        with monkeypatch.context() as one_piece:
            one_piece.setattr(tiff, "PIECE_BYTES", 10**12)
            whole = run(path)
        monkeypatch.setattr(bands, "LARGE_BYTES", 0)
        monkeypatch.setattr(tiff, "PIECE_BYTES", 15_000)
        with Image.open(path) as image:
            assert isinstance(image, TiffImageFile)
            layout = tiff.layout_of(image)
            assert layout is not None
            heights = [piece.height for piece in tiff.pictures(image, layout)]
        assert len(heights) > 1
        assert sum(heights) == layout.height
        pieces = run(path)
        assert greatest_difference(pieces, whole) == 0
        return pieces

    return check


SameInPieces = Callable[[Path], Image.Image]


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("rows", [1, 16, H])
def test_a_picture_in_pieces_is_the_same(
    tmp_path: Path, kind: str, order: str, deflate: bool, rows: int, assert_same_in_pieces: SameInPieces
) -> None:
    """Every depth and byte order gives the same pixels in pieces, from single rows, strips and one strip for all."""
    (tmp_path / "a.tif").write_bytes(plain(kind, order=order, rows=rows, deflate=deflate))
    assert_same_in_pieces(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "CMYK", "16-bit RGB"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("rows", [16, H])
def test_samples_in_planes_are_put_together(
    tmp_path: Path, kind: str, order: str, deflate: bool, rows: int, assert_same_in_pieces: SameInPieces
) -> None:
    """One plane per sample gives what interleaved samples give, in pieces or not."""
    (tmp_path / "a.tif").write_bytes(plain(kind, order=order, rows=rows, deflate=deflate, planar=True))
    (tmp_path / "chunky.tif").write_bytes(plain(kind))
    assert greatest_difference(assert_same_in_pieces(tmp_path / "a.tif"), run(tmp_path / "chunky.tif")) == 0


@pytest.mark.parametrize(
    ("compression", "modes"),
    [
        ("tiff_lzw", MODES),
        ("packbits", MODES),
        ("tiff_adobe_deflate", MODES),
        ("tiff_deflate", ("RGB",)),
        ("lzma", ("RGB",)),
        ("zstd", ("RGB",)),
        ("jpeg", ("L", "RGB", "CMYK", "YCbCr")),
        ("group3", ("1",)),
        ("group4", ("1",)),
        ("tiff_ccitt", ("1",)),
    ],
)
def test_every_compression_is_decoded_in_pieces(
    tmp_path: Path, compression: str, modes: tuple[str, ...], assert_same_in_pieces: SameInPieces
) -> None:
    """Whatever Pillow can write in strips gives the same pixels in pieces."""
    for mode in modes:
        picture = drawn(mode)
        picture.save(tmp_path / "a.tif", compression=compression, strip_size=len(picture.tobytes()) // H * 24)
        assert_same_in_pieces(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "none"},
        {"compression": "none", "bigtiff": True},
        {"compression": "lzw", "predictor": "horizontal"},
        {"compression": "deflate", "predictor": "horizontal", "bigtiff": True},
        {"compression": "jpeg", "Q": 90},
        {"compression": "jpeg", "Q": 80, "pyramid": True},
        {"compression": "ccittfax4", "bitdepth": 1, "predictor": "none"},
    ],
)
def test_tiles_are_decoded_in_pieces(
    tmp_path: Path, options: dict[str, object], assert_same_in_pieces: SameInPieces
) -> None:
    """Tiles, which overhang at the right and below, give the same pixels in pieces."""
    mode = "L" if "bitdepth" in options else "RGB"
    size = (W, H)
    picture = pyvips.Image.new_from_memory(drawn(mode).tobytes(), *size, len(mode), "uchar")
    picture = picture.copy(interpretation="b-w" if mode == "L" else "srgb")
    picture.tiffsave(str(tmp_path / "a.tif"), tile=True, tile_width=64, tile_height=32, **options)
    assert_same_in_pieces(tmp_path / "a.tif")


@pytest.mark.parametrize("bits", [8, 16])
def test_a_predictor_survives_the_cutting_of_a_strip(
    tmp_path: Path, bits: int, assert_same_in_pieces: SameInPieces
) -> None:
    """One Deflate strip with differences for pixels is inflated part by part."""
    shift = bits - 8
    values = [value << shift for value in drawn("L").tobytes()]
    differences = [
        (value - (values[at - 1] if at % W else 0)) % (1 << bits) for at, value in enumerate(values)
    ]  # fmt: skip
    data = struct.pack(f"<{len(differences)}{'B' if bits == 8 else 'H'}", *differences)
    tags = {WIDTH: W, HEIGHT: H, BITS: bits, COMPRESSION: 8, PHOTOMETRIC: 1, SAMPLES: 1, ROWS_PER_STRIP: H}
    (tmp_path / "a.tif").write_bytes(tiff_of(tags | {PREDICTOR: 2}, [zlib.compress(data)]))
    assert_same_in_pieces(tmp_path / "a.tif")
    assert mean_difference(run(tmp_path / "a.tif", 1000), drawn("L").convert("RGB")) < 0.1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("rows", [5, 16])
def test_turned_pictures_in_pieces_come_out_upright(
    tmp_path: Path, orientation: int, rows: int, assert_same_in_pieces: SameInPieces
) -> None:
    """All eight orientations give the pixels that turning the whole would give."""
    (tmp_path / "a.tif").write_bytes(plain("RGB", rows=rows, orientation=orientation))
    assert_same_in_pieces(tmp_path / "a.tif")
    picture = decode(tmp_path / "a.tif", longest_edge=EDGE, max_pixels=10**9)
    assert (picture.width, picture.height) == ((W, H) if orientation < 5 else (H, W))


def test_holes_in_a_float_picture_take_the_lowest_value_of_all_pieces(
    tmp_path: Path, assert_same_in_pieces: SameInPieces
) -> None:
    """NaN in one piece is as dark as the darkest pixel of another."""
    values = [math.nan if 500 < at < 9000 else math.inf if at == 200 else at / 1000 for at in range(W * H, 0, -1)]
    data = struct.pack(f"<{W * H}f", *values)
    tags = {WIDTH: W, HEIGHT: H, BITS: 32, COMPRESSION: 1, PHOTOMETRIC: 1, SAMPLES: 1, ROWS_PER_STRIP: 16}
    (tmp_path / "a.tif").write_bytes(tiff_of(tags | {SAMPLE_FORMAT: 3}, rows_of(data, 4 * W, 16)))
    assert_same_in_pieces(tmp_path / "a.tif")


def test_profile_and_further_pages_make_no_difference_to_pieces(
    tmp_path: Path, assert_same_in_pieces: SameInPieces
) -> None:
    """An embedded profile is applied, and the first of several pages taken."""
    picture = pyvips.Image.new_from_memory(drawn().tobytes(), W, H, 3, "uchar").copy(interpretation="srgb")
    page = picture.icc_transform("p3", input_profile="srgb")
    both = page.join(page.invert(), "vertical")
    both.set_type(pyvips.GValue.gint_type, "page-height", H)
    both.tiffsave(str(tmp_path / "a.tif"), compression="lzw")
    with TiffImageFile(tmp_path / "a.tif") as image:
        assert (image.n_frames, "icc_profile" in image.info) == (2, True)
    assert_same_in_pieces(tmp_path / "a.tif")
    assert mean_difference(run(tmp_path / "a.tif", 1000), drawn()) < 2


@pytest.mark.parametrize("compression", [1, 5])
def test_one_strip_that_cannot_be_cut_is_decoded_at_once(
    tmp_path: Path, compression: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single LZW strip gives the same pixels, averaged band by band after it was decoded."""
    drawn().save(tmp_path / "a.tif", compression="tiff_lzw" if compression == 5 else "packbits", strip_size=10**7)
    whole = run(tmp_path / "a.tif")
    monkeypatch.setattr(bands, "LARGE_BYTES", 0)
    monkeypatch.setattr(tiff, "PIECE_BYTES", 15_000)
    assert greatest_difference(run(tmp_path / "a.tif"), whole) == 0


# What Pillow misreads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
def test_wide_samples_in_planes_keep_their_colours(tmp_path: Path, order: str, deflate: bool) -> None:
    """16-bit RGB in planes is RGB, in both byte orders, compressed or not."""
    picture = drawn().point(lambda value: value * 200 // 256)
    (tmp_path / "a.tif").write_bytes(plain("16-bit RGB", order=order, planar=True, deflate=deflate))
    assert greatest_difference(run(tmp_path / "a.tif", 1000), picture) <= 2


@pytest.mark.parametrize("kind", ["16-bit gray", "signed gray", "float gray"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
def test_compressed_gray_of_either_byte_order_keeps_its_tones(
    tmp_path: Path, kind: str, order: str, deflate: bool
) -> None:
    """Wide gray is stretched from its real values in both byte orders, compressed or not."""
    (tmp_path / "a.tif").write_bytes(plain(kind, order=order, deflate=deflate))
    assert greatest_difference(run(tmp_path / "a.tif", 1000), drawn("L").convert("RGB")) <= 1


@pytest.mark.parametrize(("across", "down"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("rows", [32, 160])
def test_subsampled_colours_are_read_as_they_are_packed(
    tmp_path: Path, across: int, down: int, deflate: bool, rows: int
) -> None:
    """YCbCr whose pixels share their colour is RGB of the right colours, also where other bytes follow the strips.

    Coefficients that are none do not matter.
    """
    width, height = 204, 160
    picture = drawn("RGB", (width, height))
    luma, *chroma = picture.convert("YCbCr").split()
    bright = luma.tobytes()
    shared = [plane.resize((width // across, height // down), Image.Resampling.BOX).tobytes() for plane in chroma]
    blocks = bytearray()
    for y in range(0, height, down):
        for x in range(0, width, across):
            for row in range(y, y + down):
                blocks += bright[row * width + x : row * width + x + across]
            blocks += bytes(plane[y // down * (width // across) + x // across] for plane in shared)
    strips = rows_of(bytes(blocks), len(blocks) // height, rows)
    tags: Tags = {
        WIDTH: width, HEIGHT: height, BITS: [8] * 3, COMPRESSION: 8 if deflate else 1, PHOTOMETRIC: 6, SAMPLES: 3,
        ROWS_PER_STRIP: rows, SUBSAMPLING: [across, down],
    }  # fmt: skip
    tags |= {529: [0, 0, 0]} if across == 1 else {}
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    (tmp_path / "a.tif").write_bytes(tiff_of(tags, strips, tail=bytes(200_000)))
    assert mean_difference(run(tmp_path / "a.tif", 1000), picture) < 3


# Faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 16, H])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("planar", [False, True])
def test_a_strip_beyond_the_end_of_the_file_is_corrupt(
    tmp_path: Path, rows: int, deflate: bool, planar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file whose last strip is cut short, or points behind its end, is never half a picture."""
    monkeypatch.setattr(bands, "LARGE_BYTES", 0)
    monkeypatch.setattr(tiff, "PIECE_BYTES", 15_000)
    data = plain("RGB", rows=rows, deflate=deflate, planar=planar, strips_last=True)
    (tmp_path / "a.tif").write_bytes(data)
    run(tmp_path / "a.tif")
    for missing in (20, 8000):
        (tmp_path / "a.tif").write_bytes(data[:-missing])
        with pytest.raises(CorruptImageError):
            run(tmp_path / "a.tif")


@pytest.mark.parametrize("rows", [16, H])
def test_a_strip_with_too_few_pixels_is_corrupt(tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Deflate strip that inflates to less than its rows is never half a picture."""
    monkeypatch.setattr(bands, "LARGE_BYTES", 0)
    monkeypatch.setattr(tiff, "PIECE_BYTES", 15_000)
    strips = rows_of(drawn().tobytes(), 3 * W, rows)
    strips[-1] = strips[-1][:-100]
    tags: Tags = {WIDTH: W, HEIGHT: H, BITS: [8] * 3, COMPRESSION: 8, PHOTOMETRIC: 2, SAMPLES: 3, ROWS_PER_STRIP: rows}
    (tmp_path / "a.tif").write_bytes(tiff_of(tags, [zlib.compress(strip) for strip in strips]))
    with pytest.raises(CorruptImageError):
        run(tmp_path / "a.tif")


# Memory ---------------------------------------------------------------------------------------------------------

_CHILD = """
import re, sys
from pathlib import Path
from etl.images.decode import make_working_copy
made, _ = make_working_copy(Path(sys.argv[1]), longest_edge=1024, max_pixels=400_000_000)
print(made.width, made.height, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def peak_megabytes(path: Path, size: tuple[int, int]) -> float:
    """Decode in a process of its own and return the most memory that it held."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path)], capture_output=True, text=True,
        check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    width, height, peak = map(int, done.stdout.split())
    assert (width, height) == size
    return peak / 1000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("rows", [64, 6400])
def test_a_raw_tiff_of_123_megabytes_takes_little_memory(tmp_path: Path, rows: int) -> None:
    """123 MB of uncompressed RGB, in strips or in one, are decoded within 120 MB; at once it would be 200."""
    width, height = 6406, 6400
    block = os.urandom(3 * width * 64)
    data = tiff_of(
        {WIDTH: width, HEIGHT: height, BITS: [8] * 3, COMPRESSION: 1, PHOTOMETRIC: 2, SAMPLES: 3, ROWS_PER_STRIP: rows},
        rows_of(block * 100, 3 * width, rows),
    )
    assert len(data) > 122e6
    (tmp_path / "a.tif").write_bytes(data)
    assert peak_megabytes(tmp_path / "a.tif", (width, height)) < 120


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("kind", ["LZW strips", pytest.param("one Deflate strip", marks=pytest.mark.soak)])
def test_a_compressed_tiff_of_two_hundred_megabytes_takes_little_memory(tmp_path: Path, kind: str) -> None:
    """What inflates to 200 MB of RGB is decoded within 120 MB; at once it would be over 300."""
    width, height = 8200, 8192
    if kind == "LZW strips":
        rows, compression, repeat = 64, 5, height // 64
        drawn("RGB", (width, rows)).save(tmp_path / "b.tif", compression="tiff_lzw", strip_size=3 * width * rows)
        with TiffImageFile(tmp_path / "b.tif") as image:
            (offset,), (size,) = image.tag_v2[273], image.tag_v2[279]
        strip = (tmp_path / "b.tif").read_bytes()[offset : offset + size]
    else:
        rows, compression, repeat = height, 8, 1
        deflater = zlib.compressobj(1)
        block = drawn("RGB", (width, 64)).tobytes()
        strip = b"".join(deflater.compress(block) for _ in range(height // 64)) + deflater.flush()
    tags: Tags = {WIDTH: width, HEIGHT: height, BITS: [8] * 3, PHOTOMETRIC: 2, SAMPLES: 3, ROWS_PER_STRIP: rows}
    (tmp_path / "a.tif").write_bytes(tiff_of(tags | {COMPRESSION: compression}, [strip], repeat=repeat))
    assert peak_megabytes(tmp_path / "a.tif", (width, height)) < 120
