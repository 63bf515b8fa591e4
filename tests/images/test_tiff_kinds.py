"""TIFFs that Pillow cannot open, or of which it opens another picture than is meant."""

import functools
import io
import itertools
import math
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from images.test_decode import BLUE, GREEN, RED, assert_halves, gray, halves, run
from PIL import Image, ImageChops, ImageCms, ImageOps, ImageStat
from support.tiff_files import (
    BITS,
    COLOUR_MAP,
    COMPRESSION,
    EXTRA_SAMPLES,
    HEIGHT,
    OFFSETS,
    ORIENTATION,
    PHOTOMETRIC,
    PLANAR,
    PREDICTOR,
    ROWS_PER_STRIP,
    SAMPLE_FORMAT,
    SAMPLES,
    SIZES,
    WIDTH,
    big_tiff_of,
    rows_of,
    tiff_of,
    tiffs_of,
)

from etl.domain.statuses import ImageFlag
from etl.errors import CorruptImageError, ImageTooLargeError
from etl.images import tiff
from etl.images import tiff_bands as bands

W, H = 43, 32
TILE_WIDTH, TILE_HEIGHT, SUBFILE, INK_SET, JPEG_AT, JPEG_SIZE = 322, 323, 254, 332, 513, 514
FILL_ORDER = 266
Row = Sequence[float]
Tags = dict[int, int | Sequence[int]]


