"""A folder of an object store: each object whose name ends as a picture's does becomes a record."""

from collections.abc import Iterator

from etl.errors import FetchError, ManifestError
from etl.ingest.manifest_formats.directory import skipped_as
from etl.ingest.manifest_formats.file import ManifestFile, json_line
from etl.net.folders import page_of, url_of
from etl.text import clean

MAX_PAGE = 32 * 1024**2
"""Bytes of a page, which holds a thousand names."""


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Yield a line for each picture in the folder and those below it, in the store's order; others are counted.

    A page is asked for when the one before it has been read.
    """
    assert file.read_page is not None
    file.skipped.clear()
    after, seen = "", set[str]()
    while True:
        try:
            page = page_of(file.folder, *file.read_page(file.folder, after, MAX_PAGE))
        except FetchError as error:
            raise ManifestError(f"the folder cannot be listed: {clean(str(error), 500)}") from error
        if page.after in seen:
            raise ManifestError(
                f"the store gives the same pages of {clean(file.folder, 200)} again and again"
            ).with_cure("that is a fault of the store: give a list of the pictures' URLs instead")
        for name, size in page.entries:
            kind = skipped_as(name)
            if kind is None:
                yield json_line({"id": name, "url": url_of(file.folder, name), "size_bytes": size})
            elif not name.endswith("/"):
                file.skipped[kind] += 1
        if not (after := page.after):
            return
        seen.add(after)
