"""Exports of a file for each record, named as its picture, into a directory that belongs to the user.

Nothing but these files is written or removed there, so each appears whole by itself: an export that was killed goes on
when it is done again, and one done again with the same captions writes nothing.
"""

import hashlib
import os
import re
import stat
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from etl import files
from etl.domain.statuses import RecordOutcome
from etl.domain.views import ExportSummary
from etl.errors import InvalidUrlError, NotPlainError
from etl.export.columns import safe_name
from etl.export.format import SidecarFormat
from etl.export.lines import ExportOptions, Selected, check_counts, is_new, joined, summary_of
from etl.export.shards import WHEN_FULL, only_writer
from etl.files import sync_chosen
from etl.net.urls import is_local, local_path
from etl.output_file import claimed, put, resolved, write_errors
from etl.state.read.export_rows import ExportRow
from etl.state.read.reader import Reader

LONGEST = 251
"""Bytes of a name before its suffix: file systems take 255."""

_PART = "caption.txt"
"""What parts of these files are named by."""

_IN_NO_NAME = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069/\\\\]")
"""Control characters, those that turn the direction of text, and the separators of any system."""


def export_sidecars(
    reader: Reader, target: str, kind: SidecarFormat, options: ExportOptions
) -> tuple[ExportSummary, int | None]:
    """Write the files that are missing or have changed; return what the export holds and the recipe's row.

    Raises as `etl.export.stage.export`, but the files that were written by then stay.
    """
    directory = resolved(target)
    every, chosen, folders = Counter[str](), Counter[str](), set[Path]()
    written, size, digest = 0, 0, hashlib.sha256()
    with reader.snapshot():
        selected = Selected.of(reader, options)
        names = Names(directory, reader.state)
        # A record's name depends on those before it: on all of them, so that it stays whatever is chosen or done yet.
        everything = replace(selected, options=replace(options, only_captioned=False), since=0)
        with write_errors(str(directory), WHEN_FULL), only_writer(directory):
            for record in joined(reader, everything, every):
                path = names.of(record.row, kind.shard_suffix)
                if selected.since and not is_new(record.row, selected.since):
                    continue
                chosen[record.outcome] += 1
                if record.outcome != RecordOutcome.CAPTIONED:
                    continue
                chosen["rows"] += 1
                content = kind.content(record.row.text or "")
                with write_errors(str(path), WHEN_FULL):
                    if path.parent not in folders:
                        folders.add(path.parent)
                        # Removes what dead exports left of their parts.
                        with claimed(path.parent, _PART, path.parent):
                            pass
                    written += _write(path, content, keep=kind.keep_existing)
                size += len(content)
                digest.update(f"{path.relative_to(directory)}\0".encode("utf-8", "surrogateescape") + content)
            for folder in folders:
                sync_chosen(folder)
        check_counts(reader, everything, every)
    counts = chosen if selected.since else every
    counts["rows"] = chosen["rows"]
    summary = summary_of(
        str(directory), counts, size=size, sha256=digest.hexdigest(), format=selected.format_of(kind.name), files=True,
        written=written,
    )  # fmt: skip
    return summary, selected.recipe.id if selected.recipe else None


class Names:
    """Gives each record of a state the name of its file: that of its picture, or made from it where that is taken."""

    def __init__(self, directory: Path, state: Path) -> None:
        self._directory = directory
        self._state = state.resolve()
        self._taken = set[int]()
        self._folder = cache(self._folder_of)

    def of(self, row: ExportRow, suffix: str) -> Path:
        """Return where the record's file lies: beside its picture where that is below the directory."""
        folder, name = None, ""
        if row.url and is_local(row.url):
            try:
                picture = local_path(row.url)
                folder, name = self._folder(picture.parent), picture.name
            except InvalidUrlError:
                pass
        elif row.url:
            name = _last_part(row.url)
        beside = folder is not None
        folder = folder or self._directory
        stem = plain(os.path.splitext(name)[0]) or safe_name(row.key)  # noqa: PTH122 - as the readers of such files do
        found, more = _cut(stem, ""), 0
        while not self._take(folder / (found if beside else found.casefold())):
            more += 1
            found = _cut(stem, f"-{hashlib.sha256(f'{more} {row.key}'.encode()).hexdigest()[:8]}")
        return folder / f"{found}{suffix}"

    def _folder_of(self, parent: Path) -> Path | None:
        """Return the real folder of pictures, ``None`` for one that is not below the directory, or is a state's."""
        try:
            folder = parent.resolve()
            inside = folder.is_relative_to(self._directory) and not folder.is_relative_to(self._state)
            return folder if inside and folder.is_dir() else None
        except (OSError, RuntimeError, ValueError):
            return None

    def _take(self, path: Path) -> bool:
        """Return whether the name was free.  Of each a short hash is kept: one taken by mistake is only longer."""
        short = hashlib.blake2b(os.fsencode(path), digest_size=8)
        number = int.from_bytes(short.digest())
        if number in self._taken:
            return False
        self._taken.add(number)
        return True


def plain(name: str) -> str:
    """Return a name that leaves no directory, is not hidden and acts on no terminal; empty where nothing is left."""
    if not name.strip(". "):
        return ""
    hidden = len(name) - len(name.lstrip("."))
    return "_" * hidden + _IN_NO_NAME.sub("_", name[hidden:])


def _last_part(url: str) -> str:
    try:
        return unquote(urlsplit(url).path.rpartition("/")[2])
    except ValueError:
        return ""


def _cut(stem: str, tail: str) -> str:
    """Return the name with its tail, at most `LONGEST` bytes of it."""
    return stem.encode("utf-8", "replace")[: LONGEST - len(tail)].decode("utf-8", "ignore") + tail


def _write(path: Path, content: bytes, *, keep: bool) -> bool:
    """Return whether the file had to be written; a link under its name is no file, and gives way to one."""
    mode = None
    if keep and files.look_at(path) is not None:
        return False
    try:
        with files.reading(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if file.read(len(content) + 1) == content:
                return False
    except (FileNotFoundError, NotPlainError):
        pass
    put(path, content, _PART, mode)
    return True
