"""What this machine offers to any command: Python, packages, SQLite, open files, the proxy."""

import importlib.metadata
import os
import platform
import resource
import sqlite3
import sys
import urllib.request

from etl.open_files import LEAST
from etl.redaction import redact_url
from etl.run.checks.check import Check
from etl.settings import Settings

FIXED_SQLITE = (3, 51, 3)
"""First version without the WAL-reset fault, which takes two connections that write or checkpoint at once."""

_PACKAGES = ("torch", "transformers", "pillow", "httpx2", "sqlite-utils", "textual")


def python() -> Check:
    """Say which Python this is."""
    good = sys.version_info >= (3, 11)
    said = (
        f"{platform.python_version()} on {platform.system()} {platform.release().split('-')[0]}, {platform.machine()}"
    )
    return Check("python", "ok" if good else "note", said, "" if good else "use Python 3.11 or newer")


def packages() -> Check:
    """Say which versions of the libraries that matter are here."""
    found = {name: _version(name) for name in _PACKAGES}
    return Check("packages", "ok", ", ".join(f"{name} {version or '-'}" for name, version in found.items()))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def sqlite() -> Check:
    """Say whether SQLite knows what the state needs."""
    if sqlite3.sqlite_version_info < (3, 37):
        said = f"{sqlite3.sqlite_version}; STRICT tables need 3.37"
        return Check("sqlite", "fail", said, "use a Python that was built with a newer SQLite")
    if sqlite3.sqlite_version_info < FIXED_SQLITE:
        detail = f"{sqlite3.sqlite_version}; older than 3.51.3: safe, because only one process writes a state"
        return Check("sqlite", "ok", detail)
    return Check("sqlite", "ok", sqlite3.sqlite_version)


def open_files(settings: Settings) -> Check:
    """Say whether as many files may be open as the settings may need: sockets, pipes to children, and its own."""
    children = (settings.decoders or os.cpu_count() or 1) + settings.feeders
    wanted = LEAST + 2 * (settings.concurrency + children)
    wanted += settings.endpoint_concurrency * len(settings.endpoint)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit < wanted:
        return Check("files", "note", f"{limit} may be open, these settings may need {wanted}", "raise `ulimit -n`")
    return Check("files", "ok", f"{limit} may be open")


def proxy() -> Check:
    """Say which proxy the environment names, without what opens it."""
    proxies = {scheme: url for scheme, url in urllib.request.getproxies().items() if scheme in ("http", "https", "all")}
    if not proxies:
        return Check("proxy", "ok", "none; private addresses are refused")
    # Without a scheme, as curl takes it, `me:secret@proxy` would not look like a URL.
    whole = {scheme: url if "://" in url else f"http://{url}" for scheme, url in proxies.items()}
    shown = ", ".join(f"{scheme}: {redact_url(url)}" for scheme, url in whole.items())
    return Check("proxy", "note", f"{shown}; the proxy resolves names, so private addresses are not refused")
