"""A walk over the image cache: from shard to shard, the two digits that hashes begin with, one of them in memory."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from etl import files
from etl.errors import StateError

SHA256 = re.compile(r"[0-9a-f]{64}")

SHARDS = tuple(f"{number:02x}" for number in range(256))


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file below the cache's root.

    Attributes:
        size: bytes.
        written_ns: when it was last written to, Unix nanoseconds.
    """

    path: Path
    size: int
    written_ns: int

    @classmethod
    def of(cls, entry: files.Entry) -> "CachedFile":
        """Return the file of an entry."""
        return cls(entry.path, entry.size, entry.written_ns)


@dataclass(frozen=True, slots=True)
class Shard:
    """The finished files of one kind whose hashes begin with the same two digits.

    Attributes:
        name: the two digits.
        files: by hash, the files that are where they ought to be.
        strays: whatever else lies in the directory.
    """

    name: str
    files: dict[str, CachedFile] = field(default_factory=dict)
    strays: list[CachedFile] = field(default_factory=list)


def shards(directory: Path, suffix: str) -> Iterator[Shard]:
    """Yield all 256 shards of a directory, in order; a file is its hash and the suffix, anything else is a stray."""
    for name in SHARDS:
        shard = Shard(name)
        for entry in listed(directory / name):
            sha256 = entry.path.name.removesuffix(suffix)
            rightly = entry.path.name == sha256 + suffix and sha256.startswith(name) and SHA256.fullmatch(sha256)
            if rightly and entry.is_file:
                shard.files[sha256] = CachedFile.of(entry)
            else:
                shard.strays.extend(below([entry]))
        yield shard


def below(entries: Iterable[files.Entry]) -> Iterator[CachedFile]:
    """Yield the files among the entries and below them; a link is a file, wherever it leads."""
    for entry in entries:
        if entry.is_directory:
            yield from below(listed(entry.path))
        else:
            yield CachedFile.of(entry)


def listed(directory: Path) -> list[files.Entry]:
    """Return what is in a directory; nothing where there is none.  Raises `StateError` where it cannot be read."""
    try:
        return files.entries(directory)
    except OSError as error:
        raise StateError(f"cannot read {directory}: {error.strerror or error}") from error
