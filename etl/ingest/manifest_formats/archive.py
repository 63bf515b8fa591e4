"""ZIP and tar archives: of pictures, whose files of the same name are their fields, or with a list among them."""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import Any

from etl.archives import Archive, BadArchiveError, Member, is_archive, open_archive
from etl.compression import SUFFIXES
from etl.errors import ManifestError
from etl.ingest.fields import addresses, is_picture, named, pictures_of
from etl.ingest.manifest_formats.directory import MAX_SIDECAR, SIDECARS, line_of, sidecar_of, skipped_as
from etl.ingest.manifest_formats.file import ManifestFile
from etl.text import clean

Reader = Callable[[ManifestFile], Iterator[bytes]]

_LISTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".psv", ".parquet")
_LOOKED_AT = 20
"""Records of a list beside pictures, or of a text, one of which must name a picture for it to be the one meant."""

_OFFICE = {
    "xl/workbook.xml": "an Excel workbook",
    "xl/workbook.bin": "an Excel workbook",
    "content.xml": "a spreadsheet",
    "Index/Document.iwa": "a spreadsheet of Numbers",
}


def recognises(file: ManifestFile) -> bool:
    """Return whether it is one, by its first bytes."""
    return not file.is_directory() and is_archive(file.head)


def lines(file: ManifestFile, read: Reader) -> Iterator[bytes]:
    """Yield a line for each picture, or what ``read`` yields for the list in the archive; `ManifestFile.base` is set.

    What is neither, and what cannot be read, is passed over and counted.  A picture is yielded when the last of its
    fields has been read, so that an archive is gone through from its beginning to its end.
    """
    if file.path is None or not file.path.is_file():
        raise ManifestError(f"{file.name} holds an archive, which cannot be read from a pipe; save it as a file")
    try:
        with closing(open_archive(file.path)) as archive:
            file.skipped.clear()
            inside = _Inside.of(archive, file)
            wanted = inside.the_list(archive, file, read)
            if inside.groups:
                file.base = file.path.resolve() / PurePosixPath(wanted or "").parent
            if wanted is None:
                yield from _pictures(archive, file, inside)
                return
            for member in inside.chosen(archive):
                if member.name == wanted:
                    yield from read(_Listed(file, archive, member))
                    return
    except BadArchiveError as error:
        raise ManifestError(f"cannot read the archive {file.shown}: {error}") from error
    except OSError as error:
        raise ManifestError(f"cannot read {file.shown}: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Inside:
    """What an archive holds that can be read.

    Attributes:
        last: under each name the number of the last file that has it, which is the one that counts.
        groups: how many files have each name of a picture, up to its suffix.
        lists: names of what may be the list that is meant.
    """

    last: dict[str, int]
    groups: Counter[str]
    lists: list[str]

    @classmethod
    def of(cls, archive: Archive, file: ManifestFile) -> "_Inside":
        last, links = dict[str, int](), dict[int, Member]()
        for number, member in enumerate(archive.members()):
            if member.link and skipped_as(member.name) is None:
                links[number] = member
            elif member.fault:
                file.skipped[member.fault] += 1
            else:
                last[member.name] = number
        for name, what in _OFFICE.items():
            if name in last:
                raise ManifestError(f"{file.name} is {what}; save it as CSV (UTF-8)")
        file.skipped.update("link" for member in links.values() if member.link not in last)
        last |= {member.name: number for number, member in links.items() if member.link in last}
        groups = Counter(_stem(name) for name in last if skipped_as(name) is None)
        fields = [name for name in last if _is_field(name) and _stem(name) in groups]
        suffixes = _LISTS if groups else (*_LISTS, ".txt")
        lists = [name for name in last if _list_suffix(name) in suffixes and skipped_as(name) != "hidden"]
        lists = sorted(set(lists) - set(fields))
        groups.update(map(_stem, fields))
        return cls(last, groups, lists)

    def chosen(self, archive: Archive) -> Iterator[Member]:
        """Yield its files, each name once."""
        for number, member in enumerate(archive.members()):
            if self.last.get(member.name) == number:
                yield member

    def the_list(self, archive: Archive, file: ManifestFile, read: Reader) -> str | None:
        """Return the name of the list, ``None`` where the pictures are all; `ManifestError` for several."""
        found = [name for name in self.lists if not (self.groups or name.lower().endswith(".txt"))]
        if unsure := set(self.lists) - set(found):
            found += [
                member.name
                for member in self.chosen(archive)
                if member.name in unsure and _names_pictures(read(_Listed(file, archive, member)), file.image_field)
            ]
        if len(found) > 1:
            names = ", ".join(clean(name, 60) for name in found[:3])
            raise ManifestError(f"{file.name} holds several lists ({names}); unpack it and give the one that is meant")
        return found[0] if found else None


class _Listed(ManifestFile):
    """A list in an archive, which is read as one from a pipe is."""

    def __init__(self, file: ManifestFile, archive: Archive, member: Member) -> None:
        assert file.path is not None
        super().__init__(file.path / member.name, file.encoding, file.read_url)
        self._archive = archive
        self._member = member

    def _opened(self) -> "io.BufferedReader[Any]":
        return self._archive.open(self._member)


def _names_pictures(lines: Iterator[bytes], image_field: str | None) -> bool:
    try:
        records = (json.loads(line) for line in islice(lines, _LOOKED_AT) if line.strip())
        found = (addresses(named(one, image_field)) if image_field else pictures_of(one) for one in records)
        return any(map(is_picture, chain.from_iterable(found)))
    except (ManifestError, ValueError, AttributeError, RecursionError):
        return False


def _pictures(archive: Archive, file: ManifestFile, inside: _Inside) -> Iterator[bytes]:
    held: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for member in inside.chosen(archive):
        name, stem = member.name, _stem(member.name)
        kind = skipped_as(name)
        if kind is None:
            held.setdefault(stem, ([], {}))[0].append(name)
        elif _is_field(name) and stem in inside.groups:
            suffix = PurePosixPath(name).suffix.lower()[1:]
            held.setdefault(stem, ([], {}))[1][suffix] = sidecar_of(name, archive.open(member).read(MAX_SIDECAR + 1))
        else:
            file.skipped[kind] += 1
            continue
        inside.groups[stem] -= 1
        if not inside.groups[stem]:
            names, fields = held.pop(stem)
            yield from (line_of(name, fields) for name in names)


def _is_field(name: str) -> bool:
    return PurePosixPath(name).suffix.lower()[1:] in SIDECARS


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _list_suffix(name: str) -> str:
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in SUFFIXES), "")
