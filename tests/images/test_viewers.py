"""What viewers of photographs show is accepted: more formats, and files that are odd but whole.

All files show one small picture; what comes out is compared with it.
"""

import asyncio
import importlib
import importlib.util
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat
from support import odd_pictures as odd
from support import tiff_files as tiffs
from support.workbench import encoded

from etl.domain.statuses import ImageFlag
from etl.errors import (
    CorruptImageError,
    DecoderLimitError,
    DecoderMissingError,
    ImageTooLargeError,
    NotAnImageError,
    TruncatedImageError,
)
from etl.images import pnm
from etl.images.decode import decode
from etl.images.decoder_pool import DecoderPool
from etl.images.formats import accept_header

GRAY = Image.merge("RGB", [odd.gray()] * 3)
HEIF, JXL = importlib.util.find_spec("pillow_heif"), importlib.util.find_spec("pillow_jxl")


def shown(data: bytes, tmp_path: Path) -> Image.Image:
    (tmp_path / "a").write_bytes(data)
    picture = decode(tmp_path / "a", longest_edge=64, max_pixels=10_000)
    assert not picture.flags
    return picture.image


def difference(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    return max(ImageStat.Stat(ImageChops.difference(one, other)).mean)


COLOURED: dict[str, Callable[[], bytes]] = {
    "avif": lambda: odd.saved("AVIF", quality=95),
    "avif with alpha": lambda: odd.saved("AVIF", "RGBA", quality=95),
    "avif sequence": lambda: odd.saved("AVIF", quality=95, save_all=True, append_images=[Image.new("RGB", odd.SIZE)]),
    "mpo": lambda: odd.saved("MPO", quality=95, save_all=True, append_images=[Image.new("RGB", odd.SIZE)]),
    "apng": lambda: odd.saved("PNG", save_all=True, append_images=[Image.new("RGB", odd.SIZE)]),
    "ppm": lambda: odd.saved("PPM"),
    "ppm in text": odd.text_ppm,
    "ppm in text with comments": lambda: odd.text_ppm("# made by hand\n# at home\n"),
    "ppm of 16 bits": lambda: b"P6 48 40 65535\n" + bytes(b for v in odd.picture().tobytes() for b in (v, v)),
    "ppm of 12 bits": lambda: odd.ppm(4095),
    "ppm of few tones": lambda: odd.ppm(200),
    "pam": lambda: odd.pam("RGB"),
    "pam of inks": lambda: odd.pam("CMYK", kind="CMYK"),
    "pam with alpha": lambda: odd.pam("RGBA"),
    "pam of 16 bits": lambda: odd.pam("RGB", 65535),
    "dib": lambda: odd.saved("DIB"),
    "dib with a palette": lambda: odd.saved("DIB", "P"),
    "psd": odd.psd,
    "psd packed": lambda: odd.psd(packed=True),
    "psd of 16 bits": lambda: odd.psd(depth=16),
    "psd of 16 bits packed": lambda: odd.psd(depth=16, packed=True),
    "psd with a saved selection": lambda: odd.psd(alpha=Image.new("L", odd.SIZE), layers=3),
    "psd with a saved selection and no layers": lambda: odd.psd(alpha=Image.new("L", odd.SIZE)),
    "psd with transparency": lambda: odd.psd(alpha=Image.new("L", odd.SIZE, 255), layers=-1),
    "psd cmyk": lambda: odd.psd("CMYK"),
    "bmp 10-10-10": lambda: odd.masked_bmp(32, (0x3FF00000, 0xFFC00, 0x3FF)),
    "bmp 10-10-10, blue first": lambda: odd.masked_bmp(32, (0x3FF, 0xFFC00, 0x3FF00000), header=124),
    "bmp 11-11-10": lambda: odd.masked_bmp(32, (0xFFE00000, 0x1FFC00, 0x3FF), top_down=True),
    "bmp with opacity nowhere": lambda: odd.masked_bmp(32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), header=124),
    "bmp of Windows CE": lambda: odd.masked_bmp(32, (0xFF0000, 0xFF00, 0xFF), kind=6),
    "jpeg without its end": odd.jpeg_without_end,
    "jpeg without its end, progressive": lambda: odd.jpeg_without_end(progressive=True),
    "jpeg without its end, of 4:2:0 with restarts": lambda: odd.jpeg_without_end(subsampling=2, restart_marker_rows=1),
    "jpeg whose end is half there": lambda: odd.jpeg_without_end() + b"\xff",
    "jpeg whose end is another marker": lambda: odd.jpeg_without_end() + b"\xff\xc9",
    "jpeg of a scan for each colour": lambda: b"".join(odd.jpeg_by_planes()) + b"\xff\xd9",
    "jpeg with other bytes at its beginning": lambda: b"\xff\xd8 any\xff\x01\0" + odd.saved("JPEG", quality=95)[2:],
    "jpeg with 7 bytes of JFIF": lambda: odd.jpeg_with((0, b"JFIF\0")),
    "jpeg with 8 bytes of JFIF": lambda: odd.jpeg_with((0, b"JFIF\0\1")),
    "jpeg with a short Exif and profile": lambda: odd.jpeg_with((1, b"Exif\0\0"), (2, b"ICC_PROFILE\0")),
    "gif without its last byte": lambda: odd.saved("GIF", "P")[:-1],
    "gif without its last two": lambda: odd.saved("GIF", "P")[:-2],
    "gif without its last three": lambda: odd.saved("GIF", "P")[:-3],
    "gif with a transparent colour, three bytes short": lambda: odd.saved("GIF", "P", transparency=255)[:-3],
    "png with a profile of 4 MB": lambda: odd.png_with(odd.profile_of(4_000_000)),
    "png with a profile of 40 MB": lambda: odd.png_with(odd.profile_of(40_000_000)),
    "png with a profile of no method": lambda: odd.png_with(odd.chunk(b"iCCP", b"a\0\7x")),
    "png with an empty profile": lambda: odd.png_with(odd.chunk(b"iCCP", b"")),
    "png with 2 MB of text": lambda: odd.png_with(odd.chunk(b"tEXt", b"a\0" + b"x" * 2_000_000)),
    "png with packed text": lambda: odd.png_with(odd.chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(4_000_000)))),
    "png with 70 MB of text in all": lambda: odd.png_with(
        *[odd.chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(1_000_000)))] * 70
    ),
    "png with a wrong sum of its text": lambda: odd.png_with(odd.chunk(b"tEXt", b"a\0b", crc=1)),
    "png with a wrong sum of its time": lambda: odd.png_with(odd.chunk(b"tIME", bytes(7), crc=1)),
    "png with a wrong sum of text at its end": lambda: odd.png_ending(
        odd.chunk(b"zTXt", b"a\0\7", crc=1), odd.chunk(b"IEND", b"")
    ),
    "png with a short pHYs": lambda: odd.png_with(odd.chunk(b"pHYs", b"\0\0\1")),
    "png with a short cHRM": lambda: odd.png_with(odd.chunk(b"cHRM", bytes(9))),
    "png with a short gAMA and sRGB": lambda: odd.png_with(odd.chunk(b"gAMA", b"\0"), odd.chunk(b"sRGB", b"")),
    "png with a short tRNS": lambda: odd.png_with(odd.chunk(b"tRNS", b"\0")),
    "png with a short acTL": lambda: odd.png_with(odd.chunk(b"acTL", b"\0")),
    "png with a wrong sum of its header": lambda: patched(odd.saved("PNG"), 29, b"abcd"),
    "png without its end": odd.png_ending,
    "jpeg 2000 whose last part goes to the end": odd.jp2_to_the_end,
    "png with more pixels to come at its end": lambda: odd.png_ending(b"\0\0\x20\0IDAT"),
    "png whose last unknown chunk is cut": lambda: odd.png_ending(b"\0\0\x20\0tIMEa\0"),
    "png whose last text is cut": lambda: odd.png_ending(b"\0\0\x20\0zTXta\0"),
}  # fmt: skip

