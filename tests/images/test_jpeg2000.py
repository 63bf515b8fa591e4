"""JPEG 2000: what its boxes say of its samples, and how much of it is decoded."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from images.test_decode import BLUE, GREEN, RED, Colour, assert_halves, gray, halves, run, swapped_profile
from PIL import Image, ImageChops, ImageCms, ImageStat
from support import odd_pictures as odd

from etl.domain.statuses import ImageFlag
from etl.errors import CorruptImageError, ImageError, TruncatedImageError
from etl.images import jpeg2000
from etl.images.decode import decode

CMYK, LAB, SRGB, GRAY, SYCC = 12, 14, 16, 17, 18


def box(name: bytes, data: bytes) -> bytes:
    return struct.pack(">L4s", 8 + len(data), name) + data


def space(number: int, *ranges: int) -> bytes:
    return box(b"colr", struct.pack(f">BBBL{len(ranges)}L", 1, 0, 0, number, *ranges))


def profile(data: bytes, method: int = 2) -> bytes:
    return box(b"colr", bytes([method, 0, 0]) + data)


def channels(*named: tuple[int, int, int]) -> bytes:
    return box(b"cdef", struct.pack(">H", len(named)) + b"".join(struct.pack(">HHH", *each) for each in named))


def palette(colours: Sequence[Colour], order: Sequence[int] = (0, 1, 2)) -> bytes:
    entries = struct.pack(">HB3B", len(colours), 3, 7, 7, 7) + b"".join(map(bytes, colours))
    return box(b"pclr", entries) + box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, column) for column in order))


def stream_of(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG2000", no_jp2=True, **options)
    return buffer.getvalue()


def jp2(stream: bytes, *boxes: bytes, size: tuple[int, int] | None = None) -> bytes:
    right, bottom, left, top = struct.unpack_from(">4L", stream, 8)
    count = struct.unpack_from(">H", stream, 40)[0]
    width, height = size or (right - left, bottom - top)
    header = box(b"ihdr", struct.pack(">LLHBBBB", height, width, count, 7, 7, 0, 0)) + b"".join(boxes)
    start = b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return start + box(b"jp2h", header) + box(b"jp2c", stream)


def coarser(stream: bytes, step: int, missing: int = 0) -> bytes:
    """The same samples on a finer grid: each stands for ``step`` x ``step`` pixels, ``missing`` fewer at the ends."""
    data = bytearray(stream)
    sides = [side * step for side in struct.unpack_from(">8L", data, 8)]
    sides[0], sides[1] = sides[0] - missing, sides[1] - missing
    struct.pack_into(">8L", data, 8, *sides)
    for component in range(data[41]):
        data[43 + 3 * component : 45 + 3 * component] = bytes([step, step])
    return bytes(data)


RGB = halves("RGB", RED, BLUE)
ODD = halves("RGB", RED, BLUE, (67, 31))
BGR = Image.merge("RGB", RGB.split()[::-1])
LAB_RGB = ImageCms.profileToProfile(
    RGB, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
)
assert LAB_RGB is not None
INDEX = halves("L", 0, 1)
RGBA = Image.merge("RGBA", [*RGB.split(), halves("L", 255, 0)])
YCC = Image.merge("RGB", RGB.convert("YCbCr").split())
INKS = Image.merge("RGBA", halves("CMYK", (0, 255, 255, 0), (255, 0, 0, 0)).split())

KINDS: dict[str, tuple[bytes, Colour, Colour]] = {
    "plain": (jp2(stream_of(RGB), space(SRGB)), RED, BLUE),
    "codestream": (stream_of(RGB), RED, BLUE),
    "profile": (jp2(stream_of(RGB), profile(swapped_profile())), RED[::-1], BLUE[::-1]),
    "any profile": (jp2(stream_of(RGB), profile(swapped_profile(), 3)), RED[::-1], BLUE[::-1]),
    "the first of two spaces": (jp2(stream_of(RGB), profile(swapped_profile()), space(SRGB)), RED[::-1], BLUE[::-1]),
    "a broken profile": (jp2(stream_of(RGB), profile(b"nonsense"), space(SRGB)), RED, BLUE),
    "channels in another order": (
        jp2(stream_of(BGR), space(SRGB), channels((0, 0, 3), (1, 0, 2), (2, 0, 1))), RED, BLUE,
    ),
    "opacity": (jp2(stream_of(RGBA), space(SRGB)), RED, gray(255)),
    "opacity first": (
        jp2(stream_of(Image.merge("RGBA", [RGBA.getchannel(band) for band in "ARGB"])), space(SRGB),
            channels((0, 1, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3))), RED, gray(255),
    ),
    "a fourth channel that is no opacity": (
        jp2(stream_of(RGBA), space(SRGB), channels((0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 65535, 65535))), RED, BLUE,
    ),
    "sYCC": (jp2(stream_of(YCC), space(SYCC)), RED, BLUE),
    "palette": (jp2(stream_of(INDEX), palette([RED, BLUE]), space(SRGB)), RED, BLUE),
    "palette in another order": (
        jp2(stream_of(INDEX), space(SRGB), palette([RED, BLUE], (2, 1, 0))), RED[::-1], BLUE[::-1],
    ),
    "CMYK": (jp2(stream_of(INKS), space(CMYK)), (255, 0, 0), (0, 255, 255)),
    "CIELAB": (
        jp2(stream_of(Image.merge("RGB", LAB_RGB.split())), space(LAB, 100, 0, 255, 128, 255, 128, 0)), RED, BLUE,
    ),
    "CMY": (jp2(stream_of(ImageChops.invert(RGB)), space(11)), RED, BLUE),
    "ink, 0 is none": (jp2(stream_of(halves("L", 60, 190)), space(0)), gray(195), gray(65)),
    "YCbCr as in a JPEG": (jp2(stream_of(YCC), space(3)), RED, BLUE),
    "gray that is called colours": (jp2(stream_of(halves("L", 60, 190)), space(SRGB)), gray(60), gray(190)),
    "gray": (jp2(stream_of(halves("L", 60, 190)), space(GRAY)), gray(60), gray(190)),
    "coarse": (coarser(stream_of(RGB), 2), RED, BLUE),
    "coarse colours": (jp2(odd.jp2_coarse(RGB, 2, 2), space(SYCC)), RED, BLUE),
    "coarse colours of an odd width": (jp2(odd.jp2_coarse(ODD, 2, 1), space(SYCC)), RED, BLUE),
    "coarse colours of odd sides": (jp2(odd.jp2_coarse(ODD, 2, 2), space(SYCC)), RED, BLUE),
    "coarse colours of a bare codestream": (odd.jp2_coarse(ODD, 2, 2), RED, BLUE),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("longest_edge", [128, 16])
def test_samples_become_the_colours_that_the_boxes_mean(tmp_path: Path, kind: str, longest_edge: int) -> None:
    """Profiles, channel definitions, palettes and colour spaces are obeyed, shrunk or not."""
    data, left, right = KINDS[kind]
    (tmp_path / "a").write_bytes(data)
    assert_halves(run(tmp_path / "a", longest_edge), left, right, 8)


REFUSED = {
    "coarse components that do not fit": coarser(stream_of(RGB), 2, missing=1),
    "another size in the header": jp2(stream_of(RGB), space(SRGB), size=(32, 32)),
    "coarse colours that are not whole": odd.jp2_coarse(ODD, 2, 2)[:-20],
    "coarse colours of RGB": jp2(odd.jp2_coarse(ODD, 2, 2), space(SRGB)),
    "e-sYCC": jp2(stream_of(RGB), space(24)),
    "channels that there are not": jp2(stream_of(RGB), space(SRGB), channels((0, 0, 1), (7, 0, 2), (2, 0, 3))),
    "columns that there are not": jp2(stream_of(INDEX), space(SRGB), palette([RED, GREEN], (0, 1, 9))),
    "CMYK of three channels": jp2(stream_of(RGB), space(CMYK)),
    "a box without end": jp2(stream_of(RGB), struct.pack(">L4s", 4, b"colr")),
    "a palette that is cut": jp2(stream_of(INDEX), box(b"pclr", b"\1\0\3\7\7\7abc")),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_understood_is_refused(tmp_path: Path, kind: str) -> None:
    """Rather than shown with the wrong colours."""
    (tmp_path / "a").write_bytes(REFUSED[kind])
    with pytest.raises(CorruptImageError):
        run(tmp_path / "a")


@pytest.mark.parametrize("size", [(301, 203), (333, 257), (640, 400)])
def test_no_more_is_decoded_than_is_shown(tmp_path: Path, size: tuple[int, int]) -> None:
    """A picture of any size comes at an eighth of it, and looks as the whole does."""
    drawn = Image.merge("RGB", [Image.radial_gradient("L").resize(size), *halves("RGB", RED, BLUE, size).split()[1:]])
    (tmp_path / "a").write_bytes(stream_of(drawn))
    with Image.open(tmp_path / "a", formats=["JPEG2000"]) as image:
        pixels, *_ = jpeg2000.loaded(image, size[0] // 8)  # type: ignore[arg-type]
    assert pixels.size == (-(-size[0] // 8), -(-size[1] // 8))
    whole = drawn.resize(pixels.size, Image.Resampling.BOX)
    assert ImageChops.difference(pixels.convert("L"), whole.convert("L")).resize((1, 1)).getpixel((0, 0)) < 3  # type: ignore[operator]
    # Fewer halvings than are wanted.
    (tmp_path / "b").write_bytes(stream_of(drawn, num_resolutions=2))
    assert run(tmp_path / "b", 30).image.size == (30, round(30 * size[1] / size[0]))


def deep(stream: bytes, depth: int) -> bytes:
    """The same picture, lossy, in a codestream of more bits: the steps of its samples grow with the depth."""
    data = bytearray(stream)
    for component in range(data[41]):
        data[42 + 3 * component] = depth - 1
    return bytes(data)


@pytest.mark.parametrize("depth", [9, 12, 16])
@pytest.mark.parametrize("longest_edge", [256, 30])
def test_the_brightest_of_deep_pixels_are_white(tmp_path: Path, depth: int, longest_edge: int) -> None:
    """Samples of more than 8 bits at the top of their range, where Pillow alone gives black."""
    lines = Image.new("RGB", (256, 128), "white")
    for x in range(0, 256, 8):
        lines.paste((200, 0, 0), (x, 0, x + 3, 128))
    stream = deep(stream_of(lines, irreversible=True, quality_mode="rates", quality_layers=[20]), depth)
    (tmp_path / "a").write_bytes(stream)
    with Image.open(tmp_path / "a") as image:
        wrong = ImageChops.difference(image.convert("RGB"), lines)
    picture = run(tmp_path / "a", longest_edge).image
    right = lines.resize(picture.size, Image.Resampling.BOX)
    assert mean(ImageChops.difference(picture, right)) < 12 < mean(wrong)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_brightest_of_few_bits_is_white(tmp_path: Path, depth: int) -> None:
    """Samples of fewer than 8 bits cover the whole range, where Pillow alone gives gray."""
    (tmp_path / "a").write_bytes(deep(stream_of(halves("RGB", (0, 255, 0), (255, 0, 255)), irreversible=True), depth))
    assert_halves(run(tmp_path / "a"), (0, 255, 0), (255, 0, 255))


def test_deep_pixels_without_loss_keep_their_tones(tmp_path: Path) -> None:
    """Samples of 9 bits, of which this picture uses the middle."""
    (tmp_path / "a").write_bytes(deep(stream_of(halves("L", 30, 220).convert("RGB")), 9))
    assert_halves(run(tmp_path / "a"), gray(79), gray(174), 3)


def mean(image: Image.Image) -> float:
    return sum(ImageStat.Stat(image).mean) / 3


def test_a_picture_that_does_not_begin_where_its_grid_does(tmp_path: Path) -> None:
    """An offset is no reason for a black picture when less is decoded."""
    large = halves("RGB", RED, BLUE, (640, 320))
    (tmp_path / "a").write_bytes(stream_of(large, offset=(70, 50), tile_size=(128, 128)))
    assert_halves(run(tmp_path / "a", 64), RED, BLUE)


GRAIN = Image.blend(Image.radial_gradient("L").resize((96, 96)), Image.effect_noise((96, 96), 90), 0.2)
GRAINY = Image.merge("RGB", [GRAIN, GRAIN.rotate(90), Image.effect_noise((96, 96), 90)])
CUT = {
    "one tile": stream_of(GRAINY),
    "one tile in layers": jp2(stream_of(GRAINY, irreversible=True, quality_layers=[8, 4, 2]), space(SRGB)),
    "tiles": stream_of(GRAINY, tile_size=(32, 32)),
    "16 bits": stream_of(GRAIN.convert("I").point(lambda value: value * 256).convert("I;16")),
}


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("longest_edge", [96, 12])
def test_one_that_is_cut_is_refused_or_flagged(tmp_path: Path, kind: str, longest_edge: int) -> None:
    """By the part of its tiles' data that is there, which is shown; without its end marker alone it is whole."""
    data = CUT[kind]
    (tmp_path / "a").write_bytes(data[:-2])
    whole = run(tmp_path / "a", longest_edge)
    assert not whole.flags
    (tmp_path / "a").write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(TruncatedImageError, match=r"cut short or damaged: 7\d% of its pixels are there"):
        run(tmp_path / "a", longest_edge)
    part = decode(tmp_path / "a", longest_edge=longest_edge, max_pixels=10**6, accept_truncated=0.7)
    assert part.flags == {ImageFlag.TRUNCATED}
    top = (0, 0, longest_edge, longest_edge // 2)
    assert mean(ImageChops.difference(part.image.crop(top), whole.image.crop(top))) < 60


def test_what_the_decoder_gives_up_is_no_black_picture(tmp_path: Path) -> None:
    """Whole files with damage: all of one tile, or what comes behind it of several."""
    for tiles, words in (((96, 96), "damaged"), ((32, 32), r"damaged: \d\d%")):
        data = bytearray(stream_of(GRAINY, tile_size=tiles))
        at = data.index(b"\xff\x93", len(data) // 2 if tiles[0] < 96 else 0)
        data[at + 1] = 0x30
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(ImageError, match=words):
            run(tmp_path / "a")


def test_a_number_of_parts_that_is_wrong_does_not_matter(tmp_path: Path) -> None:
    """As in Adobe's streams: the decoder waits for more of a tile, and complains at the end."""
    data = bytearray(stream_of(RGB, tile_size=(16, 16)))
    for at in (at for at in range(len(data)) if data.startswith(b"\xff\x90\0\x0a", at)):
        data[at + 11] = 2
    (tmp_path / "a").write_bytes(data)
    assert_halves(run(tmp_path / "a"), RED, BLUE, 8)
