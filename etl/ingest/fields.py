"""Which fields of a record hold its key and its pictures, by the words of exporters, and what their values mean."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etl.images.formats import suffixes

KEY_FIELDS = ("metadata_filename", "id", "key")

IMAGE_FIELDS = ("external_url", "url", "image_url", "image", "path")
"""The first that holds a text is it; only where none does, the rest of what follows is looked at."""

MORE_IMAGE_FIELDS = (
    *IMAGE_FIELDS, "images", "image_urls", "urls", "img_url", "img", "image_link", "image_src", "image_uri",
    "picture_url", "photo_image_url", "photo_url", "file_url", "media_url", "original_url", "o:original_url",
    "content_url", "download_url", "coco_url", "contentdm_file_path", "imageinfo", "primary_image", "web_image",
    "edmIsShownBy", "url_o", "url_k", "url_h", "url_l", "url_c", "url_z", "url_m", "src", "file_name",
    "image_file_name", "image_name", "image_path", "image_file", "file_path", "source_file", "pictures", "picture",
    "pic", "photos", "photo", "attachments", "attachment", "files", "files & media", "file", "media", "jpg", "png",
    "source_ref", "image_gcs_uri", "s3_uri", "s3_url", "gcs_uri",
    "original", "edmPreview", "thumbnail_display_urls", "thumbnail_url", "thumbnail", "object",
)  # fmt: skip
"""By name without capitals, spaces, underscores, hyphens and dots, in this order."""

_INNER = ("value", "original", "source", "href", "@id", "large", "full", "uri", "bytes")
"""Beside those, where an object stands for a picture."""

_HOLDERS = ("fields", "properties", "attributes", "data", "node", "_source", "record", "item")
"""Objects in which exporters put the fields of a record."""

_NO_LETTERS = re.compile(r"[\s_.\-\ufeff\u200b-\u200d\u2060]+")
_INVISIBLE = re.compile(r"[\ufeff\u200b-\u200f\u202a-\u202e\u2060-\u2064]")
_MANY = re.compile(r"[\s,;|]+(?=(?:https?|s3|gs|hf)://)", re.IGNORECASE)
_EXTRACTED = re.compile(r"(?:https?|s3|gs|hf)://[^\s\"'<>()\[\]{}|\\]+|(?<=[\"'])//[^\s\"'<>]+", re.IGNORECASE)
_WRAPPED = re.compile(r"""\s*(?:=\s*(?:IMAGE|HYPERLINK)\s*\(|\[|!\[|<(?:img|a)\s|[^/]*\(https?://)""", re.IGNORECASE)
"""A formula of a spreadsheet, a list in a cell, Markdown, HTML, and ``name.jpg (https://...)`` of Airtable."""

_ADDRESS = re.compile(r"(?:https?|ftp|file|s3|gs|hf)://\S|//[\w.-]+\.\w|www\.[\w-]+\.\w|data:image/", re.IGNORECASE)
_BACKSLASHES = re.compile(r"(?!\./)(?:[^/\\:]+\\)+[^/\\]+")
_DEPTH = 4


@functools.lru_cache(4096)
def normalised(name: str) -> str:
    """Return a field's name as it is compared: without capitals, white space, underscores, hyphens and dots."""
    return _NO_LETTERS.sub("", name).casefold()


_IMAGE_NAMES = tuple(dict.fromkeys(map(normalised, MORE_IMAGE_FIELDS)))
_INNER_NAMES = (*_IMAGE_NAMES[:3], *(normalised(name) for name in _INNER), *_IMAGE_NAMES[3:])
KEY_NAMES = tuple(map(normalised, KEY_FIELDS))
_KNOWN = {*_IMAGE_NAMES, *KEY_NAMES}


def is_known(name: str) -> bool:
    """Return whether a record's key or picture may stand under this name."""
    return normalised(name) in _KNOWN


def may_hold(name: str) -> bool:
    """Return whether what stands under this name may be a record's picture, or hold its fields."""
    return is_known(name) or name in _HOLDERS


def is_address(text: str) -> bool:
    """Return whether a text begins as the address of a picture elsewhere does."""
    return bool(_ADDRESS.match(text.strip().lstrip("\ufeff\u200b<\"'")))


def is_picture(text: str) -> bool:
    """Return whether a text is the address of a picture, or the name of a file that ends as one."""
    return is_address(text) or text.strip().strip("\"'<>").lower().endswith(suffixes())


def by_name(record: Mapping[str, Any], names: Sequence[str]) -> Iterator[Any]:
    """Yield what a record holds under each of these normalised names, in their order."""
    there: dict[str, Any] = {}
    for name, value in record.items():
        there.setdefault(normalised(name), value)
    yield from (there[name] for name in names if name in there)


def named(record: Any, path: str) -> Any:
    """Return what stands under a name, which may be ``outer.inner``, also through lists; ``None`` for nothing."""
    if not isinstance(record, Mapping):
        if not isinstance(record, list):
            return None
        found = [value for inner in record if (value := named(inner, path)) is not None]
        return found or None
    if path in record:
        return record[path]
    near = next((name for name in record if normalised(name) == normalised(path)), None)
    if near is not None:
        return record[near]
    for at in (i for i, char in enumerate(path) if char == "."):
        if path[:at] in record and (value := named(record[path[:at]], path[at + 1 :])) is not None:
            return value
    return None


def pictures_of(record: Mapping[str, Any]) -> list[str]:
    """Return the addresses under the first of the usual names that holds any, as they are written there."""
    found = next((found for value in by_name(record, _IMAGE_NAMES) if (found := addresses(value))), None)
    if found is None:
        holders = (record[name] for name in _HOLDERS if isinstance(record.get(name), Mapping))
        found = next((found for holder in holders if (found := pictures_of(holder))), [])
    return found


def addresses(value: Any, depth: int = 0) -> list[str]:
    """Return the addresses in a value: a text, an object that stands for a picture, or a list of these."""
    if depth > _DEPTH:
        return []
    match value:
        case str():
            return split(value)
        case list():
            return [address for inner in value for address in addresses(inner, depth + 1)]
        case dict():
            return next((one for inner in by_name(value, _INNER_NAMES) if (one := addresses(inner, depth + 1))), [])
    return []


def split(text: str) -> list[str]:
    """Return the addresses in a text; spaces and commas stay part of an address unless another one follows them."""
    if text.startswith(("http://", "https://")) and text.count("://") == 1:
        return [text.strip()]
    if "://" in text and _WRAPPED.match(text) and (found := _EXTRACTED.findall(text)):
        return list(dict.fromkeys(found))
    return [part for part in _MANY.split(text.strip()) if part]


def mended(address: str) -> str:
    """Return an address as it was meant: without invisible characters, ``<>``, and with the scheme that it lacks."""
    if not address.isascii():
        address = _INVISIBLE.sub("", address)
    address = address.strip()
    if address.startswith("<") and address.endswith(">"):
        address = address[1:-1].strip()
    if address.startswith("//") and not address.startswith("///") and is_address(address):
        return f"https:{address}"
    if address[:4].lower() == "www." and is_address(address):
        return f"https://{address}"
    if "\\" in address and _BACKSLASHES.fullmatch(address):
        return address.replace("\\", "/")
    return address
