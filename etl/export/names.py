"""Names of files that stand for records: that of the record's picture, cleaned, and each given once."""

import hashlib
import os
import re

from etl.data_urls import is_data
from etl.errors import InvalidUrlError
from etl.net.iiif import Request
from etl.net.urls import file_name, is_local, local_path
from etl.state.read.export_rows import ExportRow

LONGEST = 251
"""Bytes of a name before its suffix: file systems take 255."""

_IN_NO_NAME = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069/\\\\]")
"""Control characters, those that turn the direction of text, and the separators of any system."""

_NOT_EVERYWHERE = re.compile('[<>:"|?*]')
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)
"""What Windows, and disks that it can read, take in no name, and for a device."""

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_LIKE_ESCAPED = re.compile(r".*-[0-9a-f]{16}")


class Names:
    """Gives names, each of them once in a folder, until they are given back."""

    def __init__(self) -> None:
        self._taken = set[int]()
        self._lately: list[int] = []

    def of(self, stem: str, key: str, folder: str = "", *, exact: bool = False, longest: int = LONGEST) -> str:
        """Return a stem as the name of a record with this key, told apart by that where the stem is taken.

        Capitals count only where it is ``exact``.  It has at most ``longest`` bytes.
        """
        found, more = _cut(stem, "", longest), 0
        while not self._take(f"{folder}/{found if exact else found.casefold()}"):
            more += 1
            found = _cut(stem, f"-{hashlib.sha256(f'{more} {key}'.encode()).hexdigest()[:8]}", longest)
        return found

    def keep(self) -> None:
        """Keep the names that were given for good."""
        self._lately.clear()

    def give_back(self) -> None:
        """Have all names free again that were given since they were kept last."""
        self._taken.difference_update(self._lately)
        self._lately.clear()

    def _take(self, path: str) -> bool:
        """Return whether the name was free.  Of each a short hash is kept: one taken by mistake is only longer."""
        short = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8)
        number = int.from_bytes(short.digest())
        if number in self._taken:
            return False
        self._taken.add(number)
        self._lately.append(number)
        return True


def picture_name(url: str) -> str:
    """Return the file name that a source has, as it is written there; empty where it has none."""
    try:
        if not url or is_data(url):
            return ""
        if is_local(url):
            return local_path(url).name
        ending = ""
        if request := Request.of(url):
            # Every picture of an image service is called default.jpg.
            url, ending = request.base, os.path.splitext(url)[1]  # noqa: PTH122 - of no path
        return file_name(url.removesuffix("/info.json")) + ending
    except (InvalidUrlError, ValueError):
        return ""


def stem_of(row: ExportRow, name: str, *, everywhere: bool = True) -> str:
    """Return what the file of a record is called, without its suffix: the picture's name, else made from the key.

    It leaves no directory, is not hidden and acts on no terminal.  What some systems take in no name is replaced too
    where the name is for ``everywhere``.
    """
    stem = os.path.splitext(name)[0]  # noqa: PTH122 - as the readers of such files do
    if not stem.strip(". "):
        return safe_name(row.key)
    hidden = len(stem) - len(stem.lstrip("."))
    stem = "_" * hidden + _IN_NO_NAME.sub("_", stem[hidden:])
    if everywhere:
        stem = _NOT_EVERYWHERE.sub("_", stem).rstrip(". ")
        stem = f"_{stem}" if _DEVICE.match(stem) else stem
    return stem


def safe_name(key: str) -> str:
    """Return a file name without a dot for a record's key: the key itself where it can be one, else with a hash.

    Different keys have different names, and nothing that a manifest says leaves the directory.
    """
    if _PLAIN_KEY.fullmatch(key) and not _LIKE_ESCAPED.fullmatch(key):
        return key
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", key)[:60]
    return f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _cut(stem: str, tail: str, longest: int) -> str:
    """Return the name with its tail, at most ``longest`` bytes of it."""
    return stem.encode("utf-8", "replace")[: longest - len(tail)].decode("utf-8", "ignore") + tail