@functools.cache
def drawn(mode: str = "RGB") -> Image.Image:
    """Gradients and an edge, and in its fourth band opacity that is there or not."""
    across = Image.linear_gradient("L").rotate(90).resize((W, H))
    picture = Image.merge("RGB", (across, Image.linear_gradient("L").resize((W, H)), Image.new("L", (W, H), 90)))
    picture.paste("white", (4, 4, 15, 20))
    if mode == "LAB":
        made = ImageCms.profileToProfile(
            picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
        assert made is not None
        return made
    return picture.convert(mode)


OPACITY = halves("L", 255, 0, (W, H))


def shown(mode: str, is_clear: bool = False) -> Image.Image:
    """What is to be seen of it, over white."""
    right = drawn("RGB") if mode == "LAB" else drawn(mode).convert("RGB")
    return Image.composite(right, Image.new("RGB", (W, H), "white"), OPACITY) if is_clear else right


def _signed(band: int, value: float) -> float:
    return value if band == 0 else value - 128


# A kind: mode, photometric, code of `struct` or bits, sample format, value of a band's byte, extra samples
KINDS: dict[str, tuple[str, int, str | int, int, Callable[[int, int], float], tuple[int, ...]]] = {
    "RGB half": ("RGB", 2, "e", 3, lambda _, v: v / 255, ()),
    "RGB float": ("RGB", 2, "f", 3, lambda _, v: v / 255, ()),
    "RGB float, opacity": ("RGB", 2, "f", 3, lambda _, v: v / 255, (2,)),
    "RGB double": ("RGB", 2, "d", 3, lambda _, v: v / 255, ()),
    "RGB 32": ("RGB", 2, "I", 1, lambda _, v: v << 24, ()),
    "RGB 2": ("RGB", 2, 2, 1, lambda _, v: v >> 6, ()),
    "RGB 4, opacity": ("RGB", 2, 4, 1, lambda _, v: v >> 4, (2,)),
    "RGB 12": ("RGB", 2, 12, 1, lambda _, v: v << 4, ()),
    "RGB 24": ("RGB", 2, 24, 1, lambda _, v: v << 16, ()),
    "RGB, seven more": ("RGB", 2, "B", 1, lambda _, v: v, (0,) * 7),
    "gray 16, opacity": ("L", 1, "H", 1, lambda _, v: v << 8, (2,)),
    "gray, more": ("L", 1, "B", 1, lambda _, v: v, (0, 0)),
    "gray half": ("L", 1, "e", 3, lambda _, v: v / 2 - 9, ()),
    "gray double": ("L", 1, "d", 3, lambda _, v: v * 3, ()),
    "gray 32": ("L", 1, "I", 1, lambda _, v: v << 24, ()),
    "gray 32, small numbers": ("L", 1, "I", 1, lambda _, v: v, ()),
    "gray signed, 0 is white": ("L", 0, "h", 2, lambda _, v: (127 - v) << 8, ()),
    "gray signed 32": ("L", 1, "i", 2, lambda _, v: (v - 128) << 24, ()),
    "gray 10": ("L", 1, 10, 1, lambda _, v: v << 2, ()),
    "CMYK, opacity": ("CMYK", 5, "B", 1, lambda _, v: v, (2,)),
    "CMYK, spot and opacity": ("CMYK", 5, "B", 1, lambda _, v: v, (0, 2)),
    "CMYK 16, spots": ("CMYK", 5, "H", 1, lambda _, v: v << 8, (0, 0)),
    "LAB 16": ("LAB", 8, "h", 1, lambda b, v: (_signed(b, v) * 256 + 32768) % 65536 - 32768, ()),
    "LAB 8": ("LAB", 8, "b", 1, lambda b, v: (_signed(b, v) + 128) % 256 - 128, ()),
    "LAB 8, opacity": ("LAB", 8, "b", 1, lambda b, v: (_signed(b, v) + 128) % 256 - 128, (2,)),
    "LAB float": ("LAB", 8, "f", 3, lambda b, v: v / 2.55 if b == 0 else v - 128, ()),
    "ICC LAB 16": ("LAB", 9, "H", 1, lambda _, v: v << 8, ()),
}


@functools.cache
def lines(kind: str) -> list[list[list[float]]]:
    """Values by band, then row."""
    mode, _, code, _, value, extra = KINDS[kind]
    most = {"e": 1.0, "f": 1.0, "d": 1.0, "B": 255, "b": -1, "H": 65535, "h": -1, "I": 2**32 - 1, "i": -1}
    full = most[code] if isinstance(code, str) else 2**code - 1
    planes = [[value(number, byte) for byte in band.tobytes()] for number, band in enumerate(drawn(mode).split())]
    for one in extra:
        planes.append([full if byte and one else 0 for byte in OPACITY.tobytes()])
    return [[plane[at : at + W] for at in range(0, W * H, W)] for plane in planes]


def packed(row: Row, code: str | int, order: str) -> bytes:
    if isinstance(code, str):
        return struct.pack(f"{order}{len(row)}{code}", *row)
    if code == 24:
        return b"".join(int(value).to_bytes(3, "little" if order == "<" else "big") for value in row)
    bits = "".join(f"{int(value):0{code}b}" for value in row)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8)


def predicted(data: bytes, code: str, order: str, count: int, predictor: int) -> bytes:
    size = struct.calcsize(code)
    if predictor == 3:
        highest_first = [data[at::size] for at in range(size)]
        mixed = b"".join(highest_first if order == ">" else highest_first[::-1])
        return bytes((byte - (mixed[at - count] if at >= count else 0)) % 256 for at, byte in enumerate(mixed))
    unsigned = {1: "B", 2: "H", 4: "I"}[size]
    numbers = struct.unpack(f"{order}{len(data) // size}{unsigned}", data)
    differences = [
        (number - (numbers[at - count] if at >= count else 0)) % 256**size for at, number in enumerate(numbers)
    ]
    return struct.pack(f"{order}{len(numbers)}{unsigned}", *differences)


