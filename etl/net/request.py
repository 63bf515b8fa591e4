"""What goes out: whom a request names, and the URL as it was written."""

import functools
import importlib.metadata
import re
from base64 import b64encode
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

import httpcore2
import httpx2

from etl.errors import ConfigError, InvalidUrlError
from etl.net.signatures import without_signature

_PATH = re.compile(r"(?:(?:https?:)?//[^/?#]*|(?=/))(?P<path>/[^?#]*)", re.IGNORECASE)
"""Of a URL, or of a redirect's that has no host or scheme."""

_ILLEGAL = re.compile(r"%(?![0-9A-Fa-f]{2})|[^!$-;=@-_a-z|~]")
"""What httpx2 encodes, too: what is not ASCII, white space, quotes, angle brackets, braces and stray percent signs."""


_PLAIN = re.compile(
    r"(https?://[^/?#@\\\s]+)(/(?!\.)(?:%[0-9A-Fa-f]{2}|(?<!/)\.|[\w/~!$&()*+,;=:@-])*(?:\?(?:%[0-9A-Fa-f]{2}|[\w./~!$&*+,;=:@-])*)?)",
    re.ASCII,
)
"""A server, and a path and query of which httpx2 would change nothing."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL as it is asked for.

    Attributes:
        given: the URL as it was written.
        url: as httpcore2 wants it.
        origin: the server.
        netloc: the host, with its port where that is not the scheme's own.
        userinfo: user name and password, as they are in the URL.
    """

    given: str
    url: httpcore2.URL
    origin: httpcore2.Origin
    netloc: bytes
    userinfo: bytes = b""

    @classmethod
    def of(cls, text: str, *, whole: bool = False) -> "Target":
        """Return the target of a URL; the path of a signed one, or, if ``whole``, of any, stays as it is written.

        httpx2 takes ``/./`` and ``/../`` out, as browsers do; but a signature is of what was written, so is a key.

        Raises `InvalidUrlError` and `httpx2.InvalidURL`.
        """
        if plain := _PLAIN.fullmatch(text):
            # A tenth of a millisecond of httpx2's, of which a small file takes one.
            server = _server(plain[1])
            url = httpcore2.URL(
                scheme=server.url.scheme, host=server.url.host, port=server.url.port, target=plain[2].encode("ascii")
            )
            return cls(text, url, server.origin, server.netloc)
        return cls._of(httpx2.URL(text), text, whole=whole)

    @classmethod
    def _of(cls, parsed: httpx2.URL, text: str, *, whole: bool = False) -> "Target":
        _check(parsed)
        path = parsed.raw_path
        written = _PATH.match(text)
        if written and (whole or without_signature(text) != text):
            _, mark, query = path.partition(b"?")
            path = _ILLEGAL.sub(lambda char: quote(char[0]), written["path"]).encode("ascii") + mark + query
        url = httpcore2.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=path)
        return cls(str(parsed), url, url.origin, parsed.netloc, parsed.userinfo)

    def joined(self, location: str) -> "Target":
        """Return where a redirect from here leads.  Raises as `of`."""
        parsed = httpx2.URL(location)
        if parsed.scheme and not parsed.host:
            # Servers that name the scheme and forget the host mean their own.
            parsed = parsed.copy_with(host=self.url.host.decode("ascii"))
        return self._of(httpx2.URL(self.given).join(parsed) if parsed.is_relative_url else parsed, location)

    @property
    def text(self) -> str:
        """The URL without user name, password and fragment."""
        return b"".join((self.url.scheme, b"://", self.netloc, self.url.target)).decode("ascii")

    @property
    def authorization(self) -> dict[str, str]:
        """The header that carries the user name and the password, where the URL has them."""
        if not self.userinfo:
            return {}
        name, _, password = self.userinfo.partition(b":")
        user = b64encode(unquote_to_bytes(name) + b":" + unquote_to_bytes(password))
        return {"Authorization": f"Basic {user.decode('ascii')}"}

    def may_have_authorization_of(self, before: "Target") -> bool:
        """Return whether what was for one server may be sent here: to the same one, or to its half with TLS."""
        if self.origin == before.origin:
            return True
        ports = (before.origin.scheme, before.origin.port, self.origin.scheme, self.origin.port)
        return self.url.host == before.url.host and ports == (b"http", 80, b"https", 443)


@functools.lru_cache(maxsize=1024)
def _server(text: str) -> Target:
    """Return the target of a scheme and a server without a path."""
    return Target._of(httpx2.URL(text), text)


def _check(url: httpx2.URL) -> None:
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
