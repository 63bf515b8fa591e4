"""Which part of a URL is its signature: what changes each time the same file is shared anew."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from etl.domain.items import SIGNED
from etl.errors import InvalidUrlError

_QUERY = re.compile(r"(?!(?:s3|gs|hf):)[^?#]*\?([^#]*)", re.IGNORECASE)
"""Of a URL, or of one that has no host; a store's has none."""

_PREFIXES = ("x-amz-", "x-goog-", "x-oss-", "x-cos-")

_NAMES = {
    "signature", "expires", "policy", "key-pair-id", "awsaccesskeyid", "googleaccessid", "ossaccesskeyid",
    "security-token", "token", "access_token", "auth_token", "__token__", "hdnts", "hdnea", "auth_key",
}  # fmt: skip

_TOGETHER = (
    # Azure's shared access signatures.
    ({"sig"}, {
        "sig", "se", "sp", "sv", "sr", "st", "spr", "srt", "ss", "sip", "skoid", "sktid", "skt", "ske", "sks", "skv",
        "sdd", "saoid", "suoid", "scid",
    }),
    # Discord's attachments.
    ({"ex", "is", "hm"}, {"ex", "is", "hm"}),
)  # fmt: skip
"""Names that may stand for a picture elsewhere, and belong to a signature where all of the first are there."""


_TIMES = ("x-amz-date", "x-goog-date", "se", "expires", "ex")
"""When a signature was made, or ends; of two that one service made, the later one has the greater text."""

_IN_TEXT = re.compile(r"https?://[^\s\"'<>()\[\]{}|\\]+", re.IGNORECASE)


def identity_of(url: str) -> str:
    """Return what stands for a URL whatever its signature is; a URL without one stands for itself."""
    bare = without_signature(url)
    return url if bare == url else bare.partition("#")[0] + SIGNED


def newest(url: str, lines: Iterable[bytes]) -> str:
    """Return the URL, among those in the lines of its records, that was signed last; ``url`` is what they stand for.

    Raises `InvalidUrlError` where none of them stands for it.
    """
    found = [
        text for line in lines for text in _texts(json.loads(line.decode("utf-8-sig"))) if identity_of(text) == url
    ]
    if not found:
        raise InvalidUrlError("no record has the picture's signed address any more")
    return max(found, key=_signed_at)


def _texts(value: Any) -> Iterator[str]:
    """Yield each text in a value that may be a URL."""
    if isinstance(value, str):
        text = value.strip("<> \t\r\n\ufeff\u200b")
        yield f"https:{text}" if text.startswith("//") else f"https://{text}" if text[:4].lower() == "www." else text
        yield from _IN_TEXT.findall(value)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _signed_at(url: str) -> str:
    pairs = [part.partition("=") for part in url.partition("?")[2].split("&")]
    times = {name.lower(): value for name, _, value in pairs}
    return next((times[name] for name in _TIMES if name in times), "")


def without_signature(url: str) -> str:
    """Return the URL without the parts of its query that sign it, all else as it is written."""
    found = _QUERY.match(url)
    if found is None:
        return url
    parts = found[1].split("&")
    names = [part.partition("=")[0].lower() for part in parts]
    more = set[str]().union(*(those for all_of, those in _TOGETHER if all_of <= set(names)))
    kept = [
        part
        for part, name in zip(parts, names, strict=True)
        if not (name in _NAMES or name in more or name.startswith(_PREFIXES))
    ]
    if len(kept) == len(parts):
        return url
    return url[: found.start(1) - 1] + ("?" + "&".join(kept) if kept else "") + url[found.end() :]
