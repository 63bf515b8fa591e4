"""Exports of a file for each record, named as its picture, into a directory that belongs to the user.

Nothing but these files is written or removed there, so each appears whole by itself: an export that was killed goes on
when it is done again, and one done again with the same captions writes nothing.
"""

import hashlib
import os
import stat
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from etl import files
from etl.domain.statuses import RecordOutcome
from etl.domain.views import ExportSummary
from etl.errors import NotPlainError
from etl.export.format import SidecarFormat
from etl.export.lines import ExportOptions, Selected, check_counts, is_new, joined, summary_of
from etl.export.names import Names, picture_name, stem_of
from etl.export.shards import WHEN_FULL, only_writer
from etl.export.written import Written, Wrote
from etl.files import sync_chosen
from etl.net.urls import is_local, local_path
from etl.output_file import claimed, put, resolved, write_errors
from etl.state.read.export_rows import ExportRow
from etl.state.read.reader import Reader

_HEAD = 1 << 16
"""Bytes of a file by which it is known whose it is."""

_PART = "caption.txt"
"""What parts of these files are named by."""


def export_sidecars(
    reader: Reader, target: str, kind: SidecarFormat, options: ExportOptions
) -> tuple[ExportSummary, int | None]:
    """Write the files that are missing or have changed; return what the export holds and the recipe's row.

    Raises as `etl.export.stage.export`, but the files that were written by then stay.
    """
    directory = resolved(target)
    every, chosen, folders = Counter[str](), Counter[str](), set[Path]()
    written, foreign, size, digest = 0, 0, 0, hashlib.sha256()
    with reader.snapshot():
        selected = Selected.of(reader, options)
        places, written_before = _Places(directory, reader.state), Written(reader)
        # A record's name depends on those before it: on all of them, so that it stays whatever is chosen or done yet.
        everything = replace(selected, options=replace(options, only_captioned=False), since=0)
        with write_errors(str(directory), WHEN_FULL), only_writer(directory):
            for record in joined(reader, everything, every):
                path, beside = places.of(record.row, kind.shard_suffix)
                if selected.since and not is_new(record.row, selected.since):
                    continue
                chosen[record.outcome] += 1
                if record.outcome != RecordOutcome.CAPTIONED:
                    continue
                chosen["rows"] += 1
                content = kind.content(record)
                with write_errors(str(path), WHEN_FULL):
                    if path.parent not in folders:
                        folders.add(path.parent)
                        # Removes what dead exports left of their parts.
                        with claimed(path.parent, _PART, path.parent):
                            pass
                    wrote = partial(written_before.holds, record=record, beside=beside)
                    found = _write(path, content, replace(kind, keep_existing=True) if record.is_given else kind, wrote)
                    written += found is True
                    foreign += found is None
                size += len(content)
                digest.update(f"{path.relative_to(directory)}\0".encode("utf-8", "surrogateescape") + content)
            for folder in folders:
                sync_chosen(folder)
        check_counts(reader, everything, every)
    counts = chosen if selected.since else every
    counts["rows"] = chosen["rows"]
    summary = summary_of(
        str(directory), counts, size=size, sha256=digest.hexdigest(), files=True, written=written,
        foreign=foreign, format=f"{selected.format_of(kind.name)} {kind.variant.decode()}".strip(),
    )  # fmt: skip
    return summary, selected.recipe.id if selected.recipe else None


class _Places:
    """Says where the file of each record lies: beside its picture where that is below the directory."""

    def __init__(self, directory: Path, state: Path) -> None:
        self._directory = directory
        self._state = state.resolve()
        self._names = Names()
        self._folder = cache(self._folder_of)

    def of(self, row: ExportRow, suffix: str) -> tuple[Path, bool]:
        """Return the file's path, named as the picture or told apart where that is taken, and whether it is beside."""
        name, folder = picture_name(row.url or ""), None
        if name and row.url and is_local(row.url):
            folder = self._folder(local_path(row.url).parent)
        beside = folder is not None
        stem = stem_of(row, name, everywhere=not beside)
        folder = folder or self._directory
        return folder / f"{self._names.of(stem, row.key, str(folder), exact=beside)}{suffix}", beside

    def _folder_of(self, parent: Path) -> Path | None:
        """Return the real folder of pictures, ``None`` for one that is not below the directory, or is a state's."""
        try:
            folder = parent.resolve()
            inside = folder.is_relative_to(self._directory) and not folder.is_relative_to(self._state)
            return folder if inside and folder.is_dir() else None
        except (OSError, RuntimeError, ValueError):
            return None


def _write(path: Path, content: bytes, kind: SidecarFormat, wrote: Wrote) -> bool | None:
    """Return whether the file had to be written; ``None`` where one is there that is not our own, which is left.

    A link under its name is no file, and gives way to one.
    """
    mode = None
    if kind.keep_existing and files.look_at(path) is not None:
        return False
    try:
        with files.reading(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            found = file.read(max(len(content) + 1, _HEAD))
        if found == content:
            return False
        if not kind.is_own(found, wrote):
            return None
    except (FileNotFoundError, NotPlainError):
        pass
    put(path, content, _PART, mode)
    return True
