"""JSON Lines, which come out byte for byte."""

from collections.abc import Iterator

from etl.errors import ManifestError
from etl.ingest.manifest_formats.file import MAX_LINE, ManifestFile

_UTF8 = ("utf-8", "utf-8-sig", "cp1252")
"""Encodings in which the bytes are left as they are, unless the user names one: JSON is UTF-8."""


def recognises(file: ManifestFile) -> bool:
    """Return whether a manifest begins with an object, or is named so and has one."""
    text = file.head_text.lstrip()
    return text.startswith("{") or (file.suffix in (".jsonl", ".ndjson") and ("\n{" in text or text.startswith("[")))


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Yield every line, blank ones included; only commas behind the objects are taken off."""
    for number, line in enumerate(_lines(file), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        # As GeoJSON and others part texts (RFC 7464).
        line = line.removeprefix(b"\x1e")
        if len(line) > MAX_LINE:
            raise ManifestError(f"{file.name}, line {number}: longer than {MAX_LINE} bytes; is this JSON Lines?")
        if b"}," in line[-4:] and line.rstrip().endswith(b"},"):
            line = line.rstrip()[:-1] + b"\n"
        yield line


def _lines(file: ManifestFile) -> Iterator[bytes]:
    if file.encoding is None and file.text_encoding in _UTF8:
        with file.open() as stream:
            while line := stream.readline(MAX_LINE + 1):
                yield line
        return
    with file.text() as text:
        while decoded := text.readline(MAX_LINE + 1):
            yield decoded.encode("utf-8", "surrogateescape")