def stored(kind: str, order: str = "<", *, planar: bool = False, predictor: int = 0, rows: int = 7) -> bytes:
    """A TIFF of the kind; with a predictor, also 1 for none, by Deflate."""
    _, photometric, code, form, _, extra = KINDS[kind]
    planes = lines(kind)
    groups = [[plane] for plane in planes] if planar else [planes]
    strips = []
    for group in groups:
        wholes = [
            packed([v for pixel in zip(*row, strict=True) for v in pixel], code, order)
            for row in zip(*group, strict=True)
        ]
        if predictor > 1:
            assert isinstance(code, str)
            wholes = [predicted(whole, code, order, len(group), predictor) for whole in wholes]
        strips += [b"".join(wholes[at : at + rows]) for at in range(0, H, rows)]
    bits = code if isinstance(code, int) else 8 * struct.calcsize(code)
    tags: dict[int, int | Sequence[int]] = {
        WIDTH: W, HEIGHT: H, BITS: [bits] * len(planes), COMPRESSION: 8 if predictor else 1, PHOTOMETRIC: photometric,
        SAMPLES: len(planes), ROWS_PER_STRIP: rows, PLANAR: 2 if planar else 1, SAMPLE_FORMAT: [form] * len(planes),
    }  # fmt: skip
    tags |= {EXTRA_SAMPLES: extra} if extra else {}
    tags |= {PREDICTOR: predictor} if predictor > 1 else {}
    return tiff_of(tags, [zlib.compress(strip) for strip in strips] if predictor else strips, order=order)


def ways(kind: str) -> Iterator[bytes]:
    """The kind in every order, layout and compression that it can have."""
    code, form = KINDS[kind][2:4]
    # Pillow makes a profile anew for each CIELAB picture.
    is_slow = "LAB" in kind
    for order, planar in (("<", False), (">", True)) if is_slow else itertools.product("<>", (False, True)):
        yield stored(kind, order, planar=planar)
        if not is_slow:
            yield stored(kind, order, planar=planar, predictor=1, rows=H)
        if isinstance(code, str) and code != "d":
            yield stored(kind, order, planar=planar, predictor=3 if form == 3 else 2)