COARSE: dict[str, Callable[[], bytes]] = {
    "bmp 4-4-4": lambda: odd.masked_bmp(16, (0xF00, 0xF0, 0xF)),
    "bmp 4-4-4 in a long header": lambda: odd.masked_bmp(16, (0xF00, 0xF0, 0xF), header=108),
    "bmp 4-4-4 from the top, blue first": lambda: odd.masked_bmp(16, (0xF, 0xF0, 0xF00), top_down=True),
    "bmp 3-5-3": lambda: odd.masked_bmp(16, (0x700, 0xF8, 0x7), header=56),
    "pam of few tones": lambda: odd.pam("RGB", 15),
    "pgm-like pam with alpha of few tones": lambda: odd.pam("RGBA", 20),
}

IN_GRAY: dict[str, Callable[[], bytes]] = {
    "avif in gray": lambda: odd.saved("AVIF", "L", quality=95),
    "pgm": lambda: odd.saved("PPM", "L"),
    "pgm of 255 in text": lambda: b"P2 48 40 255 " + " ".join(map(str, odd.gray().tobytes())).encode(),
    "pam in gray": lambda: odd.pam("L"),
    "pam in gray with alpha": lambda: odd.pam("LA"),
    "psd in gray": lambda: odd.psd("L"),
    "psd in gray of 16 bits": lambda: odd.psd("L", depth=16, packed=True),
    "jpeg in gray without its end": lambda: odd.saved("JPEG", "L", quality=95)[:-2],
}


