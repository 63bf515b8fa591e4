"""Exports of many files: a directory of shards, each of which appears whole or not at all.

    DIRECTORY/.shards.json          what is there: for each shard its rows, bytes and hashes
    DIRECTORY/shard-00000.parquet   (.jsonl, .csv, .tar), or for an image folder
    DIRECTORY/shard-00000/          metadata.jsonl and the pictures

A shard is known by what its records say, so one that is there and right is not written again: an export that was
killed, or is done once more after some captions were added, writes only what is missing or has changed.
"""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from etl import files
from etl.domain.statuses import RecordOutcome
from etl.domain.views import ExportSummary
from etl.errors import ConfigError, NotPlainError
from etl.export.format import FileFormat, FolderFormat, Format, PictureFormat
from etl.export.lines import ExportOptions, Joined, Selected, check_counts, joined, summary_of
from etl.export.names import Names
from etl.export.pictures import picture_of
from etl.files import sync_chosen
from etl.images.cache import ImageCache
from etl.output_file import claimed, clear, is_part, replaced, resolved, write_errors
from etl.state.presence import require_cache
from etl.state.read.reader import Reader

INDEX = ".shards.json"
"""Hidden: whoever loads the directory takes every other file for data."""

MAX_INDEX = 256 * 1024 * 1024
"""Bytes of an index; one of a million shards has less."""

_NAME = re.compile(r"shard-[0-9]{5,9}(\.[a-z0-9]{1,20}){0,2}")

USUAL_SIZE = 10_000
"""Records in a shard of a format that holds pictures: about a gigabyte."""

_START = (0, 0, 0)
WHEN_FULL = ": free some and export again; what is there is kept"


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard, as the index tells of it.

    Attributes:
        name: of the file or directory.
        rows, bytes: records in it, and what it takes.
        sha256: hash of the file; of an image folder that of its ``metadata.jsonl``.
        content: hash over its records, their captions and the hashes of their pictures.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    content: str


