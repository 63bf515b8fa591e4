"""What a manifest is read from: a file, decompressed on the way, a directory, or standard input."""

import gzip
import io
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from etl.compression import zstd
from etl.errors import ManifestError

MAX_LINE = 16 * 1024 * 1024
"""Bytes.  A longer line is no record but a file of another kind."""

_COMPRESSIONS = (".gz", ".zst")
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One manifest, as its reader sees it.

    Attributes:
        path: of the file or directory; ``None`` for standard input.
        skipped: how many files of a directory were passed over when it was read last, by kind.
    """

    path: Path | None
    skipped: Counter[str] = field(default_factory=Counter, compare=False)

    @property
    def name(self) -> str:
        """A short name for messages and for the keys of records that have none."""
        return "stdin" if self.path is None else self.path.name

    @property
    def suffix(self) -> str:
        """The suffix that tells the format, in lower case and without that of a compression; empty for none."""
        suffixes = [suffix.lower() for suffix in self.path.suffixes] if self.path else []
        return next((suffix for suffix in reversed(suffixes) if suffix not in _COMPRESSIONS), "")

    def is_directory(self) -> bool:
        """Return whether it is a directory."""
        return self.path is not None and self.path.is_dir()

    @contextmanager
    def open(self) -> Iterator["io.BufferedReader[Any]"]:
        """Yield its bytes, decompressed if they begin as gzip or zstd.

        Raises `ManifestError` for what goes wrong with the file here or in the block.
        """
        where = "-" if self.path is None else self.path.resolve()
        try:
            with self._raw() as raw:
                magic = raw.peek(4)[:4]
                if magic[:2] == b"\x1f\x8b":
                    with gzip.open(raw) as stream:
                        yield io.BufferedReader(cast(io.RawIOBase, stream), _BUFFER)
                elif magic == b"\x28\xb5\x2f\xfd":
                    with zstd.open(raw) as stream:
                        yield io.BufferedReader(cast(io.RawIOBase, stream), _BUFFER)
                else:
                    yield raw
        except (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError) as error:
            raise ManifestError(f"{where} is cut short or damaged: {error}") from error
        except OSError as error:
            raise ManifestError(f"cannot read {where}: {error.strerror or error}") from error

    @contextmanager
    def _raw(self) -> Iterator["io.BufferedReader[Any]"]:
        if self.path is None:
            yield cast(io.BufferedReader, sys.stdin.buffer)
            return
        with self.path.open("rb", buffering=_BUFFER) as raw:
            yield cast("io.BufferedReader[Any]", raw)
