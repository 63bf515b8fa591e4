"""The formats of manifests: each becomes a stream of JSON lines.

A new one is a module with a reader, and its line in the table here.
"""

from collections.abc import Callable, Iterator

from etl.ingest.manifest_formats import csv_rows, directory, jsonl, parquet
from etl.ingest.manifest_formats.file import ManifestFile

Recogniser = Callable[[ManifestFile], bool]
Lines = Callable[[ManifestFile], Iterator[bytes]]
"""Yields one line of JSON for each record, its line end included; blank lines may be among them.

Raises `etl.errors.ManifestError` where the manifest cannot be read to its end.
"""


def has_suffix(*suffixes: str) -> Recogniser:
    """Return what recognises the files of a format by their names, before which that of a compression is taken off."""
    return lambda file: file.suffix in suffixes


READERS: tuple[tuple[Recogniser, Lines], ...] = (
    (ManifestFile.is_directory, directory.lines),
    (has_suffix(".parquet"), parquet.lines),
    (has_suffix(".csv"), csv_rows.lines),
    (lambda _: True, jsonl.lines),
)
"""The first that recognises a manifest reads it."""


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Return a manifest's lines, read in the format that it has."""
    return next(reader for recognises, reader in READERS if recognises(file))(file)
