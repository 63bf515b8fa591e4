"""What a source is: an http URL and its host, or a path on this machine.  Knows no HTTP library."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from etl.errors import InvalidUrlError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
"""RFC 3986 scheme; at least two characters, so that ``C:\\pictures`` is a path."""

_NOT_IN_HOSTS = re.compile(r"[\s<>\"{}|\\^`%]")

_PLAIN_URL = re.compile(r"https?://([a-z0-9][a-z0-9.-]*)(?:/[!-~]*)?")
"""Almost every URL of a manifest; told apart by one match, because taking a URL to pieces takes ten times as long."""

_ELSEWHERE = re.compile(r"//(?!/)|\\\\")
"""A share of another machine, or a URL without its scheme; POSIX would read both beginnings from here."""

_OWN_PICTURE = re.compile(r"data:,sha256=[0-9a-f]{64}")
"""A picture that stands in its own record; see `etl.data_urls`."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,220}[A-Za-z0-9]")

_HUB_FILE = re.compile(
    r"(?i:hf)://(?:(?P<kind>datasets|spaces|models)/)?(?!(?:buckets|kernels|datasets|spaces|models)/)(?P<name>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|[^/@]+))?/(?P<path>.+)",
    re.ASCII,
)

_LEGAL = "!$%&'()*+,;=:@?[]~"
"""Of a relative URL, beside letters and digits; ``%`` begins what is encoded already."""

_IN_NO_NAME = re.compile(r"%2F|%00", re.IGNORECASE)


def scheme_of(url: str) -> str:
    """Return the URL's scheme in lower case; ``file`` for a path."""
    match = _SCHEME.match(url.strip())
    return match[0][:-1].lower() if match else "file"


def is_local(url: str) -> bool:
    """Whether the source is a path or a ``file:`` URL; any other ``scheme:`` makes it a URL."""
    return bool(url.strip()) and scheme_of(url) == "file"


def plain_host(url: str) -> str | None:
    """Return the host of a URL that is written as almost every one is; ``None`` for what needs a closer look."""
    plain = _PLAIN_URL.fullmatch(url)
    return plain[1].rstrip(".") if plain else None


def host_of(url: str) -> str:
    """Return the host that is asked for the URL, in lower case; empty where none is.

    Raises `InvalidUrlError` when the URL is empty, malformed, or of a scheme that is not one of `SCHEMES`.
    """
    url = url.strip()
    if (plain := plain_host(url)) is not None:
        return plain
    if not url:
        raise InvalidUrlError("the URL is empty")
    scheme = scheme_of(url)
    if scheme == "file":
        return ""
    if not url.isprintable():
        raise InvalidUrlError(f"the URL has control characters: {url[:200]!r}")
    if scheme not in SCHEMES:
        known = ", ".join(name for name in SCHEMES if name not in ("file", "data"))
        raise InvalidUrlError(f"neither {known} nor a local path: a {scheme[:40]}: URL")
    return SCHEMES[scheme](url)


def authority(url: str) -> str:
    """Return the host that the URL names, without user name, port and trailing dot."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidUrlError(f"malformed URL ({error})") from error
    if not host or port == 0 or _NOT_IN_HOSTS.search(host):
        raise InvalidUrlError(f"the URL has no valid host: {parts.netloc.rpartition('@')[2]!r}")
    return host.rstrip(".")


def no_host(_: str) -> str:
    """Return the host of what lies on this machine."""
    return ""


def _own_picture(url: str) -> str:
    if not _OWN_PICTURE.fullmatch(url):
        raise InvalidUrlError("a data: URL, which is no address; only a record's field may hold one")
    return ""


def bucket_and_key(url: str) -> tuple[str, str]:
    """Return what an ``s3:`` or ``gs:`` URL names; a key stands in it as it is, nothing is encoded.

    Raises `InvalidUrlError` where it names no object.
    """
    bucket, _, key = url.strip().partition("://")[2].partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise InvalidUrlError(f"no bucket can have the name {bucket[:80]!r}")
    if not key or key.endswith("/"):
        raise InvalidUrlError(f"names no object; write {scheme_of(url)}://{bucket}/KEY")
    return bucket, key


def folder_of(url: str) -> str | None:
    """Return the URL of a store's folder, a bucket or repository included, with ``/`` at its end; ``None`` for others.

    What lies in it is named by its URL with a path behind it.
    """
    url = url.strip()
    scheme, _, rest = url.partition("://")
    if not rest or scheme.lower() not in ("s3", "gs", "hf"):
        return None
    inner = _HUB_FILE.fullmatch(f"{url.rstrip('/')}/.") if scheme.lower() == "hf" else None
    is_top = inner["path"] == "." if inner else "/" not in rest
    return url if url.endswith("/") else f"{url}/" if is_top else None


def hub_file(url: str) -> tuple[str, str, str, str]:
    """Return kind and name of the repository, the revision and the path that an ``hf:`` URL names.

    Raises `InvalidUrlError` where it names no file of a repository.
    """
    found = _HUB_FILE.fullmatch(url.strip())
    if found is None or {"", ".", ".."} & set(found["path"].split("/")):
        raise InvalidUrlError(
            "names no file of the hub; write hf://datasets/OWNER/NAME/PATH, with @REVISION behind NAME"
        )
    return (found["kind"] or "models")[:-1], found["name"], unquote(found["revision"] or "main"), found["path"]


def _bucket(url: str) -> str:
    return f"{scheme_of(url)}://{bucket_and_key(url)[0]}"


def _repositories(url: str) -> str:
    return f"hf://{hub_file(url)[0]}s"


SCHEMES: dict[str, Callable[[str], str]] = {
    "http": authority,
    "https": authority,
    "s3": _bucket,
    "gs": _bucket,
    "hf": _repositories,
    "file": no_host,
    "data": _own_picture,
}
"""The schemes of sources, each with what gives the host that is asked for a URL, or raises `InvalidUrlError`.