@pytest.mark.parametrize("name", COLOURED)
def test_the_picture_is_shown(tmp_path: Path, name: str) -> None:
    """The file gives the picture that it shows, unflagged."""
    assert difference(shown(COLOURED[name](), tmp_path), odd.picture()) < 8


def test_a_jpeg_without_loss_is_shown_at_any_size(tmp_path: Path) -> None:
    """It is decoded whole, for it has no smaller version within as others have."""
    (tmp_path / "a").write_bytes(odd.jpeg_without_loss())
    picture = decode(tmp_path / "a", longest_edge=16, max_pixels=10_000)
    assert difference(picture.image, GRAY.resize((16, 14), Image.Resampling.BOX)) < 8


@pytest.mark.parametrize("colours", [(1, 2), (0, 1)])
@pytest.mark.parametrize("disposal", [0, 2, 3])
def test_around_the_frames_of_a_gif_is_nothing(tmp_path: Path, disposal: int, colours: tuple[int, int]) -> None:
    """Where no frame has been, it is white like all that is transparent, not of the first of its colours."""
    made = odd.gif(
        [((10, 10), (20, 30), colours[0]), ((30, 20), (20, 20), colours[1])], size=(60, 50), disposal=disposal
    )
    image = shown(made, tmp_path)
    assert image.size == (60, 50)
    white, *_ = named = ((255, 255, 255), (200, 0, 0), (0, 0, 200))
    # Of a white frame nothing is to be seen, so the next is shown, too.
    second = named[colours[1]] if colours[0] == 0 else white
    expected = [white, named[colours[0]], second, white]
    found = [image.getpixel(at) for at in ((3, 45), (16, 16), (40, 30), (55, 5))]
    assert found == [pytest.approx(colour, abs=8) for colour in expected]


@pytest.mark.parametrize("depth", [8, 16])
def test_what_is_transparent_in_a_psd_is_white(tmp_path: Path, depth: int) -> None:
    """Colours that no viewer shows are not shown."""
    image = shown(odd.psd(alpha=Image.new("L", odd.SIZE), layers=-1, depth=depth), tmp_path)
    assert image.getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("name", COARSE)
def test_coarse_colours_are_shown(tmp_path: Path, name: str) -> None:
    """Of few bits comes the picture, as near as these go."""
    assert difference(shown(COARSE[name](), tmp_path), odd.picture()) < 20


@pytest.mark.parametrize("name", IN_GRAY)
def test_the_gray_picture_is_shown(tmp_path: Path, name: str) -> None:
    """The file gives the picture in gray that it shows."""
    assert difference(shown(IN_GRAY[name](), tmp_path), GRAY) < 4


@pytest.mark.parametrize(
    "make", [lambda: odd.saved("PPM", "1"), lambda: odd.psd("1"), lambda: odd.psd("1", packed=True)]
)
def test_black_and_white_are_not_exchanged(tmp_path: Path, make: Callable[[], bytes]) -> None:
    """One bit a pixel gives black where black was meant."""
    assert difference(shown(make(), tmp_path), odd.picture().convert("1").convert("RGB")) < 1