def export_shards(
    reader: Reader, target: str, kind: Format, options: ExportOptions
) -> tuple[ExportSummary, int | None]:
    """Write the shards that are missing or have changed; return what the export holds and the recipe's row.

    Raises `ConfigError` for a directory that holds anything but an earlier export of this format, `CacheMissingError`
    where pictures are to be exported and the cache is not there, else as `etl.export.stage.export`.
    """
    directory = resolved(target)
    if kind.pictures:
        require_cache(reader)
    with reader.snapshot():
        selected = Selected.of(reader, options)
        with write_errors(str(directory), WHEN_FULL), only_writer(directory):
            writer = _Writer(reader, directory, kind.fitted(reader, options), selected)
            counts = writer.write()
    summary = summary_of(
        str(directory),
        counts,
        size=sum(shard.bytes for shard in writer.shards),
        sha256=writer.sha256,
        format=f"{selected.format_of(kind.name)}-shards",
        shards=len(writer.shards),
        written=writer.written,
        without_picture=counts["without_picture"],
        reduced=counts["reduced"],
        without_original=counts["without_original"],
    )
    return summary, selected.recipe.id if selected.recipe else None


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Make the directory where there is none, and let nobody else export to it during the block."""
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file; give the name of a directory")
    directory.mkdir(parents=True, exist_ok=True)
    with claimed(directory, "export", directory):
        yield


class _Writer:
    """Writes one directory, which nobody else writes meanwhile.

    Attributes:
        shards: that it holds so far.
        written: how many of them were not there, or not right.
        kind: the format, with its options.
    """

    def __init__(self, reader: Reader, directory: Path, kind: Format, selected: Selected) -> None:
        self._reader = reader
        self._directory = directory
        self.kind = kind
        self._selected = selected
        self._size = selected.options.shard_size or USUAL_SIZE
        self._cache = ImageCache.of_state(reader.state)
        self._names = Names()
        self.shards: list[Shard] = []
        self.written = 0
        self._known: list[Shard] = []
        self._known = self._open()

    def _open(self) -> list[Shard]:
        """Begin the index, or return the shards of an earlier export; what a dead export left unfinished is removed."""
        index = self._directory / INDEX
        if files.look_at(index) is not None:
            try:
                with files.reading(index) as file:
                    found = json.loads(file.read(MAX_INDEX))
                kind, shards = found["format"], [Shard(**shard) for shard in found["shards"]]
                if not all(_NAME.fullmatch(shard.name) for shard in shards):
                    raise ValueError("a name of no shard")
            except (NotPlainError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise ConfigError(f"{index} is no index of an export; choose another directory") from error
            if kind != self.kind.name:
                raise ConfigError(f"{self._directory} holds an export as {kind}; choose another directory")
            clear(self._directory)
            for folder in self._directory.glob(".shard-*.part"):
                if folder.is_dir() and not folder.is_symlink():
                    shutil.rmtree(folder)
            return shards
        if not all(is_part(path.name) for path in self._directory.iterdir()):
            raise ConfigError(f"{self._directory} holds other files; choose a new directory")
        self._note(complete=False)
        return []

    @property
    def sha256(self) -> str:
        """Hash over the hashes of the shards."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def write(self) -> Counter[str]:
        """Write what is missing; return the counts over all records.

        Where these are not what the state says, the index stays incomplete and nothing is removed.
        """
        total: Counter[str] = Counter()
        place = _START
        while True:
            shard, place, counts = self._shard(len(self.shards), place)
            total += counts
            if shard is None:
                break
            self.shards.append(shard)
            if shard.rows < self._size:
                break
        check_counts(self._reader, self._selected, total)
        self._remove_surplus()
        self._note(complete=True)
        return total

    def _shard(
        self, number: int, place: tuple[int, int, int]
    ) -> tuple[Shard | None, tuple[int, int, int], Counter[str]]:
        """Write one shard, unless it is right; return it, the place of its last record, and what was passed."""
        self._names.keep()
        if number < len(self._known) and self._is_whole(known := self._known[number]):
            records = _Records(self, place)
            for _ in records:
                pass
            if records.content == known.content:
                return known, records.place, records.counts
            self._names.give_back()
        records = _Records(self, place)
        first = next(records, None)
        # An export of nothing still is one file, with its header.
        if first is None and (number or isinstance(self.kind, FolderFormat)):
            return None, place, records.counts
        name = f"shard-{number:05d}{self.kind.shard_suffix}"
        size, sha256 = self._write(self._directory / name, _chained(first, records))
        self.written += 1
        shard = Shard(name, records.rows, size, sha256, records.content)
        self._note(complete=False, more=shard)
        return shard, records.place, records.counts

    def _is_whole(self, shard: Shard) -> bool:
        path = self._directory / shard.name
        if path.is_dir():
            return sum(file.stat().st_size for file in path.iterdir()) == shard.bytes
        return path.is_file() and path.stat().st_size == shard.bytes

    def _write(self, path: Path, records: Iterator[Joined]) -> tuple[int, str]:
        if isinstance(self.kind, FolderFormat):
            return self._write_folder(self.kind, path, records)
        assert isinstance(self.kind, FileFormat)
        with replaced(str(path)) as file:
            self.kind.write(file, records)
        with path.open("rb") as written:
            return path.stat().st_size, hashlib.file_digest(written, "sha256").hexdigest()

    def _write_folder(self, kind: FolderFormat, path: Path, records: Iterator[Joined]) -> tuple[int, str]:
        new = path.with_name(f".{path.name}.part")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        size, sha256 = kind.fill(new, records)
        sync_chosen(new)
        # A directory cannot take another one's place; killed between the two, this shard is written again.
        shutil.rmtree(path, ignore_errors=True)
        new.rename(path)
        sync_chosen(self._directory)
        return size, sha256

    def records(self, place: tuple[int, int, int], counts: Counter[str]) -> Iterator[Joined]:
        """Yield the records behind a place that this format can hold."""
        for record in joined(self._reader, self._selected, counts, place):
            if isinstance(self.kind, PictureFormat):
                if record.outcome != RecordOutcome.CAPTIONED:
                    counts["rows"] -= 1
                    continue
                if record.row.working_sha256 is None:
                    counts["rows"] -= 1
                    counts["without_picture"] += 1
                    continue
                originals = self.kind.originals
                found = picture_of(record.row, self._cache, self._names, originals=originals, dots=self.kind.dots)
                counts["without_original"] += originals and not found.is_original
                counts["reduced"] += bool(record.row.reduced) and not found.is_original
                record = replace(record, picture=found)
            yield record

    @property
    def size(self) -> int:
        """Records in a full shard."""
        return self._size

    def _remove_surplus(self) -> None:
        kept = {shard.name for shard in self.shards}
        for shard in self._known:
            # The index was read from a file: only what such a name can be is removed.
            if shard.name not in kept and shard.name.startswith("shard-") and "/" not in shard.name:
                path = self._directory / shard.name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _note(self, *, complete: bool, more: Shard | None = None) -> None:
        """Write the index; while the export goes on it also tells of the earlier shards that are still to be seen."""
        shards = [*self.shards, *([more] if more else [])]
        if not complete:
            shards += self._known[len(shards) :]
        options = self._selected.options
        value: dict[str, Any] = {
            "format": self.kind.name, "complete": complete, "shard_size": self._size,
            "recipe": self._selected.recipe.sha256 if self._selected.recipe else None, "since": options.since or None,
            "only_captioned": options.only_captioned, "provenance": options.provenance,
            "rows": sum(shard.rows for shard in shards),
            "shards": [{name: getattr(shard, name) for name in Shard.__slots__} for shard in shards],
        }  # fmt: skip
        with replaced(str(self._directory / INDEX)) as file:
            file.write(json.dumps(value, indent=1).encode() + b"\n")


class _Records(Iterator[Joined]):
    """The records of one shard, once.

    Attributes:
        rows: that were yielded.
        place: of the last of them.
        counts: over all that were passed.
    """

    def __init__(self, writer: _Writer, place: tuple[int, int, int]) -> None:
        self.rows, self.place, self.counts = 0, place, Counter[str]()
        # Written otherwise, a shard of the same records is another one.
        self._hash = hashlib.sha256(writer.kind.variant)
        self._records = islice(writer.records(place, self.counts), writer.size)

    def __next__(self) -> Joined:
        record = next(self._records)
        row = record.row
        self.rows, self.place = self.rows + 1, record.place
        picture = (record.picture.name, record.picture.sha256) if record.picture else ()
        for part in (row.key.encode(), record.line, *(part.encode() for part in (row.text or "", *picture))):
            self._hash.update(len(part).to_bytes(8) + part)
        return record

    @property
    def content(self) -> str:
        """Hash over what was yielded."""
        return self._hash.hexdigest()


def _chained(first: Joined | None, records: Iterator[Joined]) -> Iterator[Joined]:
    if first is not None:
        yield first
    yield from records
