"""What holds a manifest but is none: told with what to do."""

from collections.abc import Iterator

from etl.errors import ManifestError
from etl.ingest.manifest_formats.file import ManifestFile

_KINDS = (
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook; save it as CSV (UTF-8)"),
    (b"SQLite format 3\0", "an SQLite database; export its table as CSV"),
)


def recognises(file: ManifestFile) -> bool:
    """Return whether it is one of these, by its first bytes."""
    return _kind(file) is not None


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Raise `ManifestError` with what to do."""
    raise ManifestError(f"{file.name} is {_kind(file)}")


def _kind(file: ManifestFile) -> str | None:
    return next((kind for magic, kind in _KINDS if file.head.startswith(magic)), None)