@pytest.mark.skipif(HEIF is None, reason="needs pillow-heif")
@pytest.mark.parametrize("options", [{}, {"mode": "RGBA"}, {"mode": "L"}, {"chroma": "444"}])
def test_heif_is_shown(tmp_path: Path, options: dict[str, str]) -> None:
    """With its package HEIF is accepted, in colour, gray and with alpha."""
    wanted = GRAY if options.get("mode") == "L" else odd.picture()
    assert difference(shown(odd.heif(**options, quality=95), tmp_path), wanted) < 6


@pytest.mark.skipif(HEIF is None, reason="needs pillow-heif")
def test_heif_is_turned_once(tmp_path: Path) -> None:
    """What libheif has turned is not turned again by its Exif."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = odd.picture().transpose(Image.Transpose.ROTATE_270)
    assert difference(shown(odd.heif(quality=95, exif=exif.tobytes()), tmp_path), turned) < 6


@pytest.mark.skipif(JXL is None, reason="needs pillow-jxl-plugin")
@pytest.mark.parametrize("options", [{"lossless": True}, {"mode": "RGBA"}, {"mode": "L"}, {"use_container": True}])
def test_jpeg_xl_is_shown(tmp_path: Path, options: dict[str, object]) -> None:
    """With its package JPEG XL is accepted, bare and in a container."""
    wanted = GRAY if options.get("mode") == "L" else odd.picture()
    assert difference(shown(odd.jxl(**{"quality": 95} | options), tmp_path), wanted) < 6  # type: ignore[arg-type]


@pytest.mark.skipif(JXL is None, reason="needs pillow-jxl-plugin")
def test_a_jpeg_xl_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    """The plugin decodes when it opens, so the size is read before."""
    with pytest.raises(ImageTooLargeError, match="more than 1,000 pixels: 48 x 40"):
        (tmp_path / "a").write_bytes(odd.jxl())
        decode(tmp_path / "a", longest_edge=64, max_pixels=1_000)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"), (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIF"),
        (b"\xff\x0a\xf8\x13", "JPEG XL"), (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    ],
)  # fmt: skip
def test_a_missing_package_is_named(tmp_path: Path, head: bytes, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what opens a format is not installed, one line says so and is no verdict on the file."""
    monkeypatch.setattr("etl.images.formats.importlib.util.find_spec", lambda _: None)
    (tmp_path / "a").write_bytes(head + bytes(100))
    with pytest.raises(DecoderMissingError, match=f"the file is {name}, which needs one more package: "):
        decode(tmp_path / "a", longest_edge=64, max_pixels=1_000)
    accept_header.cache_clear()
    asked = accept_header()
    accept_header.cache_clear()
    assert "image/heic" not in asked
    assert "image/jxl" not in asked
    assert asked.startswith("image/jpeg, image/png, ")


BOMBS: dict[str, Callable[[], bytes]] = {
    "ppm": lambda: b"P6 100000 100000 255\n",
    "pbm in text": lambda: b"P1 100000 100000\n",
    "pam": lambda: b"P7\nWIDTH 100000\nHEIGHT 100000\nDEPTH 3\nMAXVAL 255\nENDHDR\n",
    "psd": lambda: patched(odd.psd(), 14, struct.pack(">II", 30000, 30000)),
    "bmp 4-4-4": lambda: patched(odd.masked_bmp(16, (0xF00, 0xF0, 0xF)), 18, struct.pack("<II", 30000, 30000)),
    "dib": lambda: patched(odd.saved("DIB"), 4, struct.pack("<II", 30000, 30000)),
    "avif": lambda: at_mark(odd.saved("AVIF"), b"ispe", struct.pack(">II", 16000, 16000)),
}


def patched(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at + len(piece) :]


def at_mark(data: bytes, mark: bytes, piece: bytes) -> bytes:
    return patched(data, data.index(mark) + len(mark) + 4, piece)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, name: str) -> None:
    """A header that announces more than the limit is enough to refuse each further format, too."""
    (tmp_path / "a").write_bytes(BOMBS[name]())
    with pytest.raises(ImageTooLargeError, match="more than 10,000,000 pixels"):
        decode(tmp_path / "a", longest_edge=64, max_pixels=10_000_000)


