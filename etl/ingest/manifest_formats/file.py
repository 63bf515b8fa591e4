"""What a manifest is read from: a file, decompressed on the way, a directory, or standard input."""

import io
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from etl.compression import DAMAGED, SUFFIXES, unpacked
from etl.errors import ManifestError
from etl.ingest.manifest_formats.encodings import encoding_of

MAX_LINE = 16 * 1024 * 1024
"""Bytes.  A longer line is no record but a file of another kind."""

HEAD = 256 * 1024
"""Bytes by which a format is recognised."""

_BUFFER = 1 << 20

log = logging.getLogger(__name__)


@dataclass(eq=False)
class ManifestFile:
    """One manifest, as its reader sees it.

    Attributes:
        path: of the file or directory; ``None`` for standard input.
        skipped: how many files of a directory were passed over when it was read last, by kind.
        encoding: of its text, as the user names it; ``None`` where it is to be found out.
        sidecars: suffixes, without dots, of files beside a directory's pictures that are fields of their records.
        image_field: name of the field with a record's picture; ``None`` where it has a usual one.
        called: its name, where that is not the path's.
        folder: URL of a folder of an object store that is listed; then there is no path.
        read_page: returns a page of a folder behind a mark, of at most so many bytes, and the header ``Link``.
        read_url: returns what lies behind a URL, of at most so many bytes, or raises a `FetchError`; ``None`` where
            nothing may be asked for.
        base: what relative paths are resolved against: a directory, the URL of a file that was brought here, or a path
            that leads into an archive, once its first line has been read.
    """

    path: Path | None
    skipped: Counter[str] = field(default_factory=Counter, init=False)
    encoding: str | None = None
    read_url: Callable[[str, int], bytes] | None = None
    called: str = ""
    folder: str = ""
    read_page: Callable[[str, str, int], tuple[bytes, str]] | None = None
    base: Path | str = field(init=False)
    sidecars: Sequence[str] = field(default=(), init=False)
    image_field: str | None = field(default=None, init=False)
    _pipe: "io.BufferedReader[Any] | None" = field(default=None, init=False)
    _begun: bytes = field(default=b"", init=False)
    _is_told: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        path = self.path.resolve() if self.path else Path.cwd()
        self.base = path.parent if self.path and not self.is_directory() else path

    @property
    def name(self) -> str:
        """A short name for messages and for the keys of records that have none."""
        return self.called or ("stdin" if self.path is None else self.path.name)

    @property
    def shown(self) -> str:
        """Where it is, for messages."""
        return self.called or ("-" if self.path is None else str(self.path.resolve()))

    @property
    def suffix(self) -> str:
        """The suffix that tells the format, in lower case and without that of a compression; empty for none."""
        suffixes = [suffix.lower() for suffix in Path(self.name).suffixes] if self.path else []
        return next((suffix for suffix in reversed(suffixes) if suffix not in SUFFIXES), "")

    def is_directory(self) -> bool:
        """Return whether it is a directory."""
        return self.path is not None and self.path.is_dir()

    @cached_property
    def head(self) -> bytes:
        """Its first bytes, decompressed; what can be read only once is kept for `open`."""
        if self.path is None or not self.path.is_file():
            self._pipe = self._pipe or self._opened()
            self._begun = self._pipe.read(HEAD)
        found = b""
        opened = nullcontext(unpacked(_buffered(self._begun))) if self._begun else self.open()
        with suppress(ManifestError, OSError, *DAMAGED), opened as stream:
            while len(found) < HEAD and (block := stream.read1(HEAD)):
                found += block
        return found

    @cached_property
    def text_encoding(self) -> str:
        """The encoding of its text: as the user names it, else by its first bytes that are not ASCII."""
        return self.encoding or encoding_of(self._telling_bytes(), self.name)

    @cached_property
    def head_text(self) -> str:
        """Its head as text, without a byte order mark."""
        return self.head.decode(self.text_encoding, "replace").removeprefix("\ufeff")

    @contextmanager
    def open(self) -> Iterator["io.BufferedReader[Any]"]:
        """Yield its bytes, decompressed where they are compressed.

        Raises `ManifestError` for what goes wrong with the file here or in the block.
        """
        try:
            with self._raw() as raw:
                yield unpacked(raw)
        except (OSError, *DAMAGED) as error:
            if isinstance(error, OSError) and error.errno:
                raise ManifestError(f"cannot read {self.shown}: {error.strerror}") from error
            raise ManifestError(f"{self.shown} is cut short or damaged: {error}") from error

    @contextmanager
    def text(self) -> Iterator[io.TextIOWrapper]:
        """Yield its text, line ends as they are.

        Bytes that are not of its encoding come as surrogates, so that they harm their own record alone.
        """
        if self.text_encoding == "cp1252" and not (self.encoding or self._is_told):
            self._is_told = True
            log.warning("%s is not UTF-8; it is read as Windows-1252 (--encoding names another)", self.name)
        errors = "replace" if self.text_encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
        with self.open() as stream:
            text = io.TextIOWrapper(stream, self.text_encoding, errors, newline="")
            try:
                yield text
            finally:
                text.detach()

    def _telling_bytes(self) -> bytes:
        """Return the first block that is not ASCII alone; of what can be read only once, its head."""
        if not self.head.isascii() or self._pipe is not None:
            return self.head
        with suppress(ManifestError), self.open() as stream:
            while block := stream.read(HEAD):
                if not block.isascii():
                    return block
        return self.head

    @contextmanager
    def _raw(self) -> Iterator["io.BufferedReader[Any]"]:
        if self._pipe is not None:
            begun, self._begun = self._begun, b""
            raw = io.BufferedReader(_Replayed(begun, self._pipe), _BUFFER)
        else:
            raw = self._opened()
        try:
            yield raw
        finally:
            if self.path is not None:
                (self._pipe or raw).close()

    def _opened(self) -> "io.BufferedReader[Any]":
        if self.path is None:
            return cast("io.BufferedReader[Any]", sys.stdin.buffer)
        return cast("io.BufferedReader[Any]", self.path.open("rb", buffering=_BUFFER))


def _buffered(data: bytes) -> "io.BufferedReader[Any]":
    return io.BufferedReader(cast(io.RawIOBase, io.BytesIO(data)))


class _Replayed(io.RawIOBase):
    """What was read of a pipe already, and then the rest of it."""

    def __init__(self, begun: bytes, rest: "io.BufferedReader[Any]") -> None:
        self._begun = begun
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._begun:
            return self._rest.readinto1(buffer)
        size = min(len(buffer), len(self._begun))
        buffer[:size], self._begun = self._begun[:size], self._begun[size:]
        return size


class BadRow(bytes):
    """A line that is no record, for a reason that only its reader knows.

    Attributes:
        reason: in words.
    """

    reason: str

    @classmethod
    def of(cls, row: dict[str, Any], reason: str) -> "BadRow":
        """Return the line that stands for a row, of which there is what could be read."""
        line = cls(json_line(row).decode("utf-8", "replace").encode())
        line.reason = reason
        return line


def json_line(value: Any) -> bytes:
    """Return a value as a line of JSON; bytes that were not of the file's encoding come out as they were."""
    text = json.dumps(value, ensure_ascii=False) + "\n"
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # JSON can spell half a surrogate pair, UTF-8 cannot.
        return json.dumps(value).encode() + b"\n"
