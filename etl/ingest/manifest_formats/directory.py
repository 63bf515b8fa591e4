"""A directory of pictures: each file whose name ends as a picture's does becomes a record."""

import json
from collections.abc import Iterator
from pathlib import Path

from etl.images.formats import suffixes
from etl.ingest.manifest_formats.file import ManifestFile
from etl.text import clean

_NOT_THE_USERS = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
"""Names, in lower case, that systems give to what they keep beside people's files."""

_SUFFIX = 12
"""Characters of a suffix that are told."""


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Yield a line for each picture in the directory and those below it, sorted by path.

    Files that are hidden, and ones of other kinds, are passed over and counted.
    """
    assert file.path is not None
    file.skipped.clear()
    for picture in sorted(file.path.rglob("*")):
        if not picture.is_file():
            continue
        inner = picture.relative_to(file.path)
        if (kind := _skipped_as(inner)) is not None:
            file.skipped[kind] += 1
            continue
        relative = inner.as_posix()
        # A colon could make it a URL, a backslash another machine's, and white space at its ends is taken off.
        plain = ":" not in relative and "\\" not in relative and relative == relative.strip()
        path = relative if plain else f"./{relative}"
        line = json.dumps({"id": relative, "path": path}, ensure_ascii=False) + "\n"
        yield line.encode("utf-8", "surrogateescape")


def _skipped_as(inner: Path) -> str | None:
    """Return as what a file is passed over, in a word; ``None`` for a picture."""
    if any(part.startswith(".") or part.lower() in _NOT_THE_USERS for part in inner.parts):
        return "hidden"
    suffix = inner.suffix.lower()
    return None if suffix in suffixes() else clean(suffix, _SUFFIX) or "without a suffix"
