"""Files of every accepted format, whole ones and odd ones, that show the same small picture."""

import functools
import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

from PIL import Image
from support.workbench import encoded

SIZE = (48, 40)
CORNERS = ((220, 30, 30), (30, 200, 40), (30, 40, 210), (240, 230, 60))


@functools.cache
def picture() -> Image.Image:
    """Return a picture whose four quarters have colours of their own, smooth between them."""
    corners = Image.new("RGB", (2, 2))
    for number, colour in enumerate(CORNERS):
        corners.putpixel((number % 2, number // 2), colour)
    return corners.resize(SIZE, Image.Resampling.BICUBIC)


def gray() -> Image.Image:
    return picture().convert("L")


def saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    image = picture().quantize(64) if mode == "P" else picture().convert(mode)
    return encoded(image, kind, **options)


# PNG ------------------------------------------------------------------------------------------------------------


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) if crc is None else crc)
    )


def png_with(*chunks: bytes) -> bytes:
    """Return a PNG with these chunks behind its header."""
    data = saved("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def png_ending(*chunks: bytes) -> bytes:
    """Return a PNG with these chunks in the place of its last one."""
    return saved("PNG")[:-12] + b"".join(chunks)


def profile_of(size: int) -> bytes:
    return chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(size)))


# JPEG -----------------------------------------------------------------------------------------------------------


def jpeg_with(*segments: tuple[int, bytes], **options: Any) -> bytes:
    """Return a JPEG with these application segments in the place of its JFIF segment."""
    data = saved("JPEG", quality=95, **options)
    length = int.from_bytes(data[4:6], "big")
    made = b"".join(
        b"\xff" + bytes([0xE0 + number]) + struct.pack(">H", len(body) + 2) + body for number, body in segments
    )
    return data[:2] + made + data[4 + length :]


def jpeg_without_end(**options: Any) -> bytes:
    return saved("JPEG", quality=95, **options)[:-2]


