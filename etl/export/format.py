"""What a format of exports is: how records become files, a bounded number of them at a time.

A format is a frozen dataclass whose fields are its options, each an `option` with its help.  It is a `FileFormat`, a
`FolderFormat` or a `SidecarFormat`; each module of `etl.export.formats` has one as ``FORMAT``.
"""

import dataclasses
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from etl.export.lines import ExportOptions, Joined
from etl.export.written import Wrote
from etl.state.read.reader import Reader


class Sink(Protocol):
    """Whatever takes bytes."""

    def write(self, data: bytes, /) -> object:
        """Take all of them."""


def option(default: bool | str, text: str) -> Any:
    """Return the field of a format's option, a switch or a text as its default is; ``text`` is its help."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Format:
    """A format of exports, with its options as they were asked for.

    Attributes:
        name: as given to ``--format``.
        help: what is in it, for the documentation.
        suffixes: of names that mean this format when no other was asked for, before those of compression.
        to_stdout: whether it may be written to stdout.
        pictures: whether it holds pictures: then it is of the records that have caption and picture, and a directory.
        shard_suffix: of the name of each shard, or of each record's file.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    to_stdout: ClassVar[bool] = False
    pictures: ClassVar[bool] = False
    shard_suffix: ClassVar[str] = ""

    @property
    def is_directory(self) -> bool:
        """Whether it is always a directory of shards."""
        return self.pictures

    @property
    def variant(self) -> bytes:
        """What tells apart the same records written with other options; empty for the usual ones."""
        return b""

    def check(self) -> None:
        """Raise `ConfigError` where something is not installed that it needs."""

    def fitted(self, reader: Reader, options: ExportOptions) -> Self:  # noqa: ARG002 - most look at neither
        """Return it as the records of a state want it; called within the snapshot that they are read from."""
        return self


class FileFormat(Format, ABC):
    """A format whose shards are files."""

    @abstractmethod
    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write all records to an open file; raise `ConfigError` for a picture that has gone."""


class FolderFormat(Format, ABC):
    """A format whose shards are directories."""

    @property
    def is_directory(self) -> bool:
        """Always."""
        return True

    @abstractmethod
    def fill(self, folder: Path, records: Iterator[Joined]) -> tuple[int, str]:
        """Write all records into an empty directory, and the files to the disk; return their bytes and a hash."""


@dataclass(frozen=True)
class SidecarFormat(Format, ABC):
    """A format with a file for each captioned record, in a directory that may hold the pictures and anything else."""

    keep_existing: bool = option(False, "In txt, caption, json and xmp, leave a file that is there as it is.")

    @property
    def is_directory(self) -> bool:
        """Always."""
        return True

    @abstractmethod
    def content(self, record: Joined) -> bytes:
        """Return what the file of a captioned record holds."""

    @abstractmethod
    def is_own(self, content: bytes, wrote: Wrote) -> bool:
        """Return whether a file that is there may be written over without being asked to keep it.

        ``wrote`` tells for formats that do not tell themselves who wrote them.
        """


@dataclass(frozen=True)
class PictureFormat(Format):
    """A format that holds pictures.

    Attributes:
        dots: whether their names may have dots before the suffix.
    """

    pictures = True
    dots: ClassVar[bool] = True

    originals: bool = option(False, "In imagefolder and webdataset, the pictures as they came, where these are there.")

    @property
    def variant(self) -> bytes:
        """Told apart by its pictures."""
        return b"originals" * self.originals


class Unclosed(io.RawIOBase):
    """Passes bytes on; closing it leaves the file open, which belongs to somebody else."""

    def __init__(self, stream: Sink) -> None:
        super().__init__()
        self._stream = stream
        self._place = 0

    def writable(self) -> bool:
        """Return true."""
        return True

    def write(self, data: Any) -> int:
        """Pass bytes on; return how many."""
        data = bytes(data)
        self._stream.write(data)
        self._place += len(data)
        return len(data)

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._place
