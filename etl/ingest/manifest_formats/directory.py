"""A directory of pictures: each file whose name ends as a picture's does becomes a record."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from etl.errors import ManifestError
from etl.images.formats import format_of, suffixes
from etl.ingest.manifest_formats.file import BadRow, ManifestFile, json_line
from etl.text import clean

_NOT_THE_USERS = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
"""Names, in lower case, that systems give to what they keep beside people's files."""

_OURS = frozenset({"state.db", ".shards.json"})
"""What a directory holds that is a state, or an export with its pictures."""

SIDECARS = ("txt", "caption", "json")
"""Suffixes of files beside a picture, as WebDataset and trainers name them, that are fields of its record."""

MAX_SIDECAR = 1 << 20
"""Bytes of one."""

_SUFFIX, _NAME = 12, 100
"""Characters of a suffix and of a name that are told."""


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Yield a line for each picture in the directory and those below it, sorted by path.

    Files that are hidden, and ones of other kinds, are passed over and counted.  States and exports that lie below the
    directory are none of its pictures.
    """
    assert file.path is not None
    file.skipped.clear()
    ours = tuple(f".{kind}" for kind in file.sidecars)
    for picture in _files(file.path, file.skipped):
        inner = picture.relative_to(file.path).as_posix()
        kind = skipped_as(inner)
        if kind is None:
            beside = (picture.with_suffix(suffix) for suffix in ours)
            yield line_of(inner, {one.suffix[1:]: _read(one, file.path) for one in beside if one.is_file()})
        elif not inner.lower().endswith(ours or ("/",)):
            file.skipped[kind] += 1


def is_picture_itself(file: ManifestFile) -> bool:
    """Return whether a file is a picture, by its name and its first bytes."""
    return skipped_as(file.name) is None and format_of(file.head) is not None


def picture(file: ManifestFile) -> Iterator[bytes]:
    """Yield the line of a picture that is given itself."""
    yield line_of(file.name, {})


def line_of(inner: str, sidecars: Mapping[str, Any]) -> bytes:
    """Return the line of a picture, by its path within what holds it, with its sidecars as fields.

    One of them that is a `ManifestError` makes it a bad row, and so does a name that is not UTF-8.
    """
    name = inner.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if name != inner:
        return BadRow.of(dict(_record_of(inner)), f"a name that is not UTF-8: {clean(name, _NAME)}; rename the file")
    for value in sidecars.values():
        if isinstance(value, ManifestError):
            return BadRow.of(dict(_record_of(inner)), str(value))
    return json_line(_record_of(inner) | dict(sorted(sidecars.items())))


def sidecar_of(name: str, data: bytes) -> Any:
    """Return what a sidecar says, or the `ManifestError` of one that makes no sense."""
    if len(data) > MAX_SIDECAR:
        return ManifestError(f"{name} has more than {MAX_SIDECAR} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    if not name.lower().endswith(".json"):
        return text.strip()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return ManifestError(f"{name} is not JSON: {error}")


def _read(path: Path, top: Path) -> Any:
    """Return what a sidecar says; a link that leads out of the directory is not followed."""
    if not path.resolve().is_relative_to(top.resolve()):
        return ManifestError(f"{path.name} is a link out of the directory")
    try:
        with path.open("rb") as file:
            return sidecar_of(path.name, file.read(MAX_SIDECAR + 1))
    except OSError as error:
        return ManifestError(f"{path.name} cannot be read: {error.strerror}")


def _record_of(inner: str) -> dict[str, str]:
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
