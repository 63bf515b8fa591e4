"""A text with the URL or path of a picture on each line; blank lines and those that begin with # are passed over."""

from collections.abc import Iterator

from etl.errors import ManifestError
from etl.ingest.fields import is_picture
from etl.ingest.manifest_formats.file import MAX_LINE, ManifestFile, json_line

_SUFFIXES = (".txt", ".text", ".lst", ".list", ".urls")


def recognises(file: ManifestFile) -> bool:
    """Return whether it is one, by its name or by its first line."""
    lines = (line.strip() for line in file.head_text.splitlines())
    first = next((line for line in lines if line and not line.startswith("#")), "")
    return bool(first) and (file.suffix in _SUFFIXES or is_picture(first))


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Yield a line for each; blank ones for what is passed over, so that lines keep their numbers."""
    number = 0
    with file.text() as text:
        while line := text.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise ManifestError(f"{file.name}, line {number}: longer than {MAX_LINE} characters; is this a list?")
            url = line.strip().strip("\ufeff")
            yield b"\n" if not url or url.startswith("#") else json_line({"url": url})