@pytest.mark.skipif(HEIF is None, reason="needs pillow-heif")
def test_a_heif_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    """What libheif would not take itself is refused, too, and a size that its pixels have not is no picture."""
    for side in (16_000, 60_000):
        (tmp_path / "a").write_bytes(at_mark(odd.heif(), b"ispe", struct.pack(">II", side, side)))
        with pytest.raises(ImageTooLargeError if side > 16_000 else (ImageTooLargeError, CorruptImageError)):
            decode(tmp_path / "a", longest_edge=64, max_pixels=10_000_000)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["AVIF", "HEIF", "JXL"])
def test_a_picture_of_another_format_beyond_the_memory_limit_fails_alone(tmp_path: Path, kind: str) -> None:
    """Each decoder's own memory counts against the limit; its process lives on and decodes the next picture."""
    if kind != "AVIF":
        pytest.importorskip({"HEIF": "pillow_heif", "JXL": "pillow_jxl"}[kind])
    flat = Image.new("RGB", (7000, 7000), "red")
    if kind == "HEIF":
        importlib.import_module("pillow_heif").register_heif_opener()
    flat.save(tmp_path / "a", kind, **{"AVIF": {"speed": 10}, "HEIF": {}, "JXL": {"effort": 1}}[kind])
    odd.picture().save(tmp_path / "b", "PNG")
    with DecoderPool(tmp_path / "images", processes=1, memory_bytes=2**28, longest_edge=64, max_pixels=10**9) as pool:
        with pytest.raises(DecoderLimitError):
            asyncio.run(pool.decode(tmp_path / "a"))
        assert asyncio.run(pool.decode(tmp_path / "b")).width == odd.SIZE[0]


# Truncated files ------------------------------------------------------------------------------------------------


def packed_tiff(noise: Image.Image) -> bytes:
    """Return it as a TIFF whose directory comes first, its strips of 16 rows by Deflate."""
    tags: dict[int, int | list[int]] = {
        tiffs.WIDTH: 64,
        tiffs.HEIGHT: 256,
        tiffs.BITS: [8, 8, 8],
        tiffs.COMPRESSION: 8,
        tiffs.PHOTOMETRIC: 2,
    }
    strips = [zlib.compress(noise.crop((0, top, 64, top + 16)).tobytes()) for top in range(0, 256, 16)]
    return tiffs.tiff_of({**tags, tiffs.SAMPLES: 3, tiffs.ROWS_PER_STRIP: 16}, strips, strips_last=True)


CUT: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg": lambda noise: encoded(noise, quality=95, subsampling=0),
    "jpeg with restarts": lambda noise: encoded(noise, restart_marker_blocks=3),
    "jpeg with a small picture in its head": lambda noise: encoded(noise, exif=b"Exif\0\0" + odd.saved("JPEG")),
    "jpeg in gray": lambda noise: encoded(noise.convert("L")),
    "jpeg cmyk": lambda noise: encoded(noise.convert("CMYK")),
    "jpeg progressive": lambda noise: encoded(noise, progressive=True),
    "png": lambda noise: encoded(noise, "PNG"),
    "png with a palette": lambda noise: encoded(noise.quantize(16), "PNG"),
    "gif": lambda noise: encoded(noise.quantize(16), "GIF"),
    "gif with a transparent colour": lambda noise: encoded(noise.quantize(16), "GIF", transparency=3),
    "bmp": lambda noise: encoded(noise, "BMP"),
    "bmp with a palette": lambda noise: encoded(noise.quantize(16), "BMP"),
    "tiff": lambda noise: encoded(noise, "TIFF"),
    "tiff of packed strips": packed_tiff,
    "ppm": lambda noise: encoded(noise, "PPM"),
    "ppm of 16 bits": lambda noise: b"P6 64 256 65535\n" + bytes(b for v in noise.tobytes() for b in (v, 0)),
    "ppm of few tones": lambda noise: b"P6 64 256 254\n" + noise.point(lambda value: min(value, 254)).tobytes(),
    "ppm in text": lambda noise: b"P3 64 256 255\n" + b"\t".join(b"%03d" % value for value in noise.tobytes()),
}