def jpeg_without_loss() -> bytes:
    """Return a gray JPEG of ITU-T T.81, annex H: each sample's difference to its neighbour, in Huffman codes."""
    (width, height), samples = SIZE, gray().tobytes()
    bits = ""
    for at, value in enumerate(samples):
        before = samples[at - 1] if at % width else samples[at - width] if at else 128
        difference = value - before
        length = abs(difference).bit_length()
        # All nine lengths have codes of four bits.
        rest = difference + ((1 << length) - 1) * (difference < 0)
        bits += f"{length:04b}" + (f"{rest:0{length}b}" if length else "")
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    frame = struct.pack(">BHHB3B", 8, height, width, 1, 1, 0x11, 0)
    codes = b"\0" + bytes((0, 0, 0, 9, *[0] * 12)) + bytes(range(9))
    segments = ((0xC3, frame), (0xC4, codes), (0xDA, bytes((1, 1, 0, 1, 0, 0))))
    made = b"".join(bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return b"\xff\xd8" + made + data + b"\xff\xd9"


def jpeg_by_planes() -> list[bytes]:
    """Return a baseline JPEG, without its end, whose colours have a scan each: cut before the second and the third."""
    planes = [encoded(plane, "JPEG", quality=95) for plane in picture().convert("YCbCr").split()]
    head = planes[0][: planes[0].index(b"\xff\xda")]
    frame = struct.pack(">HBHHB", 17, 8, *SIZE[::-1], 3) + b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    at = head.index(b"\xff\xc0")
    head = head[: at + 2] + frame + head[at + 13 :]
    scans = [plane[plane.index(b"\xff\xda") :][:-2] for plane in planes]
    parts = [scan[:5] + bytes((number,)) + scan[6:] for number, scan in enumerate(scans, 1)]
    return [head + parts[0], *parts[1:]]


def jp2_coarse(image: Image.Image, across: int, down: int) -> bytes:
    """Return a codestream whose colours have fewer samples than its pixels: a packet of each plane behind another."""
    planes = list(image.convert("YCbCr").split())
    small = (-(-image.width // across), -(-image.height // down))
    planes[1:] = [plane.resize(small, Image.Resampling.BOX) for plane in planes[1:]]
    streams = [encoded(plane, "JPEG2000", no_jp2=True, num_resolutions=1).partition(b"\xff\x93") for plane in planes]
    head, data = bytearray(streams[0][0]), b"".join(rest.removesuffix(b"\xff\xd9") for _, _, rest in streams)
    struct.pack_into(">H", head, 4, 47)
    struct.pack_into(">HBBB", head, 40, 3, 7, 1, 1)
    head[45:45] = bytes((7, across, down)) * 2
    struct.pack_into(">L", head, len(head) - 6, 14 + len(data))
    return bytes(head) + b"\xff\x93" + data + b"\xff\xd9"


def jp2_to_the_end() -> bytes:
    """Return a JPEG 2000 whose only part of a tile has no length, and so goes to the end of the stream."""
    data = saved("JPEG2000")
    at = data.index(b"\xff\x90") + 6
    return data[:at] + bytes(4) + data[at + 4 :]


# BMP ------------------------------------------------------------------------------------------------------------


def masked_bmp(bits: int, masks: tuple[int, ...], *, header: int = 40, top_down: bool = False, kind: int = 3) -> bytes:
    """Return a BMP with these masks, of which a fourth is for an opacity of zero.

    Those of kind 6, from Windows CE, have one more for alpha.
    """
    width, height = SIZE
    rows = list(range(height)) if top_down else list(reversed(range(height)))
    pixels = b""
    for y in rows:
        row = b"".join(_packed(picture().getpixel((x, y)), masks).to_bytes(bits // 8, "little") for x in range(width))
        pixels += row + bytes(-len(row) % 4)
    tail = struct.pack(f"<{len(masks)}I", *masks) + (bytes(4) if kind == 6 else b"")
    info = struct.pack(
        "<IiiHHIIiiII", header, width, -height if top_down else height, 1, bits, kind, len(pixels), 0, 0, 0, 0
    )
    body = info + tail + bytes(max(0, header - len(info) - len(tail)))
    return b"BM" + struct.pack("<IHHI", 14 + len(body) + len(pixels), 0, 0, 14 + len(body)) + body + pixels


def _packed(pixel: object, masks: Iterable[int]) -> int:
    assert isinstance(pixel, tuple)
    number = 0
    for value, mask in zip(pixel, masks, strict=False):
        low = mask & -mask
        number |= round(value / 255 * (mask // low)) * low
    return number


# GIF ------------------------------------------------------------------------------------------------------------


def gif(frames: list[tuple[tuple[int, int], tuple[int, int], int]], *, size: tuple[int, int], disposal: int) -> bytes:
    """Return a GIF of frames, each a place, a size and a colour: white, red or blue."""
    made = b""
    for place, frame_size, colour in frames:
        frame = Image.new("P", frame_size, colour)
        frame.putpalette((255, 255, 255, 200, 0, 0, 0, 0, 200, 9, 9, 9))
        data = encoded(frame, "GIF", optimize=False)
        at = data.index(b",\0\0\0\0")
        made = made or data[:6] + struct.pack("<HH", *size) + data[10 : 13 + 3 * (2 << (data[10] & 7))]
        control = b"!\xf9\x04" + bytes((disposal << 2, 9, 0, 0, 0))
        made += control + b"," + struct.pack("<HH", *place) + data[at + 5 : -1]
    return made + b";"


# Netpbm ---------------------------------------------------------------------------------------------------------


def text_ppm(comment: str = "") -> bytes:
    values = " ".join(map(str, picture().tobytes()))
    return f"P3\n{comment}{SIZE[0]} {SIZE[1]}\n255\n{values}\n".encode()


def ppm(top: int) -> bytes:
    size = 1 if top < 256 else 2
    values = (round(value * top / 255).to_bytes(size) for value in picture().tobytes())
    return f"P6 {SIZE[0]} {SIZE[1]} {top}\n".encode() + b"".join(values)


def pam(mode: str, top: int = 255, kind: str = "X") -> bytes:
    image = picture().convert(mode)
    bands = len(image.getbands())
    size = f"WIDTH {SIZE[0]}\nHEIGHT {SIZE[1]}\nDEPTH {bands}"
    head = f"P7\n# drawn\n{size}\nMAXVAL {top}\nTUPLTYPE {kind}\nENDHDR\n".encode()
    if top < 256:
        return head + bytes(round(value * top / 255) for value in image.tobytes())
    return head + b"".join(struct.pack(">H", round(value * top / 255)) for value in image.tobytes())


# Photoshop ------------------------------------------------------------------------------------------------------


def psd(
    mode: str = "RGB", *, depth: int = 8, packed: bool = False, alpha: Image.Image | None = None, layers: int = 0,
    composite: bool = True, version: int = 1, number: int | None = None,
) -> bytes:  # fmt: skip
    """Return a PSD; ``alpha`` is one more channel, which is transparency where ``layers`` is negative."""
    image = picture().convert(mode)
    planes = [band.tobytes() for band in image.split()]
    if mode == "CMYK":
        planes = [bytes(255 - value for value in plane) for plane in planes]
    if mode == "1":
        planes = [bytes(value ^ 255 for value in image.tobytes())]
    if alpha is not None:
        planes.append(alpha.tobytes())
    if depth == 16:
        planes = [b"".join(bytes((value, value)) for value in plane) for plane in planes]
    number = number or {"1": 0, "L": 1, "RGB": 3, "CMYK": 4, "LAB": 9}[mode]
    head = b"8BPS" + struct.pack(
        ">H6xHIIHH", version, len(planes), SIZE[1], SIZE[0], 1 if mode == "1" else depth, number
    )
    info = struct.pack(">IBII", 1, composite, 0, 0) + bytes(4)
    resources = b"8BIM" + struct.pack(">HHI", 1057, 0, len(info)) + info + bytes(len(info) % 2)
    layer = struct.pack(">Ih", 2, layers) + bytes(4) if layers else b""
    rows = [_rows(plane) for plane in planes]
    if packed:
        packs = [[_literally(row) for row in plane] for plane in rows]
        sizes = b"".join(struct.pack(">H", len(row)) for plane in packs for row in plane)
        pixels = struct.pack(">H", 1) + sizes + b"".join(b"".join(plane) for plane in packs)
    else:
        pixels = struct.pack(">H", 0) + b"".join(planes)
    parts = (b"", resources, layer)
    return head + b"".join(struct.pack(">I", len(part)) + part for part in parts) + pixels


def _rows(plane: bytes) -> list[bytes]:
    length = len(plane) // SIZE[1]
    return [plane[at : at + length] for at in range(0, len(plane), length)]


def _literally(row: bytes) -> bytes:
    """Return a row as PackBits has it, without any repetition."""
    return b"".join(bytes([len(part) - 1]) + part for part in (row[at : at + 128] for at in range(0, len(row), 128)))


# Formats that need a package ------------------------------------------------------------------------------------


def heif(mode: str = "RGB", **options: Any) -> bytes:
    import pillow_heif

    target = io.BytesIO()
    pillow_heif.from_pillow(picture().convert(mode)).save(target, **options)
    return target.getvalue()


def jxl(mode: str = "RGB", **options: Any) -> bytes:
    import pillow_jxl  # noqa: F401 -- registers itself

    return saved("JXL", mode, **options)
