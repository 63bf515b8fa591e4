"""A text with the URL or path of a picture on each line, maybe with words behind it."""

import re
from collections.abc import Iterator
from itertools import islice

from etl.errors import ManifestError
from etl.images.formats import suffixes
from etl.ingest.fields import is_picture, split
from etl.ingest.manifest_formats.file import MAX_LINE, BadRow, ManifestFile, json_line

_SUFFIXES = (".txt", ".text", ".lst", ".list", ".urls")
_BEFORE = re.compile(r"[0-9a-f]{32,128} [ *]|(?:[-*+•]|\d+[.)])\s+(?=\S*://)")
"""What md5sum and its kin write before a name, and lists before an address."""

_WORDS = re.compile(rf"(\S+(?:{'|'.join(map(re.escape, suffixes()))}))(?:[ \t]+|[,;|](?=.*\s))(.+)", re.IGNORECASE)
_LONG = 2048
"""Characters from which on a line is no address with words behind it."""


def recognises(file: ManifestFile) -> bool:
    """Return whether it is one, by its first line, or by its name and any line."""
    records = filter(None, map(_record, file.head_text.splitlines()))
    named = file.suffix in _SUFFIXES
    return any(is_picture(one) for record in (records if named else islice(records, 1)) for one in split(record["url"]))


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Yield a line for each; blank ones for what is passed over, so that lines keep their numbers."""
    number = 0
    with file.text() as text:
        while line := text.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise ManifestError(f"{file.name}, line {number}: longer than {MAX_LINE} characters; is this a list?")
            record = _record(line)
            if record and not any(map(is_picture, split(record["url"]))):
                yield BadRow.of(record, "neither the address of a picture nor a name that ends as one")
            else:
                yield json_line(record) if record else b"\n"


def _record(line: str) -> dict[str, str]:
    """Return what a line says; nothing for blank ones and those that begin with #."""
    line = line.strip().strip("\ufeff")
    if not line or line.startswith(("#", "// ")):
        return {}
    if found := _BEFORE.match(line):
        line = line[found.end() :]
    words = _WORDS.fullmatch(line) if len(line) < _LONG else None
    if words and not is_picture(words[2]) and "://" not in words[2]:
        return {"url": words[1], "text": words[2]}
    return {"url": line.rstrip(",;") if "://" in line else line}