@pytest.mark.parametrize("name", CUT)
def test_a_truncated_picture_is_refused_or_flagged(tmp_path: Path, name: str) -> None:
    """A picture that ends early is refused with the part that is there, and accepted, flagged, where that is enough."""
    noise = Image.merge("RGB", [Image.effect_noise((64, 256), 80) for _ in range(3)])
    data = CUT[name](noise)
    for part in (8, 5, 2):
        (tmp_path / "a").write_bytes(data[: len(data) * part // 10])
        with pytest.raises(TruncatedImageError, match=r"is (cut short|damaged): \d?\d% of its pixels are there"):
            decode(tmp_path / "a", longest_edge=64, max_pixels=10**6)
        picture = decode(tmp_path / "a", longest_edge=64, max_pixels=10**6, accept_truncated=0.0)
        assert picture.flags == {ImageFlag.TRUNCATED}
        assert (picture.width, picture.height) == noise.size


@pytest.mark.parametrize("name", [name for name in CUT if name != "jpeg progressive"])
def test_the_part_that_is_there_is_measured(tmp_path: Path, name: str) -> None:
    """It is accepted from the part on that it has, within a row of blocks: noise takes the same bytes everywhere."""
    noise = Image.merge("RGB", [Image.effect_noise((64, 256), 80) for _ in range(3)])
    data = CUT[name](noise)
    (tmp_path / "a").write_bytes(data[: len(data) * 3 // 4])
    decode(tmp_path / "a", longest_edge=256, max_pixels=10**6, accept_truncated=0.66)
    with pytest.raises(TruncatedImageError):
        decode(tmp_path / "a", longest_edge=256, max_pixels=10**6, accept_truncated=0.84)


@pytest.mark.parametrize("name", ["jpeg", "jpeg with restarts", "jpeg progressive", "png", "gif"])
def test_a_damaged_picture_is_as_good_as_one_that_is_cut_there(tmp_path: Path, name: str) -> None:
    """What comes behind the damage is not shown, nor gray called a picture, unless so little is asked for."""
    noise = Image.merge("RGB", [Image.effect_noise((64, 256), 80) for _ in range(3)])
    data = bytearray(CUT[name](noise))
    middle = len(data) // 2
    if "restarts" in name:
        middle = next(at for at in range(middle, len(data)) if data[at] == 0xFF and data[at + 1] in range(0xD0, 0xD8))
    # A marker that there is not, a block of Deflate of no kind, codes of LZW before they are made.
    data[middle : middle + 64] = b"\xff\xf7" * 32
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(TruncatedImageError, match=r"is damaged: \d?\d% of its pixels are there"):
        decode(tmp_path / "a", longest_edge=64, max_pixels=10**6)
    if name != "jpeg progressive":
        picture = decode(tmp_path / "a", longest_edge=64, max_pixels=10**6, accept_truncated=0.3)
        assert picture.flags == {ImageFlag.TRUNCATED}


@pytest.mark.parametrize("name", ["jpeg", "jpeg with restarts", "jpeg in gray", "jpeg cmyk"])
def test_a_jpeg_that_is_closed_before_its_end_is_as_good_as_one_that_is_cut(tmp_path: Path, name: str) -> None:
    """An end marker that somebody put behind half the data makes no picture of the gray below them."""
    noise = Image.merge("RGB", [Image.effect_noise((64, 256), 80) for _ in range(3)])
    data = CUT[name](noise)
    (tmp_path / "a").write_bytes(data[: len(data) // 2].rstrip(b"\xff") + b"\xff\xd9")
    with pytest.raises(TruncatedImageError, match=r"closed before its end: \d\d% of its pixels are there"):
        decode(tmp_path / "a", longest_edge=64, max_pixels=10**6)
    gray = Image.new("RGB", (64, 64), (128, 128, 128))
    gray.paste("white", (8, 8, 40, 40))
    assert shown(CUT[name](gray), tmp_path).getpixel((60, 60)) == pytest.approx((128,) * 3, abs=2)


@pytest.mark.parametrize("options", [{"progressive": True}, {"save_all": True, "append_images": [odd.gray()]}])
def test_a_picture_that_ends_in_gray_is_whole(tmp_path: Path, options: dict[str, object]) -> None:
    """Also where it has several scans, or other pictures behind it."""
    gray = Image.new("L", odd.SIZE, 128)
    assert shown(encoded(gray, "MPO" if "save_all" in options else "JPEG", **options), tmp_path).size == odd.SIZE


def test_half_a_marker_at_the_end_hides_nothing(tmp_path: Path) -> None:
    """A JPEG that was cut in the middle of two bytes that belong together is truncated like any other."""
    data = odd.saved("JPEG", quality=100, subsampling=0)
    for at in (at for at in range(700, len(data) - 200) if data.startswith(b"\xff\0", at)):
        (tmp_path / "a").write_bytes(data[: at + 1])
        with pytest.raises(TruncatedImageError):
            decode(tmp_path / "a", longest_edge=64, max_pixels=10**6)


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_jpeg_that_ends_between_its_scans_is_truncated(tmp_path: Path, end: bytes) -> None:
    """Where fine detail or a colour was still to come, nothing is missing in the middle of a row, closed or not."""
    progressive, planes = odd.saved("JPEG", progressive=True), odd.jpeg_by_planes()
    scans = [at for at in range(len(progressive)) if progressive.startswith((b"\xff\xda", b"\xff\xc4"), at)]
    for data in [progressive[:at] for at in scans[3:]] + [b"".join(planes[:count]) for count in (1, 2)]:
        (tmp_path / "a").write_bytes(data + end)
        with pytest.raises(TruncatedImageError, match=r"\d% of its pixels are there"):
            decode(tmp_path / "a", longest_edge=64, max_pixels=10**6)


def test_numbers_in_text_are_those_that_were_written(tmp_path: Path) -> None:
    """With comments wherever they may stand, also where a piece that is read at once ends, and no end of line."""
    noise = Image.merge("RGB", [Image.effect_noise((90, 90), 80) for _ in range(3)])
    text = b" ".join(b"%d" % value for value in noise.tobytes())
    for data in (text, text.replace(b" 1", b"#is 1\n1"), text.replace(b" ", b"\r\n# or more, 255\n")):
        (tmp_path / "a").write_bytes(b"P3 90 90 # of three\n255\n" + data)
        with pnm.PpmImageFile(tmp_path / "a") as opened:
            assert opened.tobytes() == noise.tobytes()
    for wrong in (b"1 -1", b"1 256", b"1 x", b"1" * 70_000):
        (tmp_path / "a").write_bytes(b"P3 90 90 255\n" + wrong)
        with pytest.raises(CorruptImageError):
            decode(tmp_path / "a", longest_edge=64, max_pixels=10_000)


# Refusals -------------------------------------------------------------------------------------------------------

BOX = struct.pack(">I", 24) + b"ftyp"
REFUSED: dict[str, tuple[bytes, str]] = {
    "icon": (b"\0\0\1\0\1\0\x10\x10", "an icon or a cursor; only pictures"),
    "cursor": (b"\0\0\2\0\1\0\x20\x20", "an icon or a cursor; only pictures"),
    "tga": (odd.saved("TGA"), "a TGA; only pictures"),
    "tga packed": (odd.saved("TGA", compression="tga_rle"), "a TGA; only pictures"),
    "tga with a palette": (odd.saved("TGA", "P"), "a TGA; only pictures"),
    "svg": (b"<!-- x --><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG, a drawing"),
    "svg with a head": (b"<?xml version='1.0'?>\n<!DOCTYPE svg><svg/>", "SVG, a drawing"),
    "djvu": (b"AT&TFORM\0\0\1\0DJVM", "a DjVu document of pages"),
    "office": (b"PK\3\4" + bytes(26) + b"word/document.xml", "an Office document"),
    "old office": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(20), "an Office document"),
    "psb": (odd.psd(version=2), r"a large Photoshop document \(PSB\); save it as"),
    "psd without a composite": (odd.psd(composite=False), "saved without its composite; save it with"),
    "pfm in colours": (b"PF\n48 40\n-1.0\n" + bytes(40), "a PFM in colours, which"),
    "icons of macOS": (odd.saved("ICNS"), "an icon or a cursor; only pictures"),
    "pcx": (odd.saved("PCX"), r"a picture of a kind that is not accepted \(PCX"),
    "wmf": (b"\xd7\xcd\xc6\x9a" + bytes(40), "a drawing of Windows"),
    "film": (BOX + b"isom" + bytes(40), "a film, not a picture"),
    "quicktime": (BOX + b"qt  " + bytes(40), "a film, not a picture"),
    "xcf": (b"gimp xcf v011\0", "a GIMP document; export it"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript, not a picture"),
    "appledouble": (bytes.fromhex("00051607 00020000") + b"Mac OS X", "AppleDouble"),
    "zeros": (bytes(2000), "nothing but zeros"),
    "page": (
        b"<!doctype html><html><head><style>p {}</style><title>\n Access  denied </title></head><body>x</body></html>",
        r"an HTML page, not a picture: Access denied$",
    ),
    "page without a title": (
        b"<html><script>var x</script><body><h1>Too many\nrequests</h1><p>Slow down</body>",
        "not a picture: Too many requestsSlow down|not a picture: Too many requests",
    ),
    "page in UTF-16": ("<html><title>Gone</title>".encode("utf-16"), "an HTML page, not a picture: Gone"),
    "page of a stranger": ("<html><title>\x1b[31m\u202eevil".encode() + b"x" * 500, r"\\x1b\[31m\\u202eevilx+\.\.\.$"),
    "xml": (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "XML, not a picture: NoSuchKey"),
    "json": (b'{"error": "quota"}', 'JSON, not a picture: {"error": "quota"}'),
    "words": (b"403 Forbidden: ask the archive\n", "text, not a picture: 403 Forbidden: ask the archive$"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_named(tmp_path: Path, name: str) -> None:
    """A refusal says what the file is, in its own words where it has some, and nothing about servers."""
    data, said = REFUSED[name]
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(NotAnImageError, match=said) as raised:
        decode(tmp_path / "a", longest_edge=64, max_pixels=10_000)
    assert "server" not in str(raised.value)
    assert len(str(raised.value)) < 200


TIFF = {256: 3, 257: 3, 258: 8, 262: 1, 277: 1, 278: 3}
BROKEN: dict[str, tuple[bytes, str]] = {
    "far offset": (b"II+\0\x08\0\0\0" + b"\xff" * 8, "the TIFF .*(not in|beyond the end of) the file"),
    "psd of 32 bits": (odd.psd(depth=32), r"the PSD has 32 bits a sample .* save it with 8 bits"),
    "psd of inks": (odd.psd(number=7), r"the PSD has separate inks .* save it as RGB"),
    "tiff by WebP": (tiffs.tiff_of({**TIFF, 259: 50001}, [bytes(9)]), "the TIFF is compressed as WebP, which is not"),
    "tiff by 12-bit JPEG": (
        tiffs.tiff_of(TIFF | {258: [12] * 3, 259: 7, 262: 2, 277: 3}, [bytes(9)]),
        "TIFF stores its pixels in a way",
    ),
    "png of Apple": (odd.png_with()[:8] + odd.chunk(b"CgBI", bytes(4)) + odd.png_with()[8:], "only Apple's devices"),
    "damaged pixels": (odd.saved("GIF", "P")[:-400] + b"\xff" * 400, "GIF .*(damaged|cut short)"),
    "cut webp": (odd.saved("WEBP")[:-9], "the WebP has pixels that are damaged or cut short"),
    "cut avif": (odd.saved("AVIF")[:-9], "the AVIF is cut short"),
    "header of a pgm": (b"P5 7 x1", "PNM header is broken"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_said_in_words(tmp_path: Path, name: str) -> None:
    """A broken file is told in words, not in a library's numbers, and is the file's own fault."""
    data, said = BROKEN[name]
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CorruptImageError, match=said) as raised:
        decode(tmp_path / "a", longest_edge=64, max_pixels=10_000)
    assert "Errno" not in str(raised.value)
    assert "error -" not in str(raised.value)
