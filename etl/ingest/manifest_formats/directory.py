"""A directory of pictures: each file whose name ends as a picture's does becomes a record."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from etl.images.formats import suffixes
from etl.ingest.manifest_formats.file import ManifestFile, json_line
from etl.text import clean

_NOT_THE_USERS = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
"""Names, in lower case, that systems give to what they keep beside people's files."""

_OURS = frozenset({"state.db", ".shards.json"})
"""What a directory holds that is a state, or an export with its pictures."""

_SUFFIX = 12
"""Characters of a suffix that are told."""


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Yield a line for each picture in the directory and those below it, sorted by path.

    Files that are hidden, and ones of other kinds, are passed over and counted.  States and exports that lie below the
    directory are none of its pictures.
    """
    assert file.path is not None
    file.skipped.clear()
    for picture in _files(file.path, file.skipped):
        inner = picture.relative_to(file.path).as_posix()
        if (kind := skipped_as(inner)) is not None:
            file.skipped[kind] += 1
        else:
            yield json_line(record_of(inner))


def record_of(inner: str) -> dict[str, str]:
    """Return the record of a picture, by its path within what holds it."""
    # A colon could make it a URL, a backslash another machine's, and white space at its ends is taken off.
    plain = ":" not in inner and "\\" not in inner and inner == inner.strip()
    return {"id": inner, "path": inner if plain else f"./{inner}"}


def skipped_as(inner: str) -> str | None:
    """Return as what a file is passed over, in a word; ``None`` for a picture."""
    path = PurePosixPath(inner)
    if any(part.startswith(".") or part.lower() in _NOT_THE_USERS for part in path.parts):
        return "hidden"
    suffix = path.suffix.lower()
    return None if suffix in suffixes() else clean(suffix, _SUFFIX) or "without a suffix"


def _files(top: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Yield the files below a directory, sorted by their parts; no more is held than the directories on the way."""
    stack = [iter(_entries(top, skipped))]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif entry.is_dir(follow_symlinks=False):
            inner = _entries(Path(entry.path), skipped)
            stack.append(iter(() if any(one.name in _OURS for one in inner) else inner))
        elif entry.is_file():
            yield Path(entry.path)


def _entries(directory: Path, skipped: Counter[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        skipped["unreadable directory"] += 1
        return []
