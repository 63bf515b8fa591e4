"""What holds a manifest but is none: told with what to do."""

from collections.abc import Iterator

from etl.errors import ManifestError
from etl.ingest.manifest_formats.file import ManifestFile

_KINDS = (
    (0, b"PK\x03\x04", "a ZIP archive; unpack it, and give the manifest or the directory in it"),
    (0, b"\xd0\xcf\x11\xe0", "an old Excel workbook; save it as CSV (UTF-8)"),
    (0, b"SQLite format 3\0", "an SQLite database; export its table as CSV"),
    (257, b"ustar", "a tar archive; unpack it, and give the manifest or the directory in it"),
)
_WORKBOOKS = {".xlsx": "an Excel workbook; save it as CSV (UTF-8)", ".ods": "a spreadsheet; save it as CSV (UTF-8)"}


def recognises(file: ManifestFile) -> bool:
    """Return whether it is one of these, by its first bytes."""
    return _kind(file) is not None


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Raise `ManifestError` with what to do."""
    raise ManifestError(f"{file.name} is {_WORKBOOKS.get(file.suffix) or _kind(file)}")


def _kind(file: ManifestFile) -> str | None:
    return next((kind for at, magic, kind in _KINDS if file.head[at : at + len(magic)] == magic), None)
