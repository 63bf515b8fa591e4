"""What is compressed, known by its first bytes, and read without ever holding much of it.

zstd is Python's own from 3.14 on, before that its backport, which has the same names.
"""

import gzip
import io
import sys
import zlib
from typing import Any, cast

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["DAMAGED", "SUFFIXES", "unpacked", "zstd"]

SUFFIXES = (".gz", ".zst", ".bz2", ".xz")

DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError)
"""What reading raises for damaged data; bzip2 raises an `OSError` without a number."""

_BUFFER = 1 << 20
_XZ_MEMORY = 256 * 1024**2
"""Bytes; `xz -9` wants 65 MiB, and a stranger's file may ask for 4 GiB."""


def unpacked(raw: "io.BufferedReader[Any]") -> "io.BufferedReader[Any]":
    """Return what a file holds: itself, decompressed if it begins as gzip, zstd, bzip2 or xz."""
    magic = raw.peek(6)[:6]
    if magic.startswith(b"\x1f\x8b"):
        stream: object = gzip.GzipFile(fileobj=raw)
    elif magic.startswith(b"\x28\xb5\x2f\xfd"):
        stream = zstd.open(raw)
    elif magic.startswith(b"BZh"):
        # Not every Python was built with this one and the next.
        import bz2

        stream = bz2.BZ2File(raw)
    elif magic == b"\xfd7zXZ\0":
        stream = _Xz(raw)
    else:
        return raw
    return io.BufferedReader(cast(io.RawIOBase, stream), _BUFFER)


class _Xz(io.RawIOBase):
    """What xz files, one behind the other, hold; Python's own reader knows no limit of memory."""

    def __init__(self, raw: "io.BufferedReader[Any]") -> None:
        import lzma

        self._lzma = lzma
        self._raw = raw
        self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            block = self._raw.read1(_BUFFER) if self._decoder.needs_input else b""
            if self._decoder.eof:
                block = self._decoder.unused_data.lstrip(b"\0") or self._raw.read1(_BUFFER).lstrip(b"\0")
                if not block:
                    return 0
                self._decoder = self._lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            elif self._decoder.needs_input and not block:
                raise EOFError("it ends too early")
            try:
                data = self._decoder.decompress(block, len(buffer))
            except self._lzma.LZMAError as error:
                raise EOFError(str(error)) from error
            if data:
                buffer[: len(data)] = data
                return len(data)