def difference(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_every_kind_become_the_colours_that_were_meant(tmp_path: Path, kind: str) -> None:
    """In both byte orders, in planes or not, compressed or not, with a predictor or not."""
    mode, _, code, form, _, extra = KINDS[kind]
    right = shown(mode, 2 in extra[:1])
    if mode == "L" and (form in (2, 3) or code == "I"):
        right = ImageOps.autocontrast(right)
    allowed = 45 if code == 2 else 10 if code == 4 else 3
    for data in ways(kind):
        (tmp_path / "a").write_bytes(data)
        assert difference(run(tmp_path / "a").image, right) < allowed


def test_palettes_of_65536_colours_are_looked_up(tmp_path: Path) -> None:
    """In both byte orders, and with opacity."""
    red, green, _ = (band.tobytes() for band in drawn().split())
    numbers = [256 * high + low for high, low in zip(red, green, strict=True)]
    colours = [number >> 8 for number in range(65536)], [number & 255 for number in range(65536)], [90] * 65535 + [255]
    tags: Tags = {WIDTH: W, HEIGHT: H, PHOTOMETRIC: 3, COLOUR_MAP: [257 * value for band in colours for value in band]}
    clear = [value for number, byte in zip(numbers, OPACITY.tobytes(), strict=True) for value in (number, 257 * byte)]
    for order, samples, values in ((">", 1, numbers), ("<", 2, clear)):
        extra: Tags = {EXTRA_SAMPLES: [2]} if samples > 1 else {}
        made = tiff_of(
            {**tags, **extra, BITS: [16] * samples, SAMPLES: samples}, [packed(values, "H", order)], order=order
        )
        (tmp_path / "a").write_bytes(made)
        assert difference(run(tmp_path / "a").image, shown("RGB", samples > 1)) < 3


def test_logarithms_of_light_are_shown(tmp_path: Path) -> None:
    """A quarter of the light beside full light, as Radiance and its successors store them, in both byte orders."""
    row = [256 * 62] * 24 + [256 * 64] * 24
    runs = b"".join(bytes([len(row), *part]) for part in ([v >> 8 for v in row], [v & 255 for v in row]))
    tags: Tags = {WIDTH: 48, HEIGHT: 9, BITS: [16], SAMPLES: 1, SAMPLE_FORMAT: 2, COMPRESSION: 34676}
    for order in "<>":
        made = tiff_of({**tags, PHOTOMETRIC: 32844, ROWS_PER_STRIP: 3}, [runs * 3] * 3, order=order)
        (tmp_path / "a").write_bytes(made)
        assert_halves(run(tmp_path / "a"), gray(128), gray(255), 3)


def test_samples_taken_apart_piece_by_piece_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory at a time gives the same pixels, shrunk and turned too."""
    for kind, data in (("CMYK, opacity", stored("CMYK, opacity", predictor=2)), ("gray 32", stored("gray 32", rows=H))):
        (tmp_path / "a").write_bytes(data)
        whole = run(tmp_path / "a", 20).image
        with monkeypatch.context() as small:
            small.setattr(tiff, "PIECE_BYTES", 1000)
            assert run(tmp_path / "a", 20).image.tobytes() == whole.tobytes(), kind


def test_wide_numbers_are_averaged_as_what_they_are(tmp_path: Path) -> None:
    """Sums of whole numbers of 32 bits do not overflow where a picture is made smaller."""
    (tmp_path / "a").write_bytes(stored("gray signed 32"))
    right = ImageOps.autocontrast(shown("L")).resize((20, 15), Image.Resampling.BOX)
    assert difference(run(tmp_path / "a", 20).image, right) < 12


def test_tiles_of_odd_samples_are_put_together(tmp_path: Path) -> None:
    """Tiles of floating-point colours, which overhang at the right and below."""
    planes = lines("RGB float")
    tiles = []
    for top, left in itertools.product(range(0, H, 16), range(0, W, 16)):
        for y in range(top, top + 16):
            row = [planes[b][min(y, H - 1)][min(x, W - 1)] for x in range(left, left + 16) for b in range(3)]
            tiles.append(struct.pack("<48f", *row))
    tags: Tags = {
        WIDTH: W, HEIGHT: H, BITS: [32] * 3, COMPRESSION: 1, PHOTOMETRIC: 2, SAMPLES: 3, SAMPLE_FORMAT: [3] * 3,
        TILE_WIDTH: 16, TILE_HEIGHT: 16,
    }  # fmt: skip
    # Under the tags of strips, which libtiff reads so too.
    (tmp_path / "a").write_bytes(tiff_of(tags, [b"".join(tiles[at : at + 16]) for at in range(0, len(tiles), 16)]))
    assert difference(run(tmp_path / "a").image, drawn()) < 3


def test_light_that_is_brighter_than_white_is_seen_as_on_a_screen(tmp_path: Path) -> None:
    """Floating-point colours beyond 1 are amounts of light, not numbers for a screen."""
    tags: Tags = {
        WIDTH: W, HEIGHT: H, BITS: [32] * 3, COMPRESSION: 1, PHOTOMETRIC: 2, SAMPLES: 3, SAMPLE_FORMAT: [3] * 3,
        ROWS_PER_STRIP: 4,
    }  # fmt: skip
    row = [0.2, 0.2, 0.2] * 22 + [3.0, 1.0, -1.0] * 21
    (tmp_path / "a").write_bytes(tiff_of(tags, [struct.pack(f"<{3 * W}f", *row) * 4] * (H // 4)))
    assert_halves(run(tmp_path / "a"), gray(123), (255, 255, 0), 2)


def test_what_stands_for_no_data_in_a_map_is_dark(tmp_path: Path) -> None:
    """The lowest number that there is does not flatten the heights."""
    tags: Tags = {WIDTH: 4, HEIGHT: 1, BITS: 32, COMPRESSION: 1, PHOTOMETRIC: 1, SAMPLES: 1, SAMPLE_FORMAT: 3}
    data = struct.pack("<4f", -3.4028234663852886e38, 100.0, 200.0, 300.0)
    (tmp_path / "a").write_bytes(tiff_of(tags | {ROWS_PER_STRIP: 1}, [data]))
    image = run(tmp_path / "a").image
    assert [image.getpixel((x, 0)) for x in range(4)] == [gray(0), gray(0), gray(128), gray(255)]


# The picture that is meant ---------------------------------------------------------------------------------------


def plain(image: Image.Image) -> tuple[Tags, list[bytes]]:
    """Tags and strips of an 8-bit picture."""
    count = len(image.getbands())
    tags: dict[int, int | Sequence[int]] = {
        WIDTH: image.width, HEIGHT: image.height, BITS: [8] * count, COMPRESSION: 1, SAMPLES: count,
        PHOTOMETRIC: {1: 1, 3: 2, 4: 5}[count], ROWS_PER_STRIP: 9,
    }  # fmt: skip
    return tags, rows_of(image.tobytes(), image.width * count, 9)


def with_tags(
    image: Image.Image, more: dict[int, int | Sequence[int]]
) -> tuple[dict[int, int | Sequence[int]], list[bytes]]:
    tags, strips = plain(image)
    return {**tags, **more}, strips


SMALL = Image.new("RGB", (16, 8), GREEN)
LARGE = halves("RGB", RED, BLUE)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("mark", [{SUBFILE: 1}, {255: 2}, {SUBFILE: 4}])
@pytest.mark.parametrize("below", [False, True])
def test_a_thumbnail_or_mask_is_not_the_picture(tmp_path: Path, order: str, mark: dict[int, int], below: bool) -> None:
    """The first full picture is, in its own size, whether it follows the thumbnail or lies below it."""
    data = tiffs_of([with_tags(SMALL, dict(mark)), with_tags(LARGE, {SUBFILE: 0})], order=order, below=below)
    (tmp_path / "a").write_bytes(data)
    picture = run(tmp_path / "a")
    assert (picture.width, picture.height) == LARGE.size
    assert_halves(picture, RED, BLUE)


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_first_of_several_pages_is_told(tmp_path: Path, order: str) -> None:
    """Small versions and masks are no pages, and neither is what lies below another picture."""
    page, small = with_tags(LARGE, {SUBFILE: 0}), with_tags(SMALL, {SUBFILE: 1})
    for pictures, is_below, flags in (
        ([page, small, page], False, {ImageFlag.PAGES}), ([small, page], False, set()), ([page, page], True, set()),
    ):  # fmt: skip
        (tmp_path / "a").write_bytes(tiffs_of(pictures, order=order, below=is_below))
        assert run(tmp_path / "a").flags == flags


def test_where_all_call_themselves_small_the_first_is_meant(tmp_path: Path) -> None:
    """A mark that every page has says nothing."""
    (tmp_path / "a").write_bytes(tiffs_of([with_tags(LARGE, {SUBFILE: 1}), with_tags(SMALL, {SUBFILE: 1})]))
    assert_halves(run(tmp_path / "a"), RED, BLUE)


def test_a_palette_of_bytes_is_no_palette_of_black(tmp_path: Path) -> None:
    """Colour maps whose writers took 255 for white."""
    colours = [channel for one, other in zip(RED, BLUE, strict=True) for channel in (one, other, *[0] * 254)]
    tags, strips = plain(halves("L", 0, 1))
    (tmp_path / "a").write_bytes(tiff_of(tags | {PHOTOMETRIC: 3, COLOUR_MAP: colours}, strips))
    assert_halves(run(tmp_path / "a"), RED, BLUE)


def test_words_that_lie_outside_the_file_do_not_cost_the_picture(tmp_path: Path) -> None:
    """A value without which the pixels can be shown is passed over, and so the directory is read to its end."""
    buffer = io.BytesIO()
    drawn().save(buffer, "TIFF", description="a field and a tree")
    entry = struct.pack("<HHI", 270, 2, 19)
    at = buffer.getvalue().index(entry) + len(entry)
    data = buffer.getvalue()[:at] + struct.pack("<I", 10**8) + buffer.getvalue()[at + 4 :]
    (tmp_path / "a").write_bytes(data)
    assert difference(run(tmp_path / "a").image, drawn()) < 3


def sparse(compression: int) -> bytes:
    """A picture of four strips, the second of which was left out."""
    whole = drawn().tobytes()
    strips = [whole[: 24 * W], b"", whole[48 * W : 72 * W], whole[72 * W :]]
    tags, _ = with_tags(drawn(), {COMPRESSION: compression, ROWS_PER_STRIP: 8})
    data = tiff_of(tags, [zlib.compress(strip) if strip and compression != 1 else strip for strip in strips])
    place = struct.unpack_from("<L", data, data.index(struct.pack("<HHL", OFFSETS, 4, 4)) + 8)[0] + 4
    return data[:place] + bytes(4) + data[place + 4 :]


def planes_of_jpeg() -> bytes:
    """Gray and its opacity, each a JPEG."""
    strips = []
    for plane in (drawn("L"), OPACITY):
        plane.save(buffer := io.BytesIO(), "JPEG", quality=95)
        strips.append(buffer.getvalue())
    tags, _ = plain(drawn("L"))
    more: Tags = {BITS: [8, 8], SAMPLES: 2, COMPRESSION: 7, PLANAR: 2, EXTRA_SAMPLES: 2, ROWS_PER_STRIP: H}
    return tiff_of({**tags, **more}, strips)


def backwards() -> bytes:
    """A palette of sixteen grays, the first of two pixels in the lower half of a byte, bits from right to left."""
    gray = drawn("L").tobytes()
    rows = [packed([v >> 4 for v in gray[at : at + W]], 4, "<") for at in range(0, W * H, W)]
    strip = bytes(int(f"{byte:08b}"[::-1], 2) for byte in b"".join(rows))
    tags, _ = with_tags(drawn("L"), {BITS: 4, PHOTOMETRIC: 3, FILL_ORDER: 2, ROWS_PER_STRIP: H})
    return tiff_of({**tags, COLOUR_MAP: [4369 * level for level in range(16)] * 3}, [strip])


def header_apart() -> bytes:
    """A JPEG of the old style whose header alone is a file, and whose pixels are the strip."""
    drawn().save(buffer := io.BytesIO(), "JPEG", quality=95, subsampling=0)
    jpeg = buffer.getvalue()
    scan = jpeg.index(b"\xff\xda") + 2
    scan += int.from_bytes(jpeg[scan : scan + 2])
    more: Tags = {COMPRESSION: 6, PHOTOMETRIC: 6, 530: [1, 1], ROWS_PER_STRIP: H, JPEG_SIZE: scan}
    tags = {**plain(drawn())[0], **more}
    at = len(tiff_of(tags | {JPEG_AT: 0}, [jpeg[scan:]]))
    return tiff_of(tags | {JPEG_AT: at}, [jpeg[scan:]], tail=jpeg[:scan])


def gapped() -> Image.Image:
    picture = drawn().copy()
    picture.paste("black", (0, 8, W, 16))
    return picture


READABLE: dict[str, tuple[Callable[[], bytes], Callable[[], Image.Image]]] = {
    "a strip left out": (lambda: sparse(1), gapped),
    "a strip left out, Deflate": (lambda: sparse(8), gapped),
    "opacity in planes of JPEG": (planes_of_jpeg, lambda: shown("L", is_clear=True)),
    "a JPEG's header apart from its pixels": (header_apart, drawn),
    "a fourth of which nothing is said": (
        lambda: stored("RGB float, opacity").replace(struct.pack("<HHL", 338, 3, 1), struct.pack("<HHL", 337, 3, 1)),
        lambda: shown("RGB", is_clear=True),
    ),
    "bytes that are said to have a sign": (
        lambda: tiff_of({**plain(drawn("L"))[0], SAMPLE_FORMAT: 2}, plain(drawn("L"))[1], order=">"),
        lambda: shown("L"),
    ),
    "a palette backwards": (backwards, lambda: shown("L")),
}


@pytest.mark.parametrize("kind", READABLE)
def test_what_pillow_misreads_is_shown(tmp_path: Path, kind: str) -> None:
    """Odd ways of storing pixels that Pillow takes for others, or for none."""
    make, right = READABLE[kind]
    (tmp_path / "a").write_bytes(make())
    assert difference(run(tmp_path / "a").image, right()) < 6


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_files_of_either_byte_order_are_read(tmp_path: Path, order: str, orientation: int) -> None:
    """BigTIFF, upright."""
    (tmp_path / "a").write_bytes(big_tiff_of(*with_tags(LARGE, {ORIENTATION: orientation}), order=order))
    picture = run(tmp_path / "a")
    turned = picture.image if orientation == 1 else picture.image.transpose(Image.Transpose.ROTATE_90)
    assert (picture.width, picture.height) == picture.image.size
    assert difference(turned, LARGE) < 3


def test_a_jpeg_of_the_old_style_that_is_whole_is_opened_as_one(tmp_path: Path) -> None:
    """Compression 6 with a gray JPEG file inside, which libtiff takes for YCbCr."""
    buffer = io.BytesIO()
    halves("L", 60, 190).save(buffer, "JPEG", quality=95)
    jpeg = buffer.getvalue()
    tags, _ = with_tags(halves("L", 0, 0), {COMPRESSION: 6, ROWS_PER_STRIP: 99, JPEG_AT: 8, JPEG_SIZE: len(jpeg)})
    (tmp_path / "a").write_bytes(tiff_of(tags, [jpeg]))
    assert_halves(run(tmp_path / "a"), gray(60), gray(190))


# Raw data of cameras ---------------------------------------------------------------------------------------------


def raw(preview: Image.Image | None, *, as_jpeg: bool = True, orientation: int = 1) -> bytes:
    """What a camera writes: a small RGB picture, a preview below it, and a mosaic."""
    sensor = with_tags(Image.new("L", (200, 100), 99), {SUBFILE: 0, PHOTOMETRIC: 32803})
    pictures = [with_tags(SMALL, {SUBFILE: 1, ORIENTATION: orientation}), sensor]
    if preview is not None:
        tags, strips = with_tags(preview, {SUBFILE: 1})
        if as_jpeg:
            buffer = io.BytesIO()
            preview.save(buffer, "JPEG", quality=95)
            tags, strips = tags | {COMPRESSION: 7, PHOTOMETRIC: 6, ROWS_PER_STRIP: 999}, [buffer.getvalue()]
        pictures.append((tags, strips))
    return tiffs_of(pictures, below=True)


@pytest.mark.parametrize("as_jpeg", [False, True])
@pytest.mark.parametrize("longest_edge", [64, 1000])
def test_of_raw_data_the_preview_is_shown(tmp_path: Path, as_jpeg: bool, longest_edge: int) -> None:
    """The largest that is made for people, upright, with its own size."""
    preview = halves("RGB", RED, BLUE, (192, 96))
    (tmp_path / "a").write_bytes(raw(preview, as_jpeg=as_jpeg, orientation=3))
    picture = run(tmp_path / "a", longest_edge)
    assert (picture.width, picture.height) == (192, 96)
    assert_halves(picture, BLUE, RED)


@pytest.mark.parametrize("preview", [None, SMALL, halves("RGB", RED, BLUE, (60, 30))])
def test_raw_data_without_a_preview_of_its_size_are_refused(tmp_path: Path, preview: Image.Image | None) -> None:
    """A thumbnail is not the picture, and a mosaic is none."""
    (tmp_path / "a").write_bytes(raw(preview))
    with pytest.raises(CorruptImageError, match="raw data, with no preview larger than"):
        run(tmp_path / "a", 1000)


# Faults ----------------------------------------------------------------------------------------------------------

NAN = float("nan")
STORED: Tags = {WIDTH: 4, HEIGHT: 1, COMPRESSION: 1, ROWS_PER_STRIP: 1}
FLOATS: Tags = STORED | {BITS: [32] * 3, PHOTOMETRIC: 2, SAMPLES: 3, SAMPLE_FORMAT: [3] * 3}
INKS: Tags = STORED | {BITS: [8] * 5, PHOTOMETRIC: 5, SAMPLES: 5, EXTRA_SAMPLES: 2}
REFUSED = {
    "colours to 255": tiff_of(FLOATS, [struct.pack("<12f", *[200.0] * 12)]),
    "colours that are none": tiff_of(FLOATS, [struct.pack("<12f", *[NAN] * 12)]),
    "colours with signs": tiff_of(FLOATS | {BITS: [16] * 3, SAMPLE_FORMAT: [2] * 3}, [bytes(24)]),
    "other inks": tiff_of(INKS | {INK_SET: 2}, [bytes(20)]),
    "a strip too short": tiff_of(INKS | {COMPRESSION: 8}, [zlib.compress(bytes(19))]),
    "no sizes": tiff_of(FLOATS | {COMPRESSION: 5, HEIGHT: 9}, [bytes(10)]),
    "a directory beyond the end": b"II*\0" + struct.pack("<L", 2**31),
    "a directory far beyond the end": b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**62),
    "a directory that follows itself": struct.pack("<2sHLHHHLLL", b"II", 42, 8, 1, 254, 4, 1, 1, 8),
    "no pixels": struct.pack("<2sHLHHHLLL", b"II", 42, 8, 1, 262, 3, 1, 32803, 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_understood_is_refused(tmp_path: Path, kind: str) -> None:
    """Rather than shown with the wrong colours."""
    (tmp_path / "a").write_bytes(REFUSED[kind])
    with pytest.raises(CorruptImageError):
        run(tmp_path / "a")


def test_too_many_pixels_are_refused_before_they_are_read(tmp_path: Path) -> None:
    """Also where Pillow does not see the header."""
    tags = FLOATS | {WIDTH: 60_000, HEIGHT: 60_000, ROWS_PER_STRIP: 60_000}
    (tmp_path / "a").write_bytes(tiff_of(tags, [b""]))
    with pytest.raises(ImageTooLargeError):
        run(tmp_path / "a")


def test_no_room_is_made_for_what_is_not_in_the_file(tmp_path: Path) -> None:
    """A strip that calls itself as large as the memory is broken, which is found before any is taken."""
    tags, strips = plain(drawn())
    odd = tags | {BITS: [12] * 3, COMPRESSION: 8, ROWS_PER_STRIP: H}
    data = tiff_of(odd, [zlib.compress(b"".join(strips))])
    size = struct.pack("<HHL", SIZES, 4, 1)
    at = data.index(size) + len(size)
    (tmp_path / "a").write_bytes(data[:at] + struct.pack("<L", 0xEFFFFFFF) + data[at + 4 :])
    tracemalloc.start()
    try:
        with pytest.raises(CorruptImageError, match="beyond the end"):
            run(tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()


def test_loops_of_directories_end(tmp_path: Path) -> None:
    """A thumbnail below which it lies itself is shown for want of better."""
    data = bytearray(tiffs_of([with_tags(SMALL, {SUBFILE: 1, 330: 8})]))
    at = struct.unpack_from("<L", data, 4)[0]
    count = struct.unpack_from("<H", data, at)[0]
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, entry)[0] == 330:
            struct.pack_into("<HLL", data, entry + 2, 4, 1, at)
    struct.pack_into("<L", data, at + 2 + 12 * count, at)
    (tmp_path / "a").write_bytes(data)
    assert_halves(run(tmp_path / "a"), GREEN, GREEN)
    assert math.isclose(bands.LARGE_BYTES, 64 * 1024**2)
