"""Which encoding a text has: by its mark, by its zeros, or by what would not be UTF-8."""

import codecs

from etl.errors import ManifestError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""UTF-32 before UTF-16, of whose mark its own begins with."""

_UTF16_ZEROS = 0.4
"""Share of the bytes of a Western text in UTF-16 that are zero; nearly half are, and all at even or at odd places."""


_UNDEFINED = b"\x81\x8d\x8f\x90\x9d"
"""Bytes that Windows-1252 does not have, Shift-JIS and others do."""

_STRAY = 0.02
"""Share of them, of what is not ASCII, that a text in Windows-1252 may have."""


def encoding_of(data: bytes, name: str) -> str:
    """Return the encoding of a text by a piece of it, for which its beginning should be taken where that tells.

    Nothing in a file proves Windows-1252.  Raises `ManifestError` where many bytes are not of that either.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    if data.count(0) > _UTF16_ZEROS * len(data):
        even, odd = data[::2].count(0), data[1::2].count(0)
        if min(even, odd) * 50 < max(even, odd):
            return "utf-16-be" if even > odd else "utf-16-le"
    if _is_utf8(data):
        return "utf-8-sig"
    if _STRAY * len(data.translate(None, bytes(range(128)))) < len(data) - len(data.translate(None, _UNDEFINED)):
        raise ManifestError(
            f"{name} is neither UTF-8 nor Windows-1252; name its encoding, such as --encoding cp932 (Japanese), "
            "gb18030 (Chinese), big5, euc-kr, cp1251 or cp850"
        )
    return "cp1252"


def _is_utf8(data: bytes) -> bool:
    """Return whether no more letters are wrong in UTF-8 than right; a single row may well be of another encoding."""
    # What ends within a letter is not wrong for that.
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(data)
    others = [char for char in text if char > "\x7f"]
    return 2 * sum("\udc80" <= char <= "\udcff" for char in others) <= len(others) or b"\0" in data
