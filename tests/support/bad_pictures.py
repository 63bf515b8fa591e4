"""Small valid pictures of every format that the decoder allows, and files that are nearly such pictures."""

import functools
import importlib.util
import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence

import pypdfium2
from PIL import Image
from support import odd_pictures, raw_files
from support.fuzzing import NUMBERS, harmed
from support.tiff_files import (
    BITS,
    COMPRESSION,
    EXTRA_SAMPLES,
    HEIGHT,
    PHOTOMETRIC,
    PLANAR,
    PREDICTOR,
    ROWS_PER_STRIP,
    SAMPLE_FORMAT,
    SAMPLES,
    WIDTH,
    big_tiff_of,
    rows_of,
    tiff_of,
    tiffs_of,
)
from support.workbench import encoded

SIZE = (48, 40)
TYPES = (0, 1, 2, 3, 4, 5, 7, 11, 12, 13, 16, 0xFFFF)
TAGS = (256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 320, 322, 323, 324, 325, 347, 530)
"""What a value of a TIFF may be, known and unknown; the tags that say where pixels lie and how they are stored."""


@functools.cache
def drawn(mode: str = "RGB") -> Image.Image:
    return Image.effect_noise(SIZE, 60).convert("RGB").convert(mode)


def saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
    return encoded(drawn(mode), kind, **options)


def animated() -> bytes:
    return saved("GIF", "P", save_all=True, append_images=[drawn("L").convert("P")] * 2, loop=0)


def pdf() -> bytes:
    document = pypdfium2.PdfDocument.new()
    document.new_page(200, 100).close()
    target = io.BytesIO()
    document.save(target)
    document.close()
    return target.getvalue()


def form_pdf() -> bytes:
    """A PDF with a text field."""
    objects = (
        b"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields [ 4 0 R ] /DA (/F 9 Tf) /DR <</Font <</F 5 0 R >> >> >> >>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox [ 0 0 90 90 ] /Annots [ 4 0 R ] >>",
        b"<</Type/Annot/Subtype/Widget/FT /Tx /T (a) /F 4 /Rect [ 1 1 80 80 ] /V (words) /DA (/F 9 Tf) /MaxLen 9 >>",
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    )
    numbered = b"".join(b"%d 0 obj\n%s\nendobj\n" % pair for pair in enumerate(objects, 1))
    return b"%PDF-1.7\n" + numbered + b"trailer<</Root 1 0 R>>\n%%EOF\n"


