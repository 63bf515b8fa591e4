"""What holds a manifest but is none, or is none at all: told with what to do."""

import re
import shlex
from collections.abc import Iterator

from etl.errors import ManifestError
from etl.ingest.manifest_formats.file import ManifestFile
from etl.text import clean

_AS_CSV = "save it as CSV (UTF-8)"
_AS_RECORDS = "write its records as JSON Lines, CSV or Parquet"
_UNPACK = "unpack it, or pack it as ZIP, tar, .gz, .bz2, .xz or .zst"

_MAGICS = (
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", _AS_CSV),
    (b"SQLite format 3\0", "an SQLite database", "export its table as CSV"),
    (b"\0\1\0\0Standard ", "an Access database", "export its table as CSV (UTF-8)"),
    (b"\x89HDF\r\n", "an HDF5 file", _AS_RECORDS),
    (b"\x93NUMPY", "a NumPy file", _AS_RECORDS),
    (b"ARROW1", "an Arrow file", _AS_RECORDS),
    (b"FEA1", "a Feather file", _AS_RECORDS),
    (b"Obj\1", "an Avro file", _AS_RECORDS),
    (b"ORC", "an ORC file", _AS_RECORDS),
    (b"\x80\4\x95", "a pickle of Python's", _AS_RECORDS),
    (b"bplist00", "a property list", _AS_RECORDS),
    (b"7z\xbc\xaf\x27\x1c", "packed by 7-Zip", _UNPACK),
    (b"Rar!\x1a\7", "packed by RAR", _UNPACK),
    (b"\x04\x22\x4d\x18", "packed by LZ4", _UNPACK),
    (b"\x5d\0\0", "packed by LZMA", _UNPACK),
    (b"\x1f\x9d", "packed by compress", _UNPACK),
)  # fmt: skip

_GREP = "write the addresses of its pictures one on each line: grep -oE 'https?://[^\"<> ]+\\.(jpe?g|png|tiff?)' {name}"

_TEXTS = (
    (r"<(?:\?xml|!doctype|!--|[a-z][\w:.-]*(?:[\s>]|/>))", "XML or HTML", _GREP),
    (r"/\*|\)\]\}'|//[^\n]*\n\s*[\[{]|[\w.$ ]+=\s*[\[{]|[\w.$]+\(\s*[\[{]", "JavaScript",
     "take off what stands before the first [ or { and behind the last"),
    (r"(?!(?s:.*)\n\s*\{\")\[?\s*\{\s*(?:'|[a-z_$][\w$]*\s*:)|\[\s*'", "written as Python and JavaScript do, not JSON",
     "names and texts need double quotes (Python: json.dumps)"),
    (r"\[+[a-z][^\]\n\"]*\]+\s*\n[^\n]*=", "TOML or INI", _AS_RECORDS),
)  # fmt: skip

_CONTROLS = bytes({*range(32), 127} - {*b"\t\n\r\f\1\2\x14\x1e\x1f"})
"""Bytes that texts do not have; the last of those left out stand between fields somewhere."""


def recognises(file: ManifestFile) -> bool:
    """Return whether it is one of these, by its first bytes."""
    return bool(_kind(file)[0])


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Raise `ManifestError` with what to do."""
    kind, cure = _kind(file)
    raise ManifestError(f"{file.name} is {kind}; {_for(file, cure)}")


def is_text_of_another_kind(file: ManifestFile) -> bool:
    """Return whether a file that no format recognises has no object of JSON on any line, and is not empty."""
    lines = file.head_text.strip().splitlines()
    return bool(lines) and not any(line.lstrip().startswith("{") for line in lines)


def refused(file: ManifestFile) -> Iterator[bytes]:
    """Raise `ManifestError` for such a file."""
    raise ManifestError(
        f"{file.name} is no list that is known: neither JSON nor CSV, and no line is a picture's address or name"
    ).with_cure(_for(file, f"write its records as JSON Lines or CSV, or {_GREP}"))


def _for(file: ManifestFile, cure: str) -> str:
    return cure.replace("{name}", shlex.quote(clean(file.name, 80)))


def _kind(file: ManifestFile) -> tuple[str, str]:
    head = file.head
    for magic, kind, cure in _MAGICS:
        if head.startswith(magic):
            return kind, cure
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if 20 * controls > len(head) and file.encoding is None and not file.text_encoding.startswith(("utf-16", "utf-32")):
        return "a binary file, no list", _AS_RECORDS
    start = file.head_text[:1000].lstrip()
    return next((one[1:] for one in _TEXTS if re.match(one[0], start, re.IGNORECASE)), ("", ""))
