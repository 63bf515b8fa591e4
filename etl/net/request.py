"""What goes out: whom a request names, and the URL as it was written."""

import importlib.metadata
import re
from typing import Any
from urllib.parse import quote

import httpx2

from etl.errors import ConfigError, InvalidUrlError
from etl.net.object_stores import Asked
from etl.net.signatures import without_signature

_PATH = re.compile(r"(?:(?:https?:)?//[^/?#]*|(?=/))(?P<path>/[^?#]*)", re.IGNORECASE)
"""Of a URL, or of a redirect's that has no host or scheme."""

_ILLEGAL = re.compile(r"%(?![0-9A-Fa-f]{2})|[^!$-;=@-_a-z|~]")
"""What httpx2 encodes, too: what is not ASCII, white space, quotes, angle brackets, braces and stray percent signs."""


def request_of(client: httpx2.AsyncClient, asked: Asked, headers: dict[str, str]) -> httpx2.Request:
    """Return the request for what is asked, with more headers."""
    sent = httpx2.Headers(client.headers)
    sent.update({**headers, **asked.headers})
    # As `client.build_request` does, which parses the URL once more to join it with a base that there is none of.
    request = httpx2.Request("GET", asked.url, headers=sent, extensions={"timeout": client.timeout.as_dict()})
    return as_written(request, asked.url, whole=bool(asked.store))


def as_written(request: httpx2.Request, url: str, *, whole: bool = False) -> httpx2.Request:
    """Let a request ask for the path of a signed URL as it stands there; ``whole`` means any URL.

    httpx2 takes ``/./`` and ``/../`` out, as browsers do; but a signature is of the path as it was, and so is a key.
    """
    found = _PATH.match(url)
    if found and (whole or without_signature(url) != url):
        path = _ILLEGAL.sub(lambda char: quote(char[0]), found["path"])
        # The extension "target" of httpcore2 would do, but goes wrong behind a proxy, which is sent the whole URL.
        parts: Any = request.url._uri_reference
        request.url._uri_reference = parts._replace(path=path)
    return request


def without_userinfo(url: httpx2.URL) -> str:
    """Return a URL as text, without a user's name and password."""
    return str(url.copy_with(userinfo=b"") if url.userinfo else url)


def check_scheme(url: httpx2.URL) -> None:
    """Raise `InvalidUrlError` for a URL, perhaps of a redirect, that cannot be asked for."""
    if url.scheme not in ("http", "https"):
        raise InvalidUrlError(f"neither http nor https: a {url.scheme or 'relative'} URL")
    if not url.host:
        raise InvalidUrlError("the URL has no host")
    if url.port is not None and not 0 < url.port < 65536:
        raise InvalidUrlError(f"there is no port {url.port}")


def user_agent(contact: str) -> str:
    """Return the program's name for itself; raises `ConfigError` for a contact that fits no header."""
    if not (contact.isascii() and (contact.isprintable() or not contact)):
        raise ConfigError(f"contact = {contact!r}: only printable ASCII characters can go into the User-Agent")
    try:
        version = importlib.metadata.version("caption-etl")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    return f"caption-etl/{version}" + (f" (+{contact})" if contact else "")
