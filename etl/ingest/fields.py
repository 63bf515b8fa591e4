"""Which fields of a record hold its key and its pictures, by the words of exporters, and what their values mean."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, takewhile
from typing import Any

from etl.images.formats import suffixes

KEY_FIELDS = ("metadata_filename", "id", "key")

IMAGE_FIELDS = ("external_url", "url", "image_url", "image", "path")
"""The first of all that follow; messages name these."""

MORE_IMAGE_FIELDS = (
    *IMAGE_FIELDS, "images", "image_urls", "urls", "img_url", "img", "image_link", "image_src", "image_uri",
    "picture_url", "photo_image_url", "photo_url", "file_url", "file_urls", "media_url", "original_url",
    "o:original_url", "content_url", "download_url", "source_url", "coco_url", "contentdm_file_path",
    "contentdm_file_name", "digital_object_uri", "digital_object_path", "file_version_file_uri", "imageinfo",
    "primary_image", "primary_image_url", "main_image_url", "large_image_url", "web_image", "base_image", "iiif_url",
    "edmIsShownBy", "url_o", "url_k", "url_h", "url_l", "url_c", "url_z", "url_m", "src", "file_name",
    "image_file_name", "image_name", "image_path", "image_file", "file_path", "source_file", "pictures", "picture",
    "pic", "photos", "photo", "attachments", "attachment", "files", "files & media", "file", "media", "jpg", "png",
    "source_ref", "image_gcs_uri", "s3_uri", "s3_url", "gcs_uri", "bild", "bild_url", "foto", "imagen", "immagine",
    "fichier", "fichier_image", "画像", "画像url", "display_url", "image_bytes", "image_base64", "image_data",
    "original", "edmPreview", "thumbnail_display_urls", "thumbnail_url", "thumbnail", "object", "identifier",
)  # fmt: skip
"""By name without capitals, spaces, underscores, hyphens and dots, in this order."""

_INNER = ("value", "original", "source", "href", "@id", "large", "full", "uri", "external", "bytes")
"""Beside those, where an object stands for a picture."""

_HOLDERS = ("fields", "properties", "attributes", "data", "node", "_source", "record", "item", "row")
"""Objects in which exporters put the fields of a record."""

_NO_LETTERS = re.compile(r"[\s_.\-#\ufeff\u200b-\u200d\u2060]+")
_INVISIBLE = re.compile(r"[\ufeff\u200b-\u200f\u202a-\u202e\u2060-\u2064]")
_MANY = re.compile(r"(?<![\s,;|^])[\s,;|^]++(?=(?:https?|s3|gs|hf)://)", re.IGNORECASE)
_EXTRACTED = re.compile(r"(?:https?|s3|gs|hf)://[^\s\"'<>()\[\]{}|\\]+|(?<=[\"'])//[^\s\"'<>]+", re.IGNORECASE)
_WRAPPED = re.compile(r"""\s*+(?:=\s*(?:IMAGE|HYPERLINK)\s*\(|\[|!\[|<(?:img|a)\s|[^/]*\(https?://)""", re.IGNORECASE)
"""A formula of a spreadsheet, a list in a cell, Markdown, HTML, and ``name.jpg (https://...)`` of Airtable."""

_ADDRESS = re.compile(r"(?:https?|ftp|file|s3|gs|hf)://\S|//[\w.-]+\.\w|www\.[\w-]+\.\w|data:image/", re.IGNORECASE)
_BACKSLASHES = re.compile(r"(?!\./)(?:[^/\\:]+\\)+[^/\\]+")
_BETWEEN_NAMES = re.compile(r"[,;|\n]")
_QUOTES = ("<>", '""', "''", "()", "[]")
_NOTHING = frozenset({"n/a", "na", "#n/a", "#ref!", "#value!", "#name?", "null", "none", "nil", "nan", "undefined"})
"""How programs write that there is nothing."""

_CAPTION_OF = re.compile(r"(\.\w{3,4})#\d$")
"""What Flickr8k has behind a picture's name, for each of its captions."""

_NUMBERED = re.compile(r"(.*\D)0?([1-9]\d?)")
_OF_PICTURES = re.compile(r"image|img|photo|pic|media|jpg|png|coco")
_SMALL = re.compile(r"thumb|preview|object")
_DEPTH, _MANY_FIELDS, _SHORT, _LONG = 4, 1000, 16, 8192


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
    return is_address(text) or ends_as_picture(text)


def ends_as_picture(text: str) -> bool:
    """Return whether the path of an address, or the name of a file, ends as those of pictures do."""
    if text[:5].lower() == "data:":
        return True
    if "://" in text:
        text = text.partition("?")[0].partition("#")[0]
    return _CAPTION_OF.sub(r"\1", text[-_SHORT:]).strip().strip("\"'<>").lower().endswith(suffixes())


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
    """Return the addresses under the first of the usual names that holds any, as they are written there.

    A ``url`` that does not end as a picture does may be that of its page, and yields to what says more.
    """
    unsure: list[str] = []
    fields_of = _fields_of if len(record) < _MANY_FIELDS else _fields_of.__wrapped__
    for known, names in fields_of(tuple(record)):
        several = len(names) > 1
        found = [one for name in names for one in addresses(record[name])] if several else addresses(record[names[0]])
        if known == "identifier" and not (found and is_address(found[0]) and ends_as_picture(found[0])):
            # Darwin Core's is the picture's address, all others' are numbers and pages.
            continue
        if found and known == "url" and not ends_as_picture(found[0]):
            unsure = found
        elif found and (not unsure or _says_more(known, found[0])):
            return found
    holders = (record[name] for name in _HOLDERS if isinstance(record.get(name), Mapping))
    inner = next((found for holder in holders if (found := pictures_of(holder))), [])
    return inner if inner and (not unsure or ends_as_picture(inner[0])) else unsure


def _says_more(known: str, address: str) -> bool:
    """Return whether an address is rather that of a picture than a URL that might be of any page."""
    is_full = is_address(address) and not _SMALL.search(known)
    return is_full and bool(_OF_PICTURES.search(known) or ends_as_picture(address))


@functools.lru_cache(256)
def _fields_of(names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return which of a record's fields may hold its pictures, in their order: ``image``, ``image 2`` ... together."""
    there: dict[str, dict[int, str]] = {}
    for name in names:
        known = normalised(name)
        numbered = _NUMBERED.fullmatch(known)
        base, number = (numbered[1], int(numbered[2])) if numbered else (known, 0)
        of_base = there.setdefault(base, {})
        if number not in of_base or name in MORE_IMAGE_FIELDS:
            of_base[number] = name
    found = []
    for known in filter(there.__contains__, _IMAGE_NAMES):
        numbers = there[known]
        others = [numbers[number] for number in takewhile(numbers.__contains__, count(2))]
        # Numbers that do not begin at its beginning are sizes.
        if 0 in numbers or (1 in numbers and others):
            found.append((known, (*(numbers[number] for number in (0, 1) if number in numbers), *others)))
    return tuple(found)


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
    if "&amp;" in text:
        text = text.replace("&amp;", "&")
    if text.startswith(("http://", "https://")) and text.count("://") == 1:
        return [text.strip()]
    if "://" in text and _WRAPPED.match(text) and (found := _EXTRACTED.findall(text)):
        pictures = list(filter(ends_as_picture, found)) if text.lstrip().startswith("<") else []
        return list(dict.fromkeys(pictures or found))
    text = text.strip()
    if len(text) < _SHORT and (text.casefold() in _NOTHING or not text.strip("-:")):
        return []
    parts = [part for part in _MANY.split(text) if part]
    if len(parts) > 1:
        # Before addresses may be what numbers them.
        return [part for part in parts if is_picture(part)] or parts
    names = list(map(str.strip, _BETWEEN_NAMES.split(text.strip("[]")))) if len(text) < _LONG else []
    return names if len(names) > 1 and all(map(ends_as_picture, names)) else parts


def mended(address: str) -> str:
    """Return an address as it was meant: without invisible characters, ``<>``, and with the scheme that it lacks."""
    if not address.isascii():
        address = _INVISIBLE.sub("", address)
    address = address.strip()
    if "://" not in address and ends_as_picture(address):
        address = _CAPTION_OF.sub(r"\1", address)
    while address[:1] + address[-1:] in _QUOTES:
        address = address[1:-1].strip()
    if address.startswith("//") and not address.startswith("///") and is_address(address):
        return f"https:{address}"
    if address[:4].lower() == "www." and is_address(address):
        return f"https://{address}"
    if "\\" in address and _BACKSLASHES.fullmatch(address):
        return address.replace("\\", "/")
    return address
