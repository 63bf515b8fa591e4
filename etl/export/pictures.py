"""The pictures of exports that hold some: their names, and where the bytes of working copies and originals lie."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from etl.data_urls import data_of, is_data
from etl.errors import ConfigError, InvalidUrlError, NotPlainError
from etl.export.names import Names, picture_name, stem_of
from etl.files import plain_size
from etl.images.cache import MAX_WORKING_BYTES, ImageCache, read_working
from etl.net.urls import is_local, local_path
from etl.state.read.export_rows import ExportRow

_JPEG = "image/jpeg"
_OPENED_ANYWHERE = {
    _JPEG: (".jpg", ".jpeg", ".jpe", ".jfif"),
    "image/png": (".png", ".apng"),
    "image/tiff": (".tif", ".tiff"),
    "image/webp": (".webp",),
    "image/gif": (".gif",),
    "image/bmp": (".bmp",),
    "image/jp2": (".jp2", ".j2k", ".j2c", ".jpf", ".jpx"),
    "image/x-portable-anymap": (".pnm", ".pbm", ".pgm", ".ppm"),
}
"""The types that the readers of such exports open, with the suffixes of their names."""

_LONGEST = 240
"""Bytes of a name before its suffix, which may be a long one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The picture of an exported record.

    Attributes:
        name, suffix: of its file; no other one has the same name, and the suffix says what its bytes are.
        row: the record.
        path: where its bytes lie; ``None`` for an original that lies in its record.
        sha256: their hash.
    """

    name: str
    suffix: str
    row: ExportRow
    path: Path | None
    sha256: str

    @property
    def is_original(self) -> bool:
        """Whether it is what the source gave."""
        return self.sha256 == self.row.image_sha256

    def read(self) -> bytes:
        """Return its bytes; raise `ConfigError` where they are not there although the state says so."""
        try:
            if self.path is None:
                return data_of(self.row.url or "", self.row.line)
            return read_working(self.path, self.sha256)
        except (OSError, ValueError, InvalidUrlError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"{self.path or self.row.key} cannot be read ({why}); run `etl verify`, then `etl fetch`"
            ) from error


def picture_of(row: ExportRow, cache: ImageCache, names: Names, *, originals: bool, dots: bool) -> Picture:
    """Return the picture of a record whose working copy is in the cache.

    Where ``originals`` are wanted, one that is not there, or that few programs open, is replaced by its working copy.
    Without ``dots`` names have none, for readers that take the first for the beginning of the suffix.
    """
    assert row.working_sha256 is not None
    name = picture_name(row.url or "")
    stem = stem_of(row, name)
    sha256, mime, path = row.working_sha256, _JPEG, cast(Path | None, cache.working_path(row.working_sha256))
    if originals and row.image_sha256 and row.mime in _OPENED_ANYWHERE:
        in_record = is_data(row.url or "")
        found = None if in_record else _original(row, row.image_sha256, cache)
        if found or in_record:
            sha256, mime, path = row.image_sha256, row.mime, found
    given, suffixes = os.path.splitext(name)[1], _OPENED_ANYWHERE[mime]  # noqa: PTH122 - as the stem
    return Picture(
        name=names.of(stem if dots else stem.replace(".", "_"), row.key, longest=_LONGEST),
        suffix=given if given.lower() in suffixes else suffixes[0],
        row=row,
        path=path,
        sha256=sha256,
    )


def _original(row: ExportRow, sha256: str, cache: ImageCache) -> Path | None:
    """Return where the original lies, by its size: in the cache, or where the source says; ``None`` for nowhere."""
    with suppress(OSError, ValueError, RuntimeError, NotPlainError, InvalidUrlError):
        for place in (cache.original_path(sha256), *_on_this_machine(row.url or "")):
            if plain_size(place) == row.image_bytes <= MAX_WORKING_BYTES:
                return place
    return None


def _on_this_machine(url: str) -> Iterator[Path]:
    if is_local(url):
        yield local_path(url).resolve()
