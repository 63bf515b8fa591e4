"""What lies in a folder of an object store: pages of names, as each store writes them."""

import json
import re
from typing import NamedTuple
from urllib.parse import unquote, unquote_plus
from xml.etree import ElementTree

from etl.errors import ProtocolError
from etl.net.urls import bucket_and_key, hub_file, scheme_of

_NEXT = re.compile(r"[?&]cursor=([^&>]+)[^>]*>;\s*rel=\"?next")


class Entry(NamedTuple):
    """An object: its name within its bucket or repository, and its bytes."""

    name: str
    size: int


class Page(NamedTuple):
    """A page of a folder, and the mark behind which the next one begins; empty for the last."""

    entries: list[Entry]
    after: str


def page_of(url: str, body: bytes, link: str) -> Page:
    """Return what an answer says of a folder with this URL; ``link`` is the header of that name.

    Raises `ProtocolError` where it makes no sense.
    """
    try:
        return _of_hub(body, link) if scheme_of(url) == "hf" else _of_bucket(body)
    except (ValueError, KeyError, TypeError, AttributeError, ElementTree.ParseError) as error:
        raise ProtocolError(f"the store's list of {url[:200]} makes no sense") from error


def url_of(folder: str, name: str) -> str:
    """Return the URL of an object of the bucket or repository that a folder lies in."""
    inner = hub_file(f"{folder}_")[3] if scheme_of(folder) == "hf" else bucket_and_key(f"{folder}_")[1]
    return folder[: len(folder) + 1 - len(inner)] + name


def _of_bucket(body: bytes) -> Page:
    """Return a page of ListObjectsV2, which Google's store speaks, too."""
    if b"<!" in body:
        raise ValueError("a document type, which can make much of little, or lead elsewhere")
    top = ElementTree.fromstring(body)
    decode = unquote_plus if top.findtext("{*}EncodingType") == "url" else str
    found = [(one.findtext("{*}Key"), one.findtext("{*}Size")) for one in top.findall("{*}Contents")]
    after = top.findtext("{*}NextContinuationToken") or ""
    if not after and top.findtext("{*}IsTruncated") == "true":
        raise ValueError("a store of before 2017, of which there would be the first page alone")
    return Page([Entry(decode(key or ""), int(size or 0)) for key, size in found], after)


def _of_hub(body: bytes, link: str) -> Page:
    following = _NEXT.search(link)
    found = [Entry(one["path"], int(one["size"])) for one in json.loads(body) if one["type"] == "file"]
    return Page(found, unquote(following[1]) if following else "")