def layout(mode: str, *, order: str = "<", planar: int = 1, deflate: bool = False, rows: int = 7) -> bytes:
    """Return a TIFF in an order of samples that Pillow does not write."""
    bands, bits, form = {"RGB": (3, 8, 1), "I;16": (1, 16, 1), "F": (1, 32, 3), "RGB;16": (3, 16, 1)}[mode]
    noise = random.Random(mode).randbytes(SIZE[0] * SIZE[1] * bands * bits // 8)
    row_bytes = len(noise) // SIZE[1] // (bands if planar == 2 else 1)
    planes = rows_of(noise, len(noise) // bands, 1) if planar == 2 else [noise]
    strips = [strip for plane in planes for strip in rows_of(plane, row_bytes, rows)]
    tags: dict[int, int | Sequence[int]] = {
        WIDTH: SIZE[0], HEIGHT: SIZE[1], BITS: [bits] * bands, COMPRESSION: 8 if deflate else 1,
        PHOTOMETRIC: 2 if bands == 3 else 1, SAMPLES: bands, ROWS_PER_STRIP: rows, PLANAR: planar,
        SAMPLE_FORMAT: [form] * bands, PREDICTOR: 1,
    }  # fmt: skip
    return tiff_of(tags, [zlib.compress(strip) for strip in strips] if deflate else strips, order=order)


@functools.cache
def pictures() -> dict[str, bytes]:
    """Return valid files by a short name; the format comes first."""
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {
        "jpeg": saved("JPEG", exif=exif), "jpeg progressive": saved("JPEG", progressive=True),
        "jpeg gray": saved("JPEG", "L"), "jpeg cmyk": saved("JPEG", "CMYK"),
        "png": saved("PNG"), "png palette": saved("PNG", "P", transparency=3), "png 16": saved("PNG", "I;16"),
        "png bilevel": saved("PNG", "1"), "png alpha": saved("PNG", "RGBA"),
        "gif": saved("GIF", "P"), "gif animated": animated(), "bmp": saved("BMP"), "bmp palette": saved("BMP", "P"),
        "webp": saved("WEBP"), "webp lossless": saved("WEBP", "RGBA", lossless=True),
        "jp2": saved("JPEG2000"), "jp2 codestream": saved("JPEG2000", "L", no_jp2=True),
        "jp2 boxes": jp2_boxes(), "pdf": pdf(), "pdf form": form_pdf(),
        "tiff big": saved("TIFF", big_tiff=True), "tiff tiles": saved("TIFF", compression="tiff_lzw"),
        "tiff palette": saved("TIFF", "P"), "tiff float": layout("F"), "tiff 16 motorola": layout("I;16", order=">"),
        "tiff planes": layout("RGB", planar=2), "tiff planes 16": layout("RGB;16", planar=2, order=">"),
        "tiff strips": layout("RGB", deflate=True),
        "avif": saved("AVIF"), "avif alpha": saved("AVIF", "RGBA"), "dib": saved("DIB", "P"),
        "ppm": saved("PPM"), "pgm": saved("PPM", "L"), "pbm": saved("PPM", "1"), "ppm text": odd_pictures.text_ppm(),
        "pam": odd_pictures.pam("RGBA"), "pam 16": odd_pictures.pam("RGB", 65535),
        "psd": odd_pictures.psd(layers=-1, alpha=drawn("L").resize(odd_pictures.SIZE)),
        "psd packed": odd_pictures.psd(packed=True), "psd 16": odd_pictures.psd("L", depth=16),
        "bmp masks": odd_pictures.masked_bmp(16, (0xF00, 0xF0, 0xF)),
        "bmp masks 10": odd_pictures.masked_bmp(32, (0x3FF00000, 0xFFC00, 0x3FF)),
    }  # fmt: skip
    made |= odd_tiffs()
    made |= {"jpeg without loss": odd_pictures.jpeg_without_loss(), "ppm 12": odd_pictures.ppm(4095)}
    made |= {
        "jpeg planes": b"".join(odd_pictures.jpeg_by_planes()),
        "jp2 coarse": odd_pictures.jp2_coarse(drawn(), 2, 2),
    }
    made["gif of parts"] = odd_pictures.gif([((9, 9), (9, 9), 0), ((3, 3), (9, 9), 1)], size=SIZE, disposal=2)
    made |= {name.lower(): make(encoded(drawn().resize((1000, 20)), "JPEG")) for name, make in raw_files.MADE.items()}
    if importlib.util.find_spec("pillow_heif"):
        made |= {"heif": odd_pictures.heif(), "heif alpha": odd_pictures.heif("RGBA")}
    if importlib.util.find_spec("pillow_jxl"):
        made |= {"jxl": odd_pictures.jxl(), "jxl container": odd_pictures.jxl("L", use_container=True)}
    for compression in ("raw", "tiff_deflate", "packbits", "jpeg", "tiff_adobe_deflate", "group4", "group3", "lzma"):
        mode = "1" if compression.startswith("group") else "RGB"
        made[f"tiff {compression}"] = saved("TIFF", mode, compression=None if compression == "raw" else compression)
    return made


@functools.cache
def jp2_boxes() -> bytes:
    """A JPEG 2000 with a palette, a profile and definitions of channels."""
    data = saved("JPEG2000", "L")
    at = data.find(b"jp2h") + 4
    added = (
        struct.pack(">L4sBBBL", 15, b"colr", 1, 0, 0, 99),
        struct.pack(">L4sBBB", 8 + 3 + 60, b"colr", 2, 0, 0) + bytes(16) + b"RGB " + bytes(40),
        struct.pack(">L4sHB3B6B", 8 + 3 + 3 + 6, b"pclr", 2, 3, 7, 7, 7, *range(6)),
        struct.pack(">L4s", 20, b"cmap") + bytes([0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 2]),
        struct.pack(">L4sH9H", 28, b"cdef", 3, 0, 0, 3, 1, 0, 2, 2, 0, 1),
    )
    grown = int.from_bytes(data[at - 8 : at - 4]) + sum(map(len, added))
    return data[: at - 8] + struct.pack(">L", grown) + data[at - 4 : at + 22] + b"".join(added) + data[at + 22 :]


def boxes(rng: random.Random) -> bytes:
    """Change the boxes and the main header of a JPEG 2000."""
    data = jp2_boxes()
    end = data.find(b"\xff\x93")
    return harmed(data[60:end], rng, most=3).join((data[:60], data[end:]))


def odd_tiffs() -> dict[str, bytes]:
    """TIFFs whose samples or directories Pillow does not read."""
    rng, (width, height) = random.Random(1), SIZE
    tags: dict[int, int | Sequence[int]] = {
        WIDTH: width, HEIGHT: height, ROWS_PER_STRIP: 9, COMPRESSION: 1, PREDICTOR: 1,
    }  # fmt: skip

    def strips(row_bytes: int, *, deflate: bool = False) -> list[bytes]:
        rows = rows_of(rng.randbytes(row_bytes * height), row_bytes, 9)
        return [zlib.compress(strip) for strip in rows] if deflate else rows

    inks = {**tags, BITS: [8] * 5, SAMPLES: 5, PHOTOMETRIC: 5, EXTRA_SAMPLES: 2, COMPRESSION: 8, PREDICTOR: 2}
    halves = {**tags, BITS: [16] * 3, SAMPLES: 3, PHOTOMETRIC: 8, SAMPLE_FORMAT: [3] * 3, COMPRESSION: 8, PREDICTOR: 3}
    twelve = {**tags, BITS: [12] * 3, SAMPLES: 3, PHOTOMETRIC: 2}
    small = {WIDTH: 1, HEIGHT: 1, BITS: 8, SAMPLES: 1, PHOTOMETRIC: 1, COMPRESSION: 1, ROWS_PER_STRIP: 1, 254: 1}
    plain = {**tags, BITS: [8] * 3, SAMPLES: 3, PHOTOMETRIC: 2}
    return {
        "tiff inks": tiff_of(inks, strips(5 * width, deflate=True)),
        "tiff twelve": tiff_of(twelve, strips(9 * width // 2)),
        "tiff below": tiffs_of([(small, [b"1"]), (plain, strips(3 * width))], below=True),
        "tiff after": tiffs_of([(small, [b"1"]), (plain, strips(3 * width))], order=">"),
        "tiff big motorola": big_tiff_of(plain, strips(3 * width), order=">"),
        "tiff lab halves": tiff_of(halves, strips(6 * width, deflate=True), order=">"),
    }


def of_kind(rng: random.Random, kind: str = "") -> bytes:
    """Return one of the valid files, of a format if one is named."""
    return rng.choice([data for name, data in pictures().items() if name.startswith(kind)])


# Ways to harm them ----------------------------------------------------------------------------------------------


def cut(rng: random.Random) -> bytes:
    """End a file early."""
    data = of_kind(rng)
    return data[: rng.randrange(len(data))]


def head(rng: random.Random) -> bytes:
    """Harm the first bytes, which say what follows."""
    data = of_kind(rng)
    return harmed(data[: rng.choice((16, 40, 120))], rng, most=2) + data[rng.choice((16, 40, 120)) :]


def spliced(rng: random.Random) -> bytes:
    """Join the beginning of one file to the end of another."""
    one, other = of_kind(rng), of_kind(rng)
    return one[: rng.randrange(len(one))] + other[rng.randrange(len(other)) :]


def tail(rng: random.Random) -> bytes:
    """Append what does not belong there."""
    return of_kind(rng) + rng.choice((bytes(5000), rng.randbytes(999), of_kind(rng), b"</html>"))


def tiff_tags(rng: random.Random) -> bytes:
    """Change types, counts and values of a TIFF's tags, and where its directories lie."""
    data = bytearray(of_kind(rng, "tiff"))
    order = "<" if data[:2] == b"II" else ">"
    if bytes(data[2:4]) in (b"+\0", b"\0+"):
        return harmed(bytes(data), rng)
    at = struct.unpack_from(order + "L", data, 4)[0]
    count = struct.unpack_from(order + "H", data, at)[0]
    for _ in range(rng.randint(1, 3)):
        entry = at + 2 + 12 * rng.randrange(count)
        match rng.randrange(6):
            case 0:
                struct.pack_into(
                    order + "H", data, entry + 2, rng.choice((0, 1, 2, 3, 4, 5, 7, 11, 12, 13, 16, 0xFFFF))
                )
            case 1:
                struct.pack_into(order + "L", data, entry + 4, rng.choice(NUMBERS) & 0xFFFFFFFF)
            case 2:
                value = rng.choice((*NUMBERS, 4, at, entry, len(data), len(data) - 1, 5, 6, 7, 34712, 50000))
                struct.pack_into(order + "L", data, entry + 8, value & 0xFFFFFFFF)
            case 3:
                struct.pack_into(order + "H", data, entry, rng.choice((*TAGS, 254, 317, 330, 338, 339, 513)))
            case 4:
                struct.pack_into(order + "L", data, at + 2 + 12 * count, rng.choice((at, 0, 8, len(data), 0xFFFFFFFF)))
            case _:
                struct.pack_into(order + "H", data, at, rng.choice((0, 1, count - 1, count + 1, 0xFFFF)))
    return bytes(data)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))


def png_chunks(rng: random.Random) -> bytes:
    """Change a PNG's chunks and keep their checksums right."""
    data, at, out = of_kind(rng, "png"), 8, []
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        out.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    number = rng.randrange(len(out))
    name, body = out[number]
    bomb = zlib.compress(bytes(4 * 2**20))
    match rng.randrange(7):
        case 0:
            out[number] = (name, harmed(body, rng))
        case 1:
            out.insert(number, out[rng.randrange(len(out))])
        case 2:
            del out[number]
        case 3:
            out.insert(
                1,
                rng.choice(((b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb))),
            )
        case 4:
            rng.shuffle(out)
        case 5:
            out.insert(
                1, (rng.choice((b"tRNS", b"PLTE", b"gAMA", b"cHRM", b"pHYs", b"acTL", b"fdAT", b"eXIf")), body[:50])
            )
        case _:
            out[number] = (name, body[: len(body) // 2] + bomb)
    return data[:8] + b"".join(png_chunk(*chunk) for chunk in out)


def dimensions(rng: random.Random) -> bytes:
    """Announce another size than the pixels have."""
    name = rng.choice([name for name in pictures() if not name.startswith(("pdf", "webp"))])
    data, side = bytearray(pictures()[name]), rng.choice((0, 1, 3, 49, 4000, 30_000, 65_535, 2**31 - 1, 2**32 - 1))
    order, old, code = "<", SIZE[rng.randrange(2)], "H"
    if name.startswith(("png", "jp2")) or data[:2] == b"MM":
        order, code = ">", "L"
    elif name.startswith("jpeg"):
        order = ">"
    elif name.startswith(("tiff", "bmp")):
        code = "L"
    at = data.find(struct.pack(order + code, old))
    if at >= 0:
        struct.pack_into(order + code, data, at, side & (0xFFFF if code == "H" else 0xFFFFFFFF))
    if name.startswith("png"):
        data[29:33] = struct.pack(">L", zlib.crc32(data[12:29]))
    return bytes(data)


def bomb(rng: random.Random, size: int = 300) -> bytes:
    """A small file that asks for much more memory or time: by its size, 300 for a tenth of a second, 2000 for many."""
    match rng.randrange(6):
        case 0:
            return bilevel_png(4 * size)
        case 1:
            pixels = 10 * size * size
            width, height = rng.choice(((1, pixels), (pixels, 1), (65_535, pixels // 65_535), (3 * size, 3 * size)))
            tags: dict[int, int | Sequence[int]] = {
                WIDTH: width, HEIGHT: height, BITS: 8, COMPRESSION: rng.choice((1, 5, 7, 8, 32773)), PHOTOMETRIC: 1,
                SAMPLES: 1, ROWS_PER_STRIP: rng.choice((1, height)), PLANAR: rng.choice((1, 2)),
            }  # fmt: skip
            return tiff_of(tags, [zlib.compress(bytes(pixels))])
        case 2:
            data = bytearray(pictures()["jpeg progressive"])
            struct.pack_into(">HH", data, data.find(b"\xff\xc2") + 5, 3 * size, 3 * size)
            return bytes(data)
        case 3:
            return nested_pdf(3 if size < 1000 else 14)
        case 4:
            width, height = 4 * size, 2 * size
            tags = {
                WIDTH: width, HEIGHT: height, BITS: [8] * 3, COMPRESSION: 8, PHOTOMETRIC: 2, SAMPLES: 3, PLANAR: 2,
                ROWS_PER_STRIP: 1,
            }  # fmt: skip
            return tiff_of(tags, [zlib.compress(bytes(width))], repeat=3 * height)
        case _:
            return png_with(zlib.compress(bytes(size * 10_000)))


def png_with(pixels: bytes) -> bytes:
    """Return a small PNG with other pixels than its size says."""
    data = saved("PNG")
    end = data.find(b"IDAT") - 4
    return data[:end] + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def bilevel_png(side: int) -> bytes:
    """A picture of one colour."""
    rows = zlib.compress(bytes((side + 7) // 8 + 1) * side, 9)
    header = struct.pack(">LLBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def nested_pdf(levels: int) -> bytes:
    """A PDF whose forms draw each other ten times."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R/Resources<</XObject<</F 5 0 R>>>>>>",
        b"<</Length 5>>stream\n/F Do\nendstream",
    ]  # fmt: skip
    for number in range(6, 6 + levels):
        body = b"/F Do " * 10 if number < 5 + levels else b"0 0 m 9 9 l S"
        form = b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</F %d 0 R>>>>/Length %d>>"
        objects.append(form % (number, len(body)) + b"stream\n" + body + b"\nendstream")
    numbered = b"".join(b"%d 0 obj\n%s\nendobj\n" % pair for pair in enumerate(objects, 1))
    return b"%PDF-1.7\n" + numbered + b"trailer<</Root 1 0 R>>\n%%EOF\n"


def pdf_words(rng: random.Random) -> bytes:
    """Change the numbers and names of a PDF."""
    data = rng.choice((pdf(), nested_pdf(2), form_pdf()))
    words = (
        b"0",
        b"-1",
        b"99999999999",
        b"1e38",
        b"NaN",
        b"null",
        b"[",
        b"<<",
        b">>",
        b"3 0 R",
        b"(",
        b"/Type",
        b"stream",
    )
    for _ in range(rng.randint(1, 4)):
        parts = data.split(b" ")
        parts[rng.randrange(len(parts))] = rng.choice(words)
        data = b" ".join(parts)
    return data


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "unharmed": of_kind, "bytes": lambda rng: harmed(of_kind(rng), rng), "cut": cut, "head": head, "spliced": spliced,
    "tail": tail, "tiff tags": tiff_tags, "png chunks": png_chunks, "dimensions": dimensions, "bomb": bomb,
    "pdf words": pdf_words, "jp2 boxes": boxes, "no picture": lambda rng: rng.randbytes(rng.choice((0, 1, 40, 3000))),
}  # fmt: skip

GREAT_BOMBS: dict[str, Callable[[random.Random], bytes]] = {"great bomb": lambda rng: bomb(rng, 2000)}
