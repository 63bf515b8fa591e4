"""What of a URL may be shown and stored: never user names, passwords, query values and fragments."""

import json
import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")

_ONE_URL = re.compile(r"\s*https?://\S*\s*", re.IGNORECASE)

_USER = re.compile(r"://[^/?#@\s\"]+@")

_URL = re.compile(r"https?://[^\s\"'<>\\]+", re.IGNORECASE)
"""Up to a quote, a bracket or a backslash: in JSON and in error messages URLs end there."""


def redact_url(url: str) -> str:
    """Return the URL without user name, password, query values and fragment, for logs and stored errors.

    What is no URL stays as it is; of a URL that cannot be taken to pieces only the scheme is left.
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{scheme[0]}..."
    if not (parts.query or parts.fragment or "@" in parts.netloc):
        return url
    # A query without names, as in `?c2VjcmV0`, is one value.
    query = "&".join(pair.split("=")[0] + "=..." if "=" in pair else "..." for pair in parts.query.split("&") if pair)
    netloc = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=netloc, query=query, fragment="..." if parts.fragment else ""))


def redact_text(text: str) -> str:
    """Return the text with every http(s) URL in it as `redact_url` gives it, also one that is part of another."""
    if "://" not in text:
        return text
    return _USER.sub("://", _URL.sub(lambda match: redact_url(match[0]), text))


def redact(value: Any) -> Any:
    """Return plain values with every URL in their texts as `redact_url` gives it."""
    if isinstance(value, dict):
        return {key: redact(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [redact(inner) for inner in value]
    if not isinstance(value, str):
        return value
    # A text that is one URL may hold quotes and backslashes, which end one in prose.
    return redact_text(redact_url(value) if _ONE_URL.fullmatch(value) else value)


def redact_line(line: str) -> str:
    """Return a manifest line with every URL redacted; as values, for JSON can spell one in many ways."""
    try:
        return json.dumps(redact(json.loads(line)), ensure_ascii=False)
    except (ValueError, RecursionError):
        return redact_text(line)


def host_of(url: str) -> str:
    """Return the host of a URL; empty where it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
