"""The formats of manifests: each becomes a stream of JSON lines.

A new one is a module with a reader, and its line in the table here.
"""

from collections.abc import Callable, Iterator

from etl.ingest.manifest_formats import (
    archive,
    csv_rows,
    directory,
    iiif,
    json_documents,
    jsonl,
    packed,
    parquet,
    store_folder,
    url_list,
)
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
    (directory.is_picture_itself, directory.picture),
    (parquet.recognises, parquet.lines),
    (packed.recognises, packed.lines),
    (iiif.recognises, iiif.lines),
    (json_documents.recognises, json_documents.lines),
    (jsonl.recognises, jsonl.lines),
    (csv_rows.recognises, csv_rows.lines),
    (url_list.recognises, url_list.lines),
    (packed.is_text_of_another_kind, packed.refused),
    (lambda _: True, jsonl.lines),
)
"""The first that recognises a manifest reads it: by what it holds, and by its name where that does not tell."""


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Return a manifest's lines, read in the format that it has."""
    if file.folder:
        return store_folder.lines(file)
    return archive.lines(file, _lines) if archive.recognises(file) else _lines(file)


def _lines(file: ManifestFile) -> Iterator[bytes]:
    yield from next(reader for recognises, reader in READERS if recognises(file))(file)
