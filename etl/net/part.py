"""The bytes of one download: counted, hashed, capped, and written as they come where they are many.

Knows no HTTP library.
"""

import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from etl import files
from etl.errors import BodyTooLargeError, EtlError, ProtocolError, StateError, TruncatedBodyError
from etl.failpoints import failpoint

BUFFER = 256 * 1024
"""Bytes gathered before a write; sockets deliver anything from 1 to 64 kB at a time."""

HELD = 64 * 1024
"""Bytes below which a body stays in memory: making a file for it would cost more than all else that is done with it."""

_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
"""zlib's own flag (manual of ``inflateInit2``): detect a gzip or zlib header by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """The bytes of one source, safe in a file but not yet fsynced, or in memory.

    Attributes:
        sha256: of the bytes, hex; empty when the server said 304 (see `not_modified`).
        size: bytes.
        data: the bytes themselves, where they are so few (`HELD`) that there is no file.
        http_status, etag, last_modified, final_url, mime: as the server said (``mime`` without parameters, in lower
            case; ``final_url`` after redirects, without user name and password); ``None`` for local files.
    """

    sha256: str
    size: int
    data: bytes | None = field(default=None, repr=False)
    http_status: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    final_url: str | None = None
    mime: str | None = None

    @property
    def not_modified(self) -> bool:
        """Whether the server confirmed the cached version instead of sending bytes; no file was written."""
        return self.http_status == 304


class PartWriter:
    """Takes one body, into a file unless it is small; a context manager that must be left before the file is used.

    Writes go straight from the event loop: 256 kB into the page cache and 64 kB through SHA-256 take well under a
    millisecond together, less than the hop to a thread and back would cost.  No fsync here, which would block.

    Raises `DiskFullError` when there is no room, `StateError` when the file cannot be written for another reason,
    `BodyTooLargeError` beyond ``max_bytes`` (of received or of decoded bytes), and, for a compressed body,
    `ProtocolError` when it cannot be decoded and `TruncatedBodyError` when it ends early.
    """

    def __init__(
        self, path: Path, *, max_bytes: int, compressed: bool = False, resumed_at: int = 0, held: int = 0
    ) -> None:
        """``resumed_at`` is the number of bytes that the file holds already; what is written goes behind them.

        No file is made for fewer than ``held`` bytes (see `data`).
        """
        self.received = resumed_at
        self.size = resumed_at
        self._path = path
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._resumed_at = resumed_at
        self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB) if compressed else None
        self._file: BinaryIO | None = None
        self._held = bytearray()
        self._most_held = held

    def hash_earlier(self) -> None:
        """Take the bytes that are there already into the hash; call before entering, in a thread.

        Reading back 123 MB takes 0.1 to 0.2 s, in which no other download would go on.
        """
        left = self._resumed_at
        try:
            with files.reading(self._path) as file:
                while left and (block := file.read(min(left, BUFFER))):
                    self._hash.update(block)
                    left -= len(block)
        except OSError as error:
            raise self._file_error(error) from error

    def __enter__(self) -> Self:
        if not self._most_held:
            self._open()
        return self

    def _open(self) -> None:
        try:
            # The with-block is the caller's: this object is the file's context manager.
            begun = os.O_RDWR if self._resumed_at else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            descriptor = files.open_plain(self._path, begun)
            self._file = open(descriptor, "r+b" if self._resumed_at else "wb", buffering=BUFFER)  # noqa: PTH123, SIM115
            if self._resumed_at:
                self._file.seek(self._resumed_at)
        except OSError as error:
            raise self._file_error(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
            failpoint("part.closed")
        except OSError as close_error:
            # An error that is already on its way says more than the failure to flush after it.
            if error is None:
                raise self._file_error(close_error) from close_error

    @property
    def sha256(self) -> str:
        """SHA-256 of what was written so far, hex."""
        return self._hash.hexdigest()

    @property
    def data(self) -> bytes | None:
        """What was written, where it was too little for a file."""
        return bytes(self._held) if self._file is None else None

    def write(self, chunk: bytes) -> None:
        """Take bytes as they came from the server."""
        self.received += len(chunk)
        self._check_size(self.received)
        for data in self._decoded(chunk):
            self.size += len(data)
            self._check_size(self.size)
            self._hash.update(data)
            if self._file is None and self.size < self._most_held:
                self._held += data
            else:
                self._store(data)

    def _store(self, data: bytes | bytearray) -> None:
        if self._file is None:
            self._open()
            held, self._held = self._held, bytearray()
            self._store(held)
        assert self._file is not None
        try:
            failpoint("part.before_write")
            self._file.write(data)
        except OSError as error:
            raise self._file_error(error) from error

    def finish(self) -> None:
        """Check that a compressed body came to its end; call once after the last `write`."""
        if self._inflater is not None and not self._inflater.eof:
            raise TruncatedBodyError(f"the compressed body ended early, after {self.received} bytes")

    def _decoded(self, chunk: bytes) -> Iterator[bytes]:
        if self._inflater is None:
            yield chunk
            return
        while True:
            try:
                # Bounded, so that a small chunk cannot swell beyond memory before the cap is checked.
                data = self._inflater.decompress(chunk, BUFFER)
            except zlib.error as error:
                raise ProtocolError(f"the compressed body cannot be decoded ({error})") from error
            yield data
            if self._inflater.unused_data:
                raise ProtocolError("there is data after the end of the compressed body")
            chunk = self._inflater.unconsumed_tail
            if not chunk and len(data) < BUFFER:
                return

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise BodyTooLargeError(f"the body is larger than the limit of {self._max_bytes} bytes")

    def _file_error(self, error: OSError) -> EtlError:
        what = error.strerror or str(error)
        full = (
            f"no room to write {self._path} ({what}): free some space and run the same command again; what was "
            "done so far is kept"
        )
        return files.disk_error(error, full, StateError(f"cannot write {self._path}: {what}"))
