"""IIIF Presentation manifests and collections, 2 and 3, or a list of their URLs: each canvas becomes a record."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etl.errors import FetchError, ManifestError
from etl.ingest.manifest_formats.file import BadRow, ManifestFile
from etl.ingest.manifest_formats.iiif_canvas import identity, kind_of, lines_of, listed, text_of

MAX_DEPTH = 8
"""Collections within collections."""

MAX_DOCUMENTS = 10_000
"""Manifests and collections that are read for one source."""

MAX_BYTES = 64 * 1024**2
"""Of a manifest; its pages are held in memory."""

_MARK = re.compile(
    r'"@context"\s*:\s*(?:\[[^\]]*?)?"https?://(?:iiif\.io/api/presentation|(?:www\.)?shared-canvas\.org/)'
    r'|"@?type"\s*:\s*"(?:Manifest"|sc:(?:Manifest|Collection)")'
)
_NAMES = re.compile(r"\s*(?:#[^\n]*\n\s*)*https?://\S+/manifest(?:\.json)?\s*(?:\n|$)")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_GAP = re.compile(r"[\s,\ufeff]*")
_DECODER = json.JSONDecoder()
_CHILDREN = ("items", "collections", "manifests", "members")


def recognises(file: ManifestFile) -> bool:
    """Return whether a manifest begins with an object that calls itself one of IIIF, or with the URL of one."""
    text = file.head_text.lstrip()
    if _NAMES.match(text):
        return True
    found = _MARK.search(text) if text.startswith("{") else None
    if found is None:
        return False
    before = _STRING.sub("", text[: found.start()])
    return before.count("{") - before.count("}") == 1 and before.count("[") == before.count("]")


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Yield a line for each canvas, manifest after manifest; what a collection names elsewhere is read there."""
    with file.text() as text:
        content = text.read(MAX_BYTES + 1)
    walk = _Walk(file.read_url)
    names = [line.strip() for line in content.splitlines()] if _NAMES.match(content) else []
    named = (name for name in names if name and not name.startswith("#"))
    for document in named if names else _documents(content, file.name):
        yield from walk.lines(document)


class _Walk:
    """Goes through manifests and collections, each once.

    ``read`` returns what lies behind a URL, and raises a `FetchError`; ``None`` where nothing is to be asked for.
    """

    def __init__(self, read: Callable[[str, int], bytes] | None) -> None:
        self._read = read
        self._seen = set[str]()
        self._asked = 0

    def lines(self, value: Any, depth: int = 0) -> Iterator[bytes]:
        """Yield the lines of a manifest or collection, or of one that is only named; a bad one where it is neither."""
        name = value if isinstance(value, str) else identity(value)
        if name:
            if name in self._seen:
                return
            self._seen.add(name)
        try:
            whole = value if _is_whole(value) else self._followed(name)
        except (FetchError, ManifestError) as error:
            told = {"manifest": name, "label": text_of(value.get("label")) if isinstance(value, Mapping) else None}
            yield BadRow.of({key: one for key, one in told.items() if one}, str(error))
            return
        if kind_of(whole) == "Collection":
            yield from self._members(whole, depth)
        else:
            yield from lines_of(whole)

    def _members(self, collection: Mapping[str, Any], depth: int) -> Iterator[bytes]:
        if depth >= MAX_DEPTH:
            yield BadRow.of({"manifest": identity(collection)}, f"collections more than {MAX_DEPTH} deep in each other")
            return
        for name in _CHILDREN:
            for child in listed(collection.get(name)):
                yield from self.lines(child, depth + 1)
        # Pages of a large collection, in 2.
        for name in ("first", "next"):
            if collection.get(name):
                yield from self.lines(collection[name], depth + (name == "first"))

    def _followed(self, name: str) -> Mapping[str, Any]:
        """Return what lies behind the name of a manifest or collection."""
        if not name.startswith(("http://", "https://")):
            raise ManifestError("neither a manifest nor a collection, and no http URL of one")
        if self._read is None:
            raise ManifestError(f"it lies elsewhere, and nothing was asked for: {name[:200]}")
        self._asked += 1
        if self._asked > MAX_DOCUMENTS:
            raise ManifestError(f"more than {MAX_DOCUMENTS} manifests and collections; give collections in it instead")
        found = next(_documents(self._read(name, MAX_BYTES).decode("utf-8-sig", "replace"), name[:200]), None)
        if not _is_whole(found):
            raise ManifestError(f"neither a manifest nor a collection of IIIF: {name[:200]}")
        assert isinstance(found, Mapping)
        return found


def _is_whole(value: Any) -> bool:
    """Return whether a value is a manifest or a collection, and not only its name."""
    if kind_of(value) == "Collection":
        return any(name in value for name in (*_CHILDREN, "first"))
    return kind_of(value) == "Manifest" and ("items" in value or "sequences" in value)


def _documents(text: str, name: str) -> Iterator[Any]:
    """Yield the objects of a text, of which there may be one on each line."""
    if len(text) > MAX_BYTES:
        raise ManifestError(f"{name} is larger than {MAX_BYTES} characters; is this a IIIF manifest?")
    at = _gap_end(text, 0)
    while at < len(text):
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            place = getattr(error, "pos", at)
            raise ManifestError(
                f"{name}, line {text.count(chr(10), 0, place) + 1}: cut short, or not JSON: {why}"
            ) from error
        yield value
        at = _gap_end(text, end)


def _gap_end(text: str, at: int) -> int:
    """Return where what stands between two documents ends."""
    gap = _GAP.match(text, at)
    return gap.end() if gap else at
