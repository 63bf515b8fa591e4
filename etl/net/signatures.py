"""Which part of a URL is its signature: what changes each time the same file is shared anew."""

import re

_QUERY = re.compile(r"(?!(?:s3|gs|hf):)[^?#]*\?([^#]*)", re.IGNORECASE)
"""Of a URL, or of one that has no host; a store's has none."""

_PREFIXES = ("x-amz-", "x-goog-", "x-oss-", "x-cos-")

_NAMES = {
    "signature", "expires", "policy", "key-pair-id", "awsaccesskeyid", "googleaccessid", "ossaccesskeyid",
    "security-token", "token", "access_token", "auth_token", "__token__", "hdnts", "hdnea", "auth_key",
}  # fmt: skip

_OF_OTHERS = {
    # Azure's shared access signatures.
    "sig": {
        "sig", "se", "sp", "sv", "sr", "st", "spr", "srt", "ss", "sip", "skoid", "sktid", "skt", "ske", "sks", "skv",
        "sdd", "saoid", "suoid", "scid",
    },
    # Discord's attachments.
    "hm": {"hm", "ex", "is"},
}  # fmt: skip
"""Names that stand for a picture elsewhere, and belong to a signature where this one is beside them."""


def without_signature(url: str) -> str:
    """Return the URL without the parts of its query that sign it, all else as it is written."""
    found = _QUERY.match(url)
    if found is None:
        return url
    parts = found[1].split("&")
    names = [part.partition("=")[0].lower() for part in parts]
    more = set[str]().union(*(_OF_OTHERS[name] for name in names if name in _OF_OTHERS))
    kept = [
        part
        for part, name in zip(parts, names, strict=True)
        if not (name in _NAMES or name in more or name.startswith(_PREFIXES))
    ]
    if len(kept) == len(parts):
        return url
    return url[: found.start(1) - 1] + ("?" + "&".join(kept) if kept else "") + url[found.end() :]
