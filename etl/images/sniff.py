"""What the first bytes of a file say it is that is no accepted picture, whatever its name or its server claims."""

import re

HEAD_BYTES = 1024
"""Bytes to look at; a PDF may have its marker anywhere in them."""

_OTHERS = (
    (b"8BPS", "a Photoshop document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"%!PS", "PostScript"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"AT&TFORM", "DjVu"),
)
_HTML = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|script|title)\b", re.IGNORECASE | re.DOTALL)
_SVG = re.compile(rb"<svg\b", re.IGNORECASE)


def describe(head: bytes) -> str:
    """Return what the bytes of a file that is no accepted picture look like, as a clause for people."""
    if not head:
        return "the file is empty"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _HTML.match(text):
        return "the server sent HTML, not a picture"
    if _SVG.search(text):
        return "the file is SVG, which is not accepted"
    for marker, name in _OTHERS:
        if head.startswith(marker):
            return f"the file is {name}, not a picture"
    if head[4:8] == b"ftyp":
        return f"the file is of the type {_printable(head[8:12])}, which is not accepted"
    if text[:1] in (b"{", b"["):
        return f"the server sent what looks like JSON, not a picture: {_printable(text[:40])}"
    if text[:5].lower() == b"<?xml":
        return "the server sent XML, not a picture"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return f"the server sent text, not a picture: {_printable(text[:40])}"
    return f"the format is unknown; the file begins with {head[:12].hex(' ')}"


def _printable(data: bytes) -> str:
    return "".join(char if char.isprintable() else " " for char in data.decode("ascii", "replace")).strip()
