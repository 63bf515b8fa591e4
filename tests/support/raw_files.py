"""Raw data of cameras that are no TIFFs, with nothing in them but the JPEG for people."""

import struct
from collections.abc import Callable


def raf(preview: bytes) -> bytes:
    head = b"FUJIFILMCCD-RAW 0201" + bytes(64) + struct.pack(">II", 160, len(preview))
    return head.ljust(160, b"\0") + preview + b"the sensor's"


def rw2(preview: bytes) -> bytes:
    entries = ((0x2, 3, 1, 99), (0x2E, 7, len(preview), 100))
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (b"IIU\0" + struct.pack("<I", 24) + bytes(16) + directory).ljust(100, b"\0") + preview + b"the sensor's"


def box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), name) + body


def cr3(preview: bytes, orientation: int = 1) -> bytes:
    directory = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 274, 3, 1, orientation, 0)
    canon = box(b"uuid", bytes.fromhex("85c0b687820f11e08111f4ce462b6a48"), box(b"CNCV"), box(b"CMT1", directory))
    shown = box(b"PRVW", bytes(4), struct.pack(">4HI", 1, 1620, 1080, 1, len(preview)), preview)
    name = bytes.fromhex("eaf42b5e1c984b88b9fbb7dc406e4d16")
    return box(b"ftyp", b"crx \0\0\0\1crx isom") + box(b"moov", canon) + box(b"uuid", name, bytes(8), shown)


MADE: dict[str, Callable[[bytes], bytes]] = {"RAF": raf, "RW2": rw2, "CR3": cr3}
