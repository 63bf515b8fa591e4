"""Pictures that stand in their own record, as ``data:`` URIs or in base64.

A source is known by the hash of such a text; the text itself stays in the record's line, where it is looked for when
its turn comes.
"""

import base64
import binascii
import hashlib
import json
import re
from typing import Any
from urllib.parse import unquote_to_bytes

from etl.errors import InvalidUrlError

_PREFIX = "data:,sha256="
_BYTES = "data:;base64,"
"""How bytes that are no text begin, whatever they are."""

_LEAST = 64
"""Characters of a picture in base64; no picture is so small, but a path may be."""

_BASE64 = re.compile(r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK|JVBERi|AAAADGpQ|Qk)[A-Za-z0-9+/\s]{32}")
"""How JPEG, PNG, GIF, WebP, TIFF, PDF, JPEG 2000 and BMP begin in base64."""


def is_data(text: str) -> bool:
    """Return whether a text is a picture itself."""
    return text[:5].lower() == "data:" or (len(text) > _LEAST and _BASE64.match(text) is not None)


def data_url(text: str) -> str:
    """Return the short URL by which a picture in a record is known."""
    return _PREFIX + hashlib.sha256(text.encode()).hexdigest()


def data_of(url: str, line: bytes) -> bytes:
    """Return the bytes of the picture with this URL in the line of its record.

    Raises `InvalidUrlError` where the line has none, or one that is no base64.
    """
    text = _found(json.loads(line.decode("utf-8-sig")), url)
    if text is None:
        raise InvalidUrlError("the record does not hold the picture any more")
    head, comma, body = text.partition(",") if text[:5].lower() == "data:" else ("base64", ",", text)
    if not comma:
        raise InvalidUrlError("the data: URI of the picture has no data")
    if not head.lower().rstrip().endswith("base64"):
        return unquote_to_bytes(body)
    try:
        plain = re.sub(r"\s+", "", unquote_to_bytes(body).decode()).translate(str.maketrans("-_", "+/"))
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidUrlError("the picture in its record is not base64, or is cut short") from error


def text_of(data: bytes) -> str:
    """Return bytes of a record as the text that they are where they are ASCII, else as a ``data:`` URI."""
    if data.isascii() and b"\0" not in data and not data.startswith(_BYTES.encode()):
        return data.decode()
    return _BYTES + base64.b64encode(data).decode()


def bytes_of(text: str) -> bytes:
    """Return the bytes that `text_of` made a text of."""
    return base64.b64decode(text[len(_BYTES) :]) if text.startswith(_BYTES) else text.encode()


def _found(value: Any, url: str) -> str | None:
    """Return the text that has this URL, wherever it stands in a record."""
    if isinstance(value, str):
        text = value.strip()
        return text if is_data(text) and data_url(text) == url else None
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for one in inner if (found := _found(one, url)) is not None), None)
