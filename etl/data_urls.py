"""Pictures that stand in their own record, as ``data:`` URIs or in base64.

Ingest takes them out of the record's line, where their name stays; their bytes are kept once, by their hash.  Whoever
writes the line out again has the text put back.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote_to_bytes

from etl.errors import InvalidUrlError

_PREFIX = "data:,sha256="
_BYTES = "data:;base64,"
"""How bytes that are no text begin, whatever they are."""

_LEAST = 64
"""Characters of a picture in base64; no picture is so small, but a path may be."""

_BASE64 = re.compile(
    r"(?:[/_]9j[/_]|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|SUkrA|TU0AK|JVBERi|AAAADGpQ|AAAADEpY|AAAA..Z0eXB|OEJQUw)"
    r"[A-Za-z0-9+/_\s-]{32}|Qk[A-Za-z0-9+/\s]{32}"
)
"""How JPEG, PNG, GIF, WebP, TIFF, PDF, JPEG 2000, JPEG XL, AVIF and HEIF, PSD, and BMP begin in base64."""

_FEW = 8
"""Pictures of a record that are looked for one by one.  Of more, each text of the record is looked at."""

MARK = b"etl-picture-sha256="
"""How the name begins that stands in the place of a picture."""

_NAMED = re.compile(rb'"((?i:data:)[^"\\]{0,200},|)etl-picture-sha256=([0-9a-f]{64})"')
_HEAD = re.compile(r"(?i:data:)[ -~]{0,200}")
_JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


def is_data(text: str) -> bool:
    """Return whether a text is a picture itself."""
    return text[:5].lower() == "data:" or (len(text) > _LEAST and _BASE64.match(text) is not None)


def data_url(data: bytes) -> str:
    """Return the short URL by which a picture of a record is known."""
    return _PREFIX + hashlib.sha256(data).hexdigest()


def decoded(text: str) -> bytes:
    """Return the bytes of a picture that is a text.  Raises `InvalidUrlError` where that is no base64."""
    head, comma, body = text.partition(",") if text[:5].lower() == "data:" else ("base64", ",", text)
    if not comma:
        raise InvalidUrlError("the data: URI of the picture has no data")
    try:
        if not head.lower().rstrip().endswith("base64"):
            return unquote_to_bytes(body)
        plain = "".join((unquote_to_bytes(body).decode() if "%" in body else body).split())
        plain = plain.replace("-", "+").replace("_", "/")
        return binascii.a2b_base64(plain + "=" * (-len(plain) % 4), strict_mode=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidUrlError("the picture in its record is not base64, or is cut short") from error


def taken_out(line: bytes, urls: Mapping[str, str]) -> bytes:
    """Return a record's line with names in the place of its pictures, given the URL of each text that is one."""
    names = {
        text: b'"' + _head_of(text).encode() + MARK + url.removeprefix(_PREFIX).encode() + b'"'
        for text, url in urls.items()
    }
    # Each goes through the whole line.
    if len(names) <= _FEW:
        for text, name in names.items():
            line = line.replace(b'"' + text.encode(errors="replace") + b'"', name)
        if all(name in line for name in names.values()):
            return line
    # Many, or one that is written with escapes, or with white space around it.
    return _JSON_STRING.sub(lambda found: names.get(json.loads(found[0]).strip(), found[0]), line)


def holds_name(line: bytes) -> bool:
    """Return whether a line holds what names a picture that was taken out; also a stranger's may."""
    return MARK in line


def line_hash(line: bytes, *, is_taken_out_of: bool = False) -> bytes:
    """Return the hash that a stored line is known by: another one where pictures were taken out of it.

    So nobody can write a line that passes for one in which pictures are to be put back.
    """
    return hashlib.sha256(MARK + line if is_taken_out_of else line).digest()


def names_in(line: bytes) -> Iterator[str]:
    """Yield the URL of each picture that a line names."""
    return (_PREFIX + found[2].decode() for found in _NAMED.finditer(line))


def put_back(line: bytes, read: Callable[[str], bytes | None]) -> bytes:
    """Return a line that pictures were taken out of with these, in base64; ``read`` returns one's bytes by its URL."""

    def whole(found: re.Match[bytes]) -> bytes:
        data = read(_PREFIX + found[2].decode())
        return found[0] if data is None else b'"' + found[1] + base64.b64encode(data) + b'"'

    return _NAMED.sub(whole, line)


def _head_of(text: str) -> str:
    """Return what stands before the base64 of a picture; of a ``data:`` URI without base64, what would."""
    if text[:5].lower() != "data:":
        return ""
    head = text.partition(",")[0]
    if not _HEAD.fullmatch(head) or '"' in head or "\\" in head:
        return _BYTES
    return f"{head}," if head.lower().endswith("base64") else f"{head};base64,"


def data_of(url: str, line: bytes) -> bytes:
    """Return the bytes of the picture with this URL in the line of its record, where earlier versions left it.

    Raises `InvalidUrlError` where the line has none, or one that is no base64.
    """
    for text in _data_in(json.loads(line.decode("utf-8-sig"))):
        if _PREFIX + hashlib.sha256(text.encode()).hexdigest() == url:
            return decoded(text)
        with suppress(InvalidUrlError):
            if data_url(data := decoded(text)) == url:
                return data
    raise InvalidUrlError("the record does not hold the picture any more")


def text_of(data: bytes) -> str:
    """Return bytes of a record as the text that they are where they are ASCII, else as a ``data:`` URI."""
    if data.isascii() and b"\0" not in data and not data.startswith(_BYTES.encode()):
        return data.decode()
    return _BYTES + base64.b64encode(data).decode()


def bytes_of(text: str) -> bytes:
    """Return the bytes that `text_of` made a text of."""
    return base64.b64decode(text[len(_BYTES) :]) if text.startswith(_BYTES) else text.encode()


def _data_in(value: Any) -> Iterator[str]:
    """Yield the texts that are pictures, wherever they stand in a record."""
    if isinstance(value, str):
        if is_data(text := value.strip()):
            yield text
        return
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _data_in(inner)
