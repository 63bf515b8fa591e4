"""A directory of pictures: each file whose name ends as a picture's does becomes a record."""

import json
from collections.abc import Iterator

from etl.images.formats import suffixes
from etl.ingest.manifest_formats.file import ManifestFile


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Yield a line for each picture in the directory and those below it, sorted by path."""
    assert file.path is not None
    for picture in sorted(file.path.rglob("*")):
        if picture.suffix.lower() in suffixes() and picture.is_file():
            relative = picture.relative_to(file.path).as_posix()
            # A colon could make it a URL, a backslash another machine's, and white space at its ends is taken off.
            plain = ":" not in relative and "\\" not in relative and relative == relative.strip()
            path = relative if plain else f"./{relative}"
            line = json.dumps({"id": relative, "path": path}, ensure_ascii=False) + "\n"
            yield line.encode("utf-8", "surrogateescape")