For an object store (`etl.net.object_stores`) that is the scheme with the bucket, or with the kind of repository: which
machine it is, is known only when it is asked.

Ingest accepts these; `etl.fetch.schemes.OPENERS` opens them.
"""


def local_path(url: str) -> Path:
    """Return the path that a local source names.

    Raises `InvalidUrlError` where it names another machine's file, or is a ``file:`` URL that names none.
    """
    url = url.strip()
    path = _path_of(url) if _SCHEME.match(url) else url
    if _ELSEWHERE.match(path):
        raise _elsewhere(path)
    return Path(path)


def _path_of(url: str) -> str:
    """Return the path of a ``file:`` URL (RFC 8089)."""
    if not url.isprintable():
        # urlsplit would leave some of them out, and so name another file.
        raise InvalidUrlError(f"the URL has control characters: {url[:200]!r}")
    try:
        parts = urlsplit(url)
        path = unquote(parts.path, errors="strict")
    except ValueError as error:
        raise InvalidUrlError(f"malformed file: URL ({error})") from error
    if parts.netloc.lower() not in ("", "localhost") or parts.path.startswith("//"):
        raise _elsewhere(url)
    if "?" in url or "#" in url:
        raise InvalidUrlError(f"a file: URL has no query; write ? as %3F and # as %23: {url[:200]!r}")
    if match := _IN_NO_NAME.search(parts.path):
        raise InvalidUrlError(f"no file name holds {match[0]}: {url[:200]!r}")
    return path


def file_name(url: str) -> str:
    """Return the last part of a URL's path, percent-encoding undone where its scheme has one.

    Raises `ValueError` for a malformed URL.
    """
    if scheme_of(url) in ("s3", "gs", "hf"):
        return url.rpartition("/")[2]
    return unquote(urlsplit(url).path.rpartition("/")[2])


def beside(base: str, name: str) -> str:
    """Return the URL of a file that is named relative to another file's URL, or with ``/`` from its host's root.

    Raises `InvalidUrlError` for a path of this machine, and for one that leads above the host's root.
    """
    if _SCHEME.match(name):
        raise InvalidUrlError(f"a file of this machine, named by a manifest that came from elsewhere: {name[:200]!r}")
    scheme, _, rest = base.partition("://")
    host, _, path = rest.partition("/")
    web = scheme.lower() in ("http", "https")
    folders = [] if name.startswith("/") else (path.partition("?")[0] if web else path).split("/")[:-1]
    for part in name.split("/"):
        if part == "..":
            if not folders:
                raise InvalidUrlError(f"leads above the root of {host}: {name[:200]!r}")
            folders.pop()
        elif part not in ("", "."):
            # In the URLs of stores nothing is encoded.
            folders.append(quote(part, safe=_LEGAL) if web else part)
    return f"{scheme}://{host}/{'/'.join(folders)}"


def _elsewhere(name: str) -> InvalidUrlError:
    return InvalidUrlError(
        f"names another machine: {name[:200]!r}; copy the file here, or write https: before it where it is a URL"
    )
